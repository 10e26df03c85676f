"""Paints training scenes and keeps their latents: `python -m demo.paint_latents --shape 64x64:0:6000 --out DIR`."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np

from demo.latents import BLOCK_PX, block_latents
from demo.painting import draw
from demo.scenes import Scene, training_scene

SHARD = 250
SEED_BASE = 10_000_000


def scene_of(number: int) -> Scene:
    """The training scene with this number."""
    return training_scene(random.Random(SEED_BASE + number))


def shard_name(rows: int, columns: int, first: int) -> str:
    """File name of the shard whose first scene has this number; `scene_numbers` reads it back."""
    return f"{rows}x{columns}-{first:07d}.npy"


def scene_numbers(path: Path, count: int) -> range:
    """Numbers of the scenes in a shard of so many."""
    first = int(path.stem.split("-")[1])
    return range(first, first + count)


def paint_shards(rows: int, columns: int, first: int, count: int, out: Path) -> None:
    """Writes float16 latents [250, 4, rows, columns] per shard; a shard appears only once it is whole."""
    out.mkdir(parents=True, exist_ok=True)
    for begin in range(first, first + count, SHARD):
        pictures = [
            np.asarray(draw(scene_of(number), columns * BLOCK_PX, rows * BLOCK_PX))[None]
            for number in range(begin, begin + SHARD)
        ]
        latents = np.concatenate([block_latents(picture) for picture in pictures]).astype(np.float16)
        unfinished = out / "unfinished.npy"
        np.save(unfinished, latents)
        unfinished.rename(out / shard_name(rows, columns, begin))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--shape", default=["64x64"], nargs="+", help="latent rows x columns:first scene:count, in order"
    )
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    for shape in args.shape:
        size, first, count = shape.split(":")
        rows, columns = map(int, size.split("x"))
        paint_shards(rows, columns, int(first), int(count), args.out)


if __name__ == "__main__":
    main()
