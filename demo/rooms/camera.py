"""A pinhole camera that paints faces: colour, inverse depth and who covers what, every pixel the nearest face's.

A plane's inverse depth is linear over the picture, so a face needs no interpolation: 1/Z = (n . ray) / d.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from demo.rooms.faces import Face, Points

NEAR_M = 0.08
DIMMEST = 0.27
"""What a face that the light only grazes loses of it."""
_SUN = np.array([0.35, 0.8, -0.5]) / np.linalg.norm([0.35, 0.8, -0.5])


@dataclass(frozen=True)
class Camera:
    """Where one looks from, [x, y, z] in metres, to which side (degrees to the right), and how wide.

    ``focal`` is the focal length as a share of the picture's longer side. It looks level, so verticals stay vertical;
    ``rise`` moves the horizon up, as a share of the height, the way a shift lens shows more of the floor.
    """

    place: tuple[float, float, float]
    yaw_degrees: float
    focal: float
    rise: float = 0.0


@dataclass(eq=False)
class Canvas:
    """What was painted so far. ``tags`` [h,w] holds the number of the group that covers a pixel, -1 for none."""

    camera: Camera
    width_px: int
    height_px: int
    colour: NDArray[np.float32] = field(init=False)
    inverse_depth: NDArray[np.float32] = field(init=False)
    tags: NDArray[np.int8] = field(init=False)
    openings: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        shape = (self.height_px, self.width_px)
        self.colour = np.zeros((*shape, 3), np.float32)
        self.inverse_depth = np.zeros(shape, np.float32)
        self.tags = np.full(shape, -1, np.int8)
        self.openings = np.zeros(shape, np.bool_)

    def paint(self, faces: Iterable[Face], tag: int) -> None:
        """Adds faces; those that let light through come last, since they tint what they find."""
        ordered = sorted(faces, key=lambda one: one.alpha < 1)
        for one in ordered:
            self._paint_one(one, tag)

    @property
    def focal_px(self) -> float:
        return self.camera.focal * max(self.width_px, self.height_px)

    @property
    def centre_px(self) -> tuple[float, float]:
        return self.width_px / 2, self.height_px * (0.5 - self.camera.rise)

    def seen(self, points: Points) -> Points:
        """Points [n,3] as the camera has them: to its right, above it, ahead of it."""
        angle = np.radians(self.camera.yaw_degrees)
        turn = np.array([[np.cos(angle), 0, -np.sin(angle)], [0, 1, 0], [np.sin(angle), 0, np.cos(angle)]])
        seen: Points = (points - np.array(self.camera.place)) @ turn.T
        return seen

    def _paint_one(self, one: Face, tag: int) -> None:
        corners = _clipped(self.seen(one.points))
        if len(corners) < 3:
            return
        normal = _normal(corners)
        distance = float(normal @ corners[0])
        if abs(distance) < 1e-9:
            return
        across, down = self.centre_px
        flat = self.focal_px / corners[:, 2:] * corners[:, :2] * (1, -1) + (across, down)
        spot = _Spot.of(flat, self.width_px, self.height_px)
        if spot is None:
            return
        columns = (spot.columns + 0.5 - across) / self.focal_px
        rows = (down - spot.rows - 0.5) / self.focal_px
        inverse = ((normal[0] * columns[None, :] + normal[1] * rows[:, None] + normal[2]) / distance).astype(np.float32)
        known = self.inverse_depth[spot.slices]
        shown = spot.inside & (inverse > known - (2e-3 if one.alpha < 1 else 0))
        light = 1 - one.shine * DIMMEST * (1 - abs(float(_normal(one.points) @ _SUN)))
        paint = np.array(one.colour, np.float32) * light
        pixels = self.colour[spot.slices]
        if one.alpha < 1:
            pixels[shown] += one.alpha * (paint - pixels[shown])
            return
        pixels[shown] = paint
        known[shown] = inverse[shown]
        self.tags[spot.slices][shown] = tag
        self.openings[spot.slices][shown] = one.opening


@dataclass(frozen=True)
class _Spot:
    """The box of pixels around a polygon, and which of them lie inside it."""

    slices: tuple[slice, slice]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    inside: NDArray[np.bool_]

    @staticmethod
    def of(flat: Points, width_px: int, height_px: int) -> _Spot | None:
        low = np.clip(np.floor(flat.min(axis=0)), 0, (width_px, height_px)).astype(int)
        high = np.clip(np.ceil(flat.max(axis=0)) + 1, 0, (width_px, height_px)).astype(int)
        if (high <= low).any():
            return None
        mask = Image.new("1", (int(high[0] - low[0]), int(high[1] - low[1])))
        # Polygons that reach far out of the picture overflow Pillow's integers unless they are cut.
        within = _within(flat, width_px, height_px) - low
        if len(within) < 3:
            return None
        ImageDraw.Draw(mask).polygon([(float(x), float(y)) for x, y in within], fill=1)
        return _Spot(
            (slice(low[1], high[1]), slice(low[0], high[0])),
            np.arange(low[1], high[1]),
            np.arange(low[0], high[0]),
            np.array(mask, np.bool_),
        )


def _normal(points: Points) -> Points:
    """The unit normal of a flat polygon, zeros where it has no area; by hand: numpy's cross costs ten times as much."""
    (ax, ay, az), (bx, by, bz) = (points[1] - points[0]).tolist(), (points[2] - points[0]).tolist()
    x, y, z = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
    length = (x * x + y * y + z * z) ** 0.5
    return np.array((x, y, z)) / length if length > 1e-12 else np.zeros(3)


def _clipped(corners: Points) -> Points:
    """What of a polygon [n,3] lies ahead of the camera."""
    return _cut(corners, corners[:, 2] - NEAR_M)


def _within(flat: Points, width_px: int, height_px: int) -> Points:
    """What of a polygon [n,2] lies in the picture or near it."""
    for axis, edge_px in enumerate((width_px, height_px)):
        flat = _cut(flat, flat[:, axis] + edge_px)
        flat = _cut(flat, 2 * edge_px - flat[:, axis])
    return flat


def _cut(corners: Points, ahead: Points) -> Points:
    """What of a polygon lies where ``ahead`` [n], linear over it, is positive (Sutherland & Hodgman, 1974)."""
    if not len(corners) or ahead.min() > 0:
        return corners
    kept = []
    for index, (here, far) in enumerate(zip(corners, ahead, strict=True)):
        before, farther = corners[index - 1], ahead[index - 1]
        if (farther > 0) != (far > 0):
            kept.append(before + farther / (farther - far) * (here - before))
        if far > 0:
            kept.append(here)
    return np.array(kept).reshape(-1, corners.shape[1])
