"""Where the pieces of each kind of room stand: against a wall that has place for them, never in front of a door."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from demo.rooms import furniture as made_of
from demo.rooms.faces import Face, placed
from demo.rooms.palettes import PALETTES, Palette
from demo.rooms.rooms import Room


@dataclass(frozen=True)
class _Site:
    """The room as a decorator sees it: ``x`` is the middle of the free back wall, ``hand`` the side of small pieces."""

    room: Room
    made: Palette
    x: float
    back: float
    hand: int
    rng: random.Random

    def within(self, x: float, half: float) -> float:
        """``x``, or the nearest place to it where something of this half width does not stick into a wall."""
        reach = self.room.width / 2 - half - 0.05
        return min(max(x, -reach), reach)


def furnish(room: Room) -> list[Face]:
    """All pieces of the room, in its style."""
    site = _site(room)
    return _LAYOUTS[room.room_type](site)


def _site(room: Room) -> _Site:
    rng = random.Random(room.number + 5)
    hand = 1 if room.mirrored else -1
    x = rng.uniform(-0.25, 0.25)
    for opening in room.openings:
        if opening.door and opening.wall == "back":
            x = -0.55 if opening.along[0] > 0 else 0.55
            hand = -1 if opening.along[0] > 0 else 1
        elif opening.door:
            hand = 1 if opening.wall == "left" else -1
    if room.room_type in ("kitchen", "bathroom"):
        hand = -1 if room.mirrored else 1  # the fixtures are on the other side
    return _Site(room, PALETTES[room.style], x, room.depth, hand, rng)


def _living_room(site: _Site) -> list[Face]:
    made, x, back, hand = site.made, site.x, site.back, site.hand
    faces = placed(made_of.rug(made, 2.5, 1.7), x, back - 1.5)
    faces += placed(made_of.sofa(made, site.rng.choice((1.9, 2.1))), x, back - 0.55)
    faces += placed(made_of.coffee_table(made), x, back - 1.6)
    chair_x = site.within(x + hand * 1.55, 0.45)
    faces += placed(made_of.armchair(made), chair_x, back - 1.75, 62 * hand)
    lamp_x = site.within(x - hand * 1.35, 0.25)
    faces += placed(made_of.floor_lamp(made), lamp_x, back - 0.45)
    if site.made is PALETTES["scandinavian"] or site.rng.random() < 0.3:
        faces += placed(made_of.plant(made), site.within(x + hand * 1.5, 0.35), back - 0.5)
    return faces + _art(site, x)


def _bedroom(site: _Site) -> list[Face]:
    made, x, back = site.made, site.x, site.back
    faces = placed(made_of.rug(made, 2.7, 1.5), x, back - 1.9)
    faces += placed(made_of.bed(made), x, back - 1.1)
    for side in (-1, 1):
        table_x = x + side * 1.18
        if abs(table_x) < site.room.width / 2 - 0.25:
            faces += placed(made_of.bedside_table(made), table_x, back - 0.3)
    return faces + _art(site, x)


def _kitchen(site: _Site) -> list[Face]:
    made, back, hand = site.made, site.back, site.hand
    x = site.within(site.x + hand * 0.55, 0.95)
    z = back - 1.7
    faces = placed(made_of.table(made, 1.1, 0.75), x, z)
    for dx, dz, turn in ((-0.3, 0.62, 0), (0.3, 0.62, 0), (-0.3, -0.62, 180), (0.3, -0.62, 180)):
        faces += placed(made_of.chair(made), x + dx, z + dz, turn)
    for z_stool in (back - 0.8, back - 1.4):
        faces += placed(made_of.bar_stool(made), -hand * (site.room.width / 2 - 0.85), z_stool)
    for dx in (-0.3, 0.3):
        faces += placed(made_of.pendant_lamp(made, site.room.height, 1.6), x + dx, z)
    return faces


def _bathroom(site: _Site) -> list[Face]:
    made, back, hand = site.made, site.back, site.hand
    x = -hand * (site.room.width / 2 - 1.15)
    faces = placed(made_of.bath_mat(made), x, back - 0.95)
    faces += placed(made_of.stool(made), site.within(x + hand * 1.05, 0.2), back - 0.6)
    faces += placed(made_of.plant(made, 0.8), hand * (site.room.width / 2 - 0.5), back - 0.5)
    if _is_free(site, site.x + hand * 0.6, 0.45):
        faces += placed(made_of.towels(made), site.x + hand * 0.6, back)
    return faces


def _dining_room(site: _Site) -> list[Face]:
    made, x, back = site.made, site.x, site.back
    z = back - 1.75
    faces = placed(made_of.rug(made, 2.6, 1.9), x, z)
    faces += placed(made_of.table(made, 1.7, 0.85), x, z)
    for dx in (-0.55, 0.0, 0.55):
        faces += placed(made_of.chair(made), x + dx, z + 0.62)
        faces += placed(made_of.chair(made), x + dx, z - 0.62, 180)
    faces += placed(made_of.pendant_lamp(made, site.room.height, 1.55), x, z)
    faces += placed(made_of.sideboard(made), x, back - 0.26)
    return faces + _art(site, x)


def _office(site: _Site) -> list[Face]:
    made, x, back, hand = site.made, site.x, site.back, site.hand
    faces = placed(made_of.rug(made, 2.2, 1.6), x, back - 1.5)
    faces += placed(made_of.desk(made), x, back - 1.0)
    faces += placed(made_of.office_chair(made), x + 0.1, back - 1.65)
    shelf_x = site.within(x + hand * 1.5, 0.55)
    faces += placed(made_of.bookshelf(made), shelf_x, back - 0.2)
    if site.rng.random() < 0.5 or site.made is PALETTES["scandinavian"]:
        faces += placed(made_of.plant(made, 0.9), site.within(x - hand * 1.4, 0.35), back - 0.5)
    return faces


def _art(site: _Site, x: float) -> list[Face]:
    """A print over the furniture, where the wall is free."""
    return placed(made_of.picture(site.made), x, site.back) if _is_free(site, x, 0.5) else []


def _is_free(site: _Site, x: float, half: float) -> bool:
    back = (one.along for one in site.room.openings if one.wall == "back")
    return all(right < x - half - 0.08 or left > x + half + 0.08 for left, right in back)


_LAYOUTS: dict[str, Callable[[_Site], list[Face]]] = {
    "living_room": _living_room,
    "bedroom": _bedroom,
    "kitchen": _kitchen,
    "bathroom": _bathroom,
    "dining_room": _dining_room,
    "office": _office,
}
