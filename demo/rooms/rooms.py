"""A room as plain facts: its size, what looks out of it, its colours, and how it is to be furnished."""

from __future__ import annotations

import random
from dataclasses import dataclass

from demo.rooms.camera import Camera
from demo.rooms.faces import Rgb

ROOM_TYPES = ("living_room", "bedroom", "kitchen", "bathroom", "dining_room", "office")
STYLES = ("modern", "contemporary", "traditional", "industrial", "scandinavian")
HELD_OUT_FROM = 900_000
"""Rooms from this number on are never trained on."""

_WALLS: tuple[Rgb, ...] = (
    (238, 236, 230),
    (228, 222, 210),
    (214, 220, 222),
    (226, 214, 196),
    (200, 208, 198),
    (218, 204, 206),
    (190, 200, 212),
    (236, 226, 202),
    (206, 204, 200),
)
_FLOORS: tuple[Rgb, ...] = (
    (176, 132, 88),
    (150, 106, 68),
    (202, 164, 118),
    (120, 84, 58),
    (186, 180, 170),
    (148, 146, 142),
    (214, 204, 188),
)
_SKIES: tuple[Rgb, ...] = ((188, 218, 244), (206, 226, 240), (164, 204, 240), (230, 232, 230))


@dataclass(frozen=True)
class Opening:
    """A window or a door in a wall: from where to where along it, and how high, in metres."""

    wall: str
    along: tuple[float, float]
    height: tuple[float, float]
    door: bool


@dataclass(frozen=True)
class Room:
    """One room. It reaches from z = 0, where one stands, to ``depth``; its walls are at plus and minus half its width.

    ``number`` rules all that is left to chance, ``mirrored`` on which side the smaller pieces stand.
    """

    number: int
    room_type: str
    style: str
    width: float
    depth: float
    height: float
    camera: Camera
    wall: Rgb
    feature_wall: Rgb
    floor: Rgb
    planks: bool
    sky: Rgb
    openings: tuple[Opening, ...]
    mirrored: bool
    brightness: float


def room_of(number: int) -> Room:
    """The room with this number, the same for ever."""
    rng = random.Random(77_000_000 + number)
    width, depth = rng.uniform(3.6, 5.4), rng.uniform(4.0, 5.2)
    height = rng.uniform(2.45, 2.9)
    room_type, style = rng.choice(ROOM_TYPES), rng.choice(STYLES)
    wall = _near(rng.choice(_WALLS), 8, rng)
    return Room(
        number=number,
        room_type=room_type,
        style=style,
        width=width,
        depth=depth,
        height=height,
        camera=_camera(width, rng),
        wall=wall,
        feature_wall=_near(rng.choice(_WALLS), 8, rng) if rng.random() < 0.3 else wall,
        floor=_near(rng.choice(_FLOORS), 12, rng),
        planks=rng.random() < 0.6,
        sky=rng.choice(_SKIES),
        openings=_openings(width, depth, rng),
        mirrored=rng.random() < 0.5,
        brightness=rng.uniform(0.86, 1.04),
    )


def _camera(width: float, rng: random.Random) -> Camera:
    turned = rng.random() < 0.35
    yaw = rng.choice((-1, 1)) * rng.uniform(8, 24) if turned else rng.uniform(-4, 4)
    # Who looks to the right stands on the left, and has more of the room before him.
    aside = -0.3 * width * (yaw / 24) if turned else rng.uniform(-0.1, 0.1) * width
    return Camera((aside, rng.uniform(1.15, 1.6), 0.15), yaw, rng.uniform(0.52, 0.68), rng.uniform(0.03, 0.11))


def _openings(width: float, depth: float, rng: random.Random) -> tuple[Opening, ...]:
    """A window or two and at most one door, none over another; the back wall's middle is free or a window."""
    found: list[Opening] = []
    if rng.random() < 0.6:
        span = rng.uniform(0.9, 1.7)
        middle = rng.uniform(-0.25, 0.25) * width
        found.append(
            Opening("back", (middle - span / 2, middle + span / 2), (rng.uniform(0.85, 1.0), 2.15), door=False)
        )
    side = rng.choice(("left", "right"))
    if not found or rng.random() < 0.5:
        begin = rng.uniform(0.45, 0.62) * depth
        found.append(Opening(side, (begin, begin + rng.uniform(1.0, 1.5)), (0.9, 2.15), door=False))
    if rng.random() < 0.5:
        begin = rng.uniform(0.3, 0.6) * depth
        found.append(Opening("right" if side == "left" else "left", (begin, begin + 0.9), (0.0, 2.05), door=True))
    elif rng.random() < 0.4:
        edge = width / 2 - 0.25
        along = (edge - 0.85, edge) if rng.random() < 0.5 else (-edge, -edge + 0.85)
        window = next((one for one in found if one.wall == "back"), None)
        if window is None or along[0] > window.along[1] + 0.2 or along[1] < window.along[0] - 0.2:
            found.append(Opening("back", along, (0.0, 2.05), door=True))
    return tuple(found)


def _near(colour: Rgb, reach: float, rng: random.Random) -> Rgb:
    red, green, blue = (min(250.0, max(20.0, part + rng.uniform(-reach, reach))) for part in colour)
    return red, green, blue
