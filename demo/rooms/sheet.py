"""Puts rooms of a report side by side, empty above and furnished below: `python -m demo.rooms.sheet --out PNG`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from PIL import Image

CELL_PX = 384, 256
GAP_PX = 6
COLUMNS = 3


def sheet(report: Path, ids: list[str]) -> Image.Image:
    """Three rooms to a line, in the order given."""
    width, height = CELL_PX
    lines = -(-len(ids) // COLUMNS)
    made = Image.new("RGB", (COLUMNS * (width + GAP_PX) - GAP_PX, lines * (2 * height + 2 * GAP_PX) - GAP_PX), "white")
    for index, name in enumerate(ids):
        left, top = index % COLUMNS * (width + GAP_PX), index // COLUMNS * (2 * height + 2 * GAP_PX)
        for below, kind in enumerate(("before", "after")):
            with Image.open(report / "pictures" / f"{name}-{kind}.png") as picture:
                small = picture.convert("RGB").resize(CELL_PX, Image.Resampling.LANCZOS)
            made.paste(small, (left, top + below * height))
    return made


def one_of_each(report: Path) -> list[str]:
    """The ids of one room of each kind, every one in another style as far as there are styles."""
    entries = json.loads((report / "results.json").read_text())["entries"]
    found: dict[str, str] = {}
    left = {entry["style"] for entry in entries}
    for entry in entries:
        if entry["room_type"] not in found and (not left or entry["style"] in left):
            found[entry["room_type"]] = entry["id"]
            left.discard(entry["style"])
    return list(found.values())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", type=Path, default=Path("report"), help="what `make staging-report` wrote")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    sheet(args.report, one_of_each(args.report)).save(args.out, optimize=True)


if __name__ == "__main__":
    main()
