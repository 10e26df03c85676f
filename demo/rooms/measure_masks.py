"""What masks that staging finds cover of floors, windows and doors: `python -m demo.rooms.measure_masks`.

Rooms that no training saw, empty, in five sizes, seen by the demo's depth network as the service sees them; with
``--exact`` by the drawing's own depth instead. What lies in the margins that every mask leaves free does not count.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GLPNForDepthEstimation

from demo.rooms.rooms import HELD_OUT_FROM, room_of
from demo.rooms.train_depth import EDGE_PX
from demo.rooms.view import View, render
from orchestrator.imaging.opencv import Shapes
from orchestrator.staging.masks import within_margins
from orchestrator.staging.survey import DepthSight, find_mask

SIZES_PX = ((768, 512), (512, 512), (512, 384), (768, 432), (384, 512))
Sight = Callable[[View], NDArray[np.float32]]


@dataclass(frozen=True)
class Covered:
    """Shares of a room's floor and of its openings, None where it shows none, that the mask covers."""

    floor: float
    openings: float | None


def covered(number: int, sight: Sight, shapes: Shapes) -> Covered:
    """What the mask found in the empty room of that number covers."""
    width_px, height_px = SIZES_PX[number % len(SIZES_PX)]
    view = render(room_of(number), width_px, height_px, furnished=False, supersampling=1)
    mask = find_mask(view.picture, sight(view), shapes).mask
    floor, openings = within_margins(view.floor), within_margins(view.openings)
    return Covered(float(mask[floor].mean()), float(mask[openings].mean()) if openings.any() else None)


def network_sight(folder: Path) -> Sight:
    """The depth network in a folder, in torch."""
    network = GLPNForDepthEstimation.from_pretrained(folder).float().eval()

    @torch.no_grad()
    def look(squares: NDArray[np.uint8]) -> NDArray[np.float32]:
        pixels = torch.from_numpy(squares.astype(np.float32).transpose(0, 3, 1, 2) / 255)
        inverse: NDArray[np.float32] = (1 / network(pixel_values=pixels).predicted_depth.clamp(min=1e-3)).numpy()
        return inverse

    sight = DepthSight(look, EDGE_PX)
    return lambda view: sight.inverse_depth(view.picture)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=Path, default=Path(__file__).parent / "depth", help="the network's folder")
    parser.add_argument("--exact", action="store_true", help="the drawing's own depth")
    parser.add_argument("--count", type=int, default=60)
    args = parser.parse_args()
    sight: Sight = (lambda view: view.inverse_depth) if args.exact else network_sight(args.depth)
    shapes = Shapes()
    found = [covered(HELD_OUT_FROM + index, sight, shapes) for index in range(args.count)]
    floors = [one.floor for one in found]
    openings = [one.openings for one in found if one.openings is not None]
    print(
        f"{args.count} rooms: {np.mean(floors):.1%} of the floor is covered, {min(floors):.1%} in the worst; "
        f"{np.mean(openings):.2%} of windows and doors, {max(openings):.1%} in the worst"
    )


if __name__ == "__main__":
    main()
