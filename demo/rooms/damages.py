"""Drawn rooms beside themselves furnished, well and badly: what the scores of staged pictures are measured on.

    for name, pair in pairs_of(900_007).items():
        pair.before, pair.after, pair.mask          # as Judge.verdict takes them

The names of `SOUND` are pictures that ought to pass; every other one is broken in the way that its name says.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from demo.rooms.rooms import Room, room_of
from demo.rooms.view import View, render

Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]

SOUND = ("furnished", "soft")
OTHER = "another style"
MARGIN_PX = 6
SOFT_PX, BLURRED_PX = 1.2, 3.5
"""Radii in a picture of 384 px: what a small autoencoder does to edges, and what nobody would show."""
_OPPOSITE = {
    "modern": "traditional",
    "contemporary": "modern",
    "traditional": "scandinavian",
    "industrial": "contemporary",
    "scandinavian": "industrial",
}


@dataclass(frozen=True, eq=False)
class Pair:
    """A room before and after, uint8 [h,w,3], the mask, and the inverse depths of both as drawn, float32 [h,w]."""

    room: Room
    before: Picture
    after: Picture
    mask: Mask
    depths: tuple[NDArray[np.float32], NDArray[np.float32]]


def pairs_of(
    number: int, width_px: int = 384, height_px: int = 256, names: Collection[str] | None = None
) -> dict[str, Pair]:
    """The room with this number by what was done to it, all ways or those of ``names``.

    Nothing differs outside the mask, which holds the floor and all furniture with a margin.
    """
    room = room_of(number)
    empty = render(room, width_px, height_px, furnished=False, supersampling=1)
    full = render(room, width_px, height_px, supersampling=1)
    mask = grown(full.furniture | empty.floor, MARGIN_PX)
    found = {}
    for name, damage in DAMAGES.items():
        if names is None or name in names:
            found[name] = _pair(room, empty, damage(empty, full, np.random.default_rng(number)), mask)
    if names is None or OTHER in names:
        dressed = render(replace(room, style=_OPPOSITE[room.style]), width_px, height_px, supersampling=1)
        found[OTHER] = _pair(room, empty, dressed, mask)
    return found


def _pair(room: Room, empty: View, after: View, mask: Mask) -> Pair:
    allowed = mask | grown(after.furniture, MARGIN_PX)
    seen = np.where(allowed[..., None], after.picture, empty.picture)
    return Pair(room, empty.picture, seen, allowed, (empty.inverse_depth, after.inverse_depth))


def grown(mask: Mask, reach_px: int) -> Mask:
    """The mask and what is within so many pixels of it."""
    image = Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(2 * reach_px + 1))
    return np.asarray(image) > 0


Damage = Callable[[View, View, np.random.Generator], View]
"""From the room empty and furnished to what is wrong with it: a view whose `furniture` is what was put there."""


def _filtered(change: Callable[[Image.Image], Image.Image]) -> Damage:
    return lambda empty, full, rng: replace(full, picture=np.asarray(change(Image.fromarray(full.picture))))


def _blurred(radius_px: float) -> Damage:
    return _filtered(lambda image: image.filter(ImageFilter.GaussianBlur(radius_px)))


def _added(to_pixels: Callable[[View, np.random.Generator], NDArray[np.float64]]) -> Damage:
    def damage(empty: View, full: View, rng: np.random.Generator) -> View:
        return replace(full, picture=np.clip(full.picture + to_pixels(full, rng), 0, 255).astype(np.uint8))

    return damage


def _lifted(share: float) -> Damage:
    """All furniture, moved up by a share of the height."""

    def damage(empty: View, full: View, rng: np.random.Generator) -> View:
        rows = round(share * len(full.furniture))
        where = np.zeros_like(full.furniture)
        where[:-rows] = full.furniture[rows:]
        picture = np.where(where[..., None], np.roll(full.picture, -rows, axis=0), empty.picture)
        depth = np.where(where, np.roll(full.inverse_depth, -rows, axis=0), empty.inverse_depth)
        return replace(full, picture=picture, inverse_depth=depth, furniture=where)

    return damage


def _moved(pixels: int, axis: int) -> Damage:
    """The whole room, walls and all."""

    def damage(empty: View, full: View, rng: np.random.Generator) -> View:
        depth = np.roll(full.inverse_depth, pixels, axis=axis)
        return replace(full, picture=np.roll(full.picture, pixels, axis=axis), inverse_depth=depth)

    return damage


def _painted(picture: Callable[[View, np.random.Generator], Picture]) -> Damage:
    """A picture of no furniture at all."""
    return lambda empty, full, rng: replace(
        full, picture=picture(empty, rng).astype(np.uint8), inverse_depth=empty.inverse_depth
    )


def _stripes(full: View, rng: np.random.Generator) -> NDArray[np.float64]:
    rows = 30.0 * (np.arange(len(full.picture)) % 8 < 3)
    return np.broadcast_to(rows[:, None, None], full.picture.shape)


def _dead(empty: View, full: View, rng: np.random.Generator) -> View:
    height, width = full.furniture.shape
    after = full.picture.copy()
    after[round(0.6 * height) : round(0.85 * height), round(0.3 * width) : round(0.6 * width)] = 0
    return replace(full, picture=after)


def _specks(empty: View, rng: np.random.Generator) -> Picture:
    specks = grown(rng.random(empty.floor.shape) < 0.006, 1)
    return np.where(specks[..., None], np.array((90, 50, 40), np.uint8), empty.picture)


DAMAGES: dict[str, Damage] = {
    "furnished": lambda empty, full, rng: full,
    "soft": _blurred(SOFT_PX),
    "empty": _painted(lambda empty, rng: empty.picture),
    "noise": _painted(lambda empty, rng: rng.integers(0, 256, empty.picture.shape).astype(np.uint8)),
    "one colour": _painted(lambda empty, rng: np.full_like(empty.picture, 110)),
    "specks": _painted(_specks),
    "noisy furniture": _added(lambda full, rng: rng.normal(0, 20, full.picture.shape) * full.furniture[..., None]),
    "blurred": _blurred(BLURRED_PX),
    "lifted a little": _lifted(0.15),
    "lifted": _lifted(0.3),
    "a cast": _added(lambda full, rng: np.broadcast_to((18.0, 8.0, -6.0), full.picture.shape)),
    "moved aside": _moved(12, axis=1),
    "moved down": _moved(9, axis=0),
    "vivid": _filtered(lambda image: ImageEnhance.Color(image).enhance(4.0)),
    "stripes": _added(_stripes),
    "a dead area": _dead,
}
