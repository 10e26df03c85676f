"""Draws pairs of rooms and keeps what training reads: `python -m demo.rooms.paint --shape 64x96:0:2000 --out DIR`.

A shard holds, for 50 rooms, the latents of the furnished and of the empty picture (written down, see demo.latents: no
encoder is needed), the empty room's edges, and its inverse depth.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from demo.latents import BLOCK_PX, block_latents
from demo.rooms.rooms import room_of
from demo.rooms.view import render_pair
from orchestrator.imaging.opencv import Shapes
from orchestrator.staging.controls import canny_picture, depth_picture

SHARD = 50


@dataclass(frozen=True, eq=False)
class Shard:
    """50 rooms from ``first`` on, at one size: float16 [50,4,h,w] twice, packed bits [50,8h,w], uint8 [50,2h,2w]."""

    first: int
    furnished: NDArray[np.float16]
    empty: NDArray[np.float16]
    edges: NDArray[np.uint8]
    depth: NDArray[np.uint8]


def paint(first: int, rows: int, columns: int) -> Shard:
    """Draws 50 rooms at 8 times this size."""
    width, height = columns * BLOCK_PX, rows * BLOCK_PX
    furnished, empty, edges, depth = [], [], [], []
    shapes = Shapes()
    for number in range(first, first + SHARD):
        before, after = render_pair(room_of(number), width, height, supersampling=1)
        furnished.append(block_latents(after.picture[None])[0])
        empty.append(block_latents(before.picture[None])[0])
        edges.append(np.packbits(canny_picture(before.picture, shapes)[..., 0] > 0, axis=-1))
        depth.append(depth_picture(before.inverse_depth)[::4, ::4, 0])
    after_all, before_all = (np.stack(latents).astype(np.float16) for latents in (furnished, empty))
    return Shard(first, after_all, before_all, np.stack(edges), np.stack(depth))


def save(shard: Shard, folder: Path) -> None:
    """Writes the shard under its size and first room; it appears only once it is whole."""
    rows, columns = shard.furnished.shape[2:]
    unfinished = folder / f"unfinished-{shard.first}.npz"
    np.savez(
        unfinished,
        allow_pickle=False,
        furnished=shard.furnished,
        empty=shard.empty,
        edges=shard.edges,
        depth=shard.depth,
    )
    unfinished.rename(folder / f"{rows}x{columns}-{shard.first:06d}.npz")


def load(path: Path) -> Shard:
    """The shard in a file."""
    with np.load(path) as arrays:
        return Shard(int(path.stem.split("-")[1]), **{name: arrays[name] for name in arrays.files})


def wanted(shapes: list[str]) -> Iterator[tuple[int, int, int]]:
    """First room, rows and columns of every shard that the command line asks for."""
    for shape in shapes:
        size, first, count = shape.split(":")
        rows, columns = map(int, size.split("x"))
        for number in range(int(first), int(first) + int(count), SHARD):
            yield number, rows, columns


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", nargs="+", required=True, help="latent rows x columns:first room:count, in order")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for first, rows, columns in wanted(args.shape):
        save(paint(first, rows, columns), args.out)


if __name__ == "__main__":
    main()
