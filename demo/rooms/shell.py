"""What is there before any furniture: floor, walls, ceiling, windows, doors, and the fixtures of kitchens and baths."""

from __future__ import annotations

import random
from collections.abc import Callable

from demo.rooms.faces import Face, Rgb, box, face
from demo.rooms.rooms import Opening, Room

FRAME: Rgb = (244, 244, 242)
_SKIRTING_M = 0.09
_BEHIND_M = -1.0
"""Walls go on behind whoever looks, so that a turned camera does not see past them."""
_PLANK_M = 0.24

Along = Callable[[float, float, float], tuple[float, float, float]]
"""From metres along a wall, above the floor and out of the wall to a point in the room."""


def floor(room: Room) -> list[Face]:
    """The floor, in planks where it has them."""
    half, deep = room.width / 2, room.depth
    rng = random.Random(room.number)
    if not room.planks:
        return [_flat(-half, half, deep, room.floor)]
    edges = [-half + i * _PLANK_M for i in range(int(room.width / _PLANK_M) + 1)]
    planks = [
        _flat(left, min(left + _PLANK_M, half), deep, _toned(room.floor, 1 + rng.uniform(-0.05, 0.05)))
        for left in edges
        if left < half
    ]
    # Two planks may leave a pixel between them to neither.
    return [_flat(-half, half, deep, room.floor, -0.002), *planks]


def shell(room: Room) -> list[Face]:
    """Walls, ceiling, skirting boards, windows and doors."""
    half, deep, high, near = room.width / 2, room.depth, room.height, _BEHIND_M
    white: Rgb = (246, 245, 242)
    faces = [
        face(((-half, 0, deep), (half, 0, deep), (half, high, deep), (-half, high, deep)), room.feature_wall),
        face(((-half, 0, near), (-half, 0, deep), (-half, high, deep), (-half, high, near)), _toned(room.wall, 0.97)),
        face(((half, 0, near), (half, 0, deep), (half, high, deep), (half, high, near)), _toned(room.wall, 0.94)),
        face(((-half, high, near), (half, high, near), (half, high, deep), (-half, high, deep)), white),
    ]
    for wall, length in (("back", half), ("left", deep), ("right", deep)):
        at, start = _wall(room, wall), -half if wall == "back" else near
        faces.append(_panel(at, (start, length), (0, _SKIRTING_M), white, 0.012))
    for opening in room.openings:
        faces += _door(room, opening) if opening.door else _window(room, opening)
    return faces


def fixtures(room: Room) -> list[Face]:
    """A kitchen's counter or a bathroom's basin, along the left or the right wall: they stay with the house."""
    if room.room_type not in ("kitchen", "bathroom"):
        return []
    side = 1 if room.mirrored else -1
    wall, deep = side * room.width / 2, room.depth
    body: Rgb = (236, 235, 230) if room.number % 2 else (150, 158, 164)
    top: Rgb = (96, 92, 90) if room.number % 3 else (226, 222, 214)
    long = 2.2 if room.room_type == "kitchen" else 1.2
    near, inner = deep - long - 0.15, wall - side * 0.58
    x = (min(wall, inner), max(wall, inner))
    faces = box(x, (0.08, 0.84), (near, deep - 0.15), body) + box(x, (0.84, 0.89), (near, deep - 0.15), top)
    if room.room_type == "kitchen":
        upper = wall - side * 0.36
        faces += box((min(wall, upper), max(wall, upper)), (1.45, 2.1), (near, deep - 0.15), body)
    else:
        glass = wall - side * 0.03
        z = (near + 0.15, deep - 0.3)
        faces += box((min(wall, glass), max(wall, glass)), (1.1, 1.8), z, (206, 220, 226))
    return faces


def _flat(left: float, right: float, deep: float, colour: Rgb, up: float = 0.0) -> Face:
    return face(((left, up, _BEHIND_M), (right, up, _BEHIND_M), (right, up, deep), (left, up, deep)), colour)


def _wall(room: Room, wall: str) -> Along:
    half, deep = room.width / 2, room.depth
    if wall == "back":
        return lambda along, up, out: (along, up, deep - out)
    side = -1 if wall == "left" else 1
    return lambda along, up, out: (side * (half - out), up, along)


def _panel(at: Along, along: tuple[float, float], up: tuple[float, float], colour: Rgb, out: float) -> Face:
    corners = ((along[0], up[0]), (along[1], up[0]), (along[1], up[1]), (along[0], up[1]))
    return face([at(a, u, out) for a, u in corners], colour)


def _opening(at: Along, along: tuple[float, float], up: tuple[float, float], colour: Rgb, out: float) -> Face:
    flat = _panel(at, along, up, colour, out)
    return Face(flat.points, colour, shine=0.0 if out > 0.02 and colour != FRAME else 1.0, opening=True)


def _window(room: Room, one: Opening) -> list[Face]:
    """A frame, two panes with a brighter sky above, and a sill."""
    at, (left, right), (low, high) = _wall(room, one.wall), one.along, one.height
    middle, bar = (left + right) / 2, 0.055
    faces = [_opening(at, (left - bar, right + bar), (low - bar, high + bar), FRAME, 0.015)]
    for start, end in ((left, middle - bar / 2), (middle + bar / 2, right)):
        split = low + (high - low) * 0.36
        faces.append(_opening(at, (start, end), (split, high), room.sky, 0.025))
        faces.append(_opening(at, (start, end), (low, split), _toned(room.sky, 0.82), 0.025))
    return [*faces, _panel(at, (left - 0.1, right + 0.1), (low - 0.1, low - bar), (230, 230, 228), 0.06)]


def _door(room: Room, one: Opening) -> list[Face]:
    """A leaf in its frame, two panels and a handle."""
    at, (left, right), (_, high) = _wall(room, one.wall), one.along, one.height
    leaf: Rgb = (240, 238, 234) if room.number % 2 else (146, 104, 70)
    inset = _toned(leaf, 0.93)
    faces = [
        _opening(at, (left - 0.07, right + 0.07), (0, high + 0.07), (226, 224, 220), 0.014),
        _opening(at, (left, right), (0.01, high), leaf, 0.019),
    ]
    for low, top in ((0.2, 0.9), (1.05, high - 0.15)):
        faces.append(_opening(at, (left + 0.13, right - 0.13), (low, top), inset, 0.0195))
    return [*faces, _opening(at, (right - 0.13, right - 0.05), (0.98, 1.02), (120, 118, 112), 0.0198)]


def _toned(colour: Rgb, factor: float) -> Rgb:
    red, green, blue = (min(255.0, part * factor) for part in colour)
    return red, green, blue
