"""Draws a curated set for `python -m orchestrator evaluate`: empty rooms that no training saw, each type in each style.

    python -m demo.rooms.write_set --out demo/rooms/evaluation --count 30

A room is passed over where its furniture would hardly be seen. With a mask for each room, the floor and what the drawn
furniture covers with a margin; `--without-masks` leaves finding one to the provider.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from demo.rooms.damages import grown
from demo.rooms.rooms import HELD_OUT_FROM, ROOM_TYPES, STYLES, Room, room_of
from demo.rooms.view import render

LEAST_FURNITURE = 0.04
"""Share of the picture that furniture covers in the drawn room."""
MARGIN = 0.016
"""Share of the longer side by which a mask reaches beyond what is drawn."""
ORIGIN = "drawn by demo/rooms of this repository (python -m demo.rooms.write_set), Apache-2.0; no photograph"


def chosen(count: int, first: int = HELD_OUT_FROM) -> list[Room]:
    """So many rooms from number ``first`` on: in turns one of each type and style, in the order of their numbers."""
    order = list(itertools.islice(itertools.cycle(itertools.product(ROOM_TYPES, STYLES)), count))
    wanted, found = Counter(order), defaultdict[tuple[str, str], list[Room]](list)
    numbers = itertools.count(first)
    while any(len(found[pair]) < wanted[pair] for pair in wanted):
        room = room_of(next(numbers))
        pair = room.room_type, room.style
        if len(found[pair]) < wanted[pair] and _is_furnished(room):
            found[pair].append(room)
    return [found[pair].pop(0) for pair in order]


def _is_furnished(room: Room) -> bool:
    return bool(render(room, 96, 64, supersampling=1).furniture.mean() >= LEAST_FURNITURE)


def write(out: Path, rooms: list[Room], width_px: int, height_px: int, masks: bool) -> None:
    """The set's folder: `originals`, `masks` and `set.json`."""
    entries: list[dict[str, Any]] = []
    for room in rooms:
        name = f"{room.room_type}-{room.style}-{room.number}"
        empty = render(room, width_px, height_px, furnished=False)
        entry = {"id": name, "original": _saved(out / "originals" / f"{name}.png", empty.picture)}
        if masks:
            full = render(room, width_px, height_px, supersampling=1)
            allowed = grown(full.furniture | empty.floor, round(MARGIN * max(width_px, height_px)))
            entry["mask"] = _saved(out / "masks" / f"{name}.png", allowed.astype(np.uint8) * 255)
        entries.append(entry | {"room_type": room.room_type, "style": room.style, "seed": room.number})
    content = {"name": f"{len(rooms)} drawn rooms", "origin": ORIGIN, "entries": entries}
    (out / "set.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _saved(path: Path, pixels: NDArray[np.uint8]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format="PNG", optimize=True)
    return f"{path.parent.name}/{path.name}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument(
        "--first", type=int, default=HELD_OUT_FROM, metavar="N", help="the first room that may be in it"
    )
    parser.add_argument("--size", default="768x512", metavar="WxH", help="in pixels; default 768x512")
    parser.add_argument("--without-masks", action="store_true")
    args = parser.parse_args()
    width_px, height_px = map(int, args.size.split("x"))
    write(args.out, chosen(args.count, args.first), width_px, height_px, not args.without_masks)
    print(f"{args.out / 'set.json'}: {args.count} rooms")


if __name__ == "__main__":
    main()
