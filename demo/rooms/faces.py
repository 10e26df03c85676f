"""Flat faces in space, and the boxes and prisms that rooms and furniture are built of.

Metres; x to the right, y up from the floor, z away from whoever looks into the room.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Rgb = tuple[float, float, float]
Points = NDArray[np.float64]


@dataclass(frozen=True)
class Face:
    """A flat polygon [n,3] of one colour, 0 to 255.

    ``alpha`` below 1 is a shadow or a pane: it tints what lies behind and hides nothing. ``shine`` is 1 for what light
    falls on, 0 for what shines by itself. ``opening`` marks windows and doors.
    """

    points: Points
    colour: Rgb
    alpha: float = 1.0
    shine: float = 1.0
    opening: bool = False


def face(points: Sequence[Sequence[float]], colour: Rgb, alpha: float = 1.0) -> Face:
    """A face through these points."""
    return Face(np.array(points, np.float64), colour, alpha)


def box(x: tuple[float, float], y: tuple[float, float], z: tuple[float, float], colour: Rgb) -> list[Face]:
    """The six sides of a box."""
    (x0, x1), (y0, y1), (z0, z1) = x, y, z
    sides = (
        ((x0, y0, z0), (x1, y0, z0), (x1, y1, z0), (x0, y1, z0)),
        ((x0, y0, z1), (x1, y0, z1), (x1, y1, z1), (x0, y1, z1)),
        ((x0, y0, z0), (x0, y0, z1), (x0, y1, z1), (x0, y1, z0)),
        ((x1, y0, z0), (x1, y0, z1), (x1, y1, z1), (x1, y1, z0)),
        ((x0, y0, z0), (x1, y0, z0), (x1, y0, z1), (x0, y0, z1)),
        ((x0, y1, z0), (x1, y1, z0), (x1, y1, z1), (x0, y1, z1)),
    )
    return [face(side, colour) for side in sides]


def prism(centre: tuple[float, float], y: tuple[float, float], radii: tuple[float, float], colour: Rgb) -> list[Face]:
    """Ten sides and the lid of something round, of one radius at its foot and another at its top."""
    turns = np.linspace(0, 2 * np.pi, 11)[:-1]
    low, high = (
        np.stack([centre[0] + r * np.cos(turns), np.full(10, h), centre[1] + r * np.sin(turns)], axis=1)
        for r, h in zip(radii, y, strict=True)
    )
    around = [Face(np.stack([low[i], low[i - 1], high[i - 1], high[i]]), colour) for i in range(len(turns))]
    return [*around, Face(high, colour), Face(low, colour)]


def placed(faces: Sequence[Face], x: float, z: float, degrees: float = 0.0) -> list[Face]:
    """The faces turned about the vertical axis, counter-clockwise from above, and moved over the floor."""
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    return [replace(one, points=one.points @ turn.T + (x, 0, z)) for one in faces]


def shadow(x: tuple[float, float], z: tuple[float, float], reach: float = 0.1) -> list[Face]:
    """What a piece with this footprint takes away of the light on the floor, darker right under it."""
    return [
        face(
            (
                (x[0] - grown, 0.004, z[0] - grown),
                (x[1] + grown, 0.004, z[0] - grown),
                (x[1] + grown, 0.004, z[1] + grown),
                (x[0] - grown, 0.004, z[1] + grown),
            ),
            (18, 14, 12),
            alpha=0.22,
        )
        for grown in (reach, reach / 3)
    ]
