"""Paints training scenes in every style: `python -m demo.paint_styles --first 20000 --count 750 --out DIR`.

DIR gets a folder of latents per style, in the form of `demo.paint_latents`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from demo.filters import STYLES, filtered
from demo.latents import BLOCK_PX, block_latents
from demo.paint_latents import scene_of, shard_name
from demo.painting import draw

SIDE = 64
SHARD = 50


def paint_shard(names: list[str], first: int, count: int, out: Path) -> None:
    """Draws so many scenes once and writes float16 latents [count, 4, 64, 64] for each of these styles."""
    latents: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    for number in range(first, first + count):
        plain = draw(scene_of(number), SIDE * BLOCK_PX, SIDE * BLOCK_PX)
        for name in names:
            latents[name].append(block_latents(np.asarray(filtered(name, plain, number))[None]))
    for name, rows in latents.items():
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f"unfinished-{first}.npy"
        np.save(unfinished, np.concatenate(rows).astype(np.float16))
        unfinished.rename(folder / shard_name(SIDE, SIDE, first))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--styles", nargs="+", choices=tuple(STYLES), default=list(STYLES))
    parser.add_argument("--first", type=int, default=20_000)
    parser.add_argument("--count", type=int, default=750)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    for first in range(args.first, args.first + args.count, SHARD):
        paint_shard(args.styles, first, min(SHARD, args.first + args.count - first), args.out)


if __name__ == "__main__":
    main()
