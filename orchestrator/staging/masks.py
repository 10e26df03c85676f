"""Where furniture may stand where nobody says, and the rule that nothing else changes."""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

# Furniture that touches the picture's border would go on beyond it; these shares stay free at the sides and below.
SIDE_MARGIN: Final = 0.02
NEAR_MARGIN: Final = 0.03
FEATHER_PX: Final = 8


def floor_mask(height_px: int, width_px: int) -> NDArray[np.bool_]:
    """A trapezium where an empty room photographed at eye level has its floor, bool [h,w].

    It knows nothing of the picture. It stands in where a provider brings no understanding of the room of its own.
    """
    mask = Image.new("1", (width_px, height_px))
    horizon, near = round(height_px * 0.52), round(height_px * (1 - NEAR_MARGIN))
    corners = [
        (round(width_px * 0.16), horizon),
        (round(width_px * 0.84), horizon),
        (round(width_px * (1 - SIDE_MARGIN)), near),
        (round(width_px * SIDE_MARGIN), near),
    ]
    ImageDraw.Draw(mask).polygon(corners, fill=1)
    return np.array(mask, dtype=np.bool_)


def within_margins(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask without what lies too near to the picture's sides and lower border."""
    height, width = mask.shape
    side, near = round(width * SIDE_MARGIN), round(height * NEAR_MARGIN)
    kept = np.zeros_like(mask)
    kept[: height - near, side : width - side] = mask[: height - near, side : width - side]
    return kept


def composite(
    working: NDArray[np.uint8], staged: NDArray[np.uint8], mask: NDArray[np.bool_], feather_px: int = FEATHER_PX
) -> NDArray[np.uint8]:
    """``staged`` inside the mask, and outside it ``working``, to the byte; uint8 [h,w,3] and bool [h,w].

    Over ``feather_px`` inside the mask's border the one passes into the other, so that no seam is seen.
    """
    share = inwards(mask, feather_px)[..., None]
    blended = np.rint(working + share * (staged.astype(np.float32) - working)).astype(np.uint8)
    return np.where(mask[..., None], blended, working)


def inwards(mask: NDArray[np.bool_], over_px: int) -> NDArray[np.float32]:
    """0 outside the mask, rising evenly to 1 at ``over_px`` inside its border; the picture's border is none. [h,w]"""
    steps, shrunk = np.zeros(mask.shape, np.float32), mask
    for _ in range(over_px):
        steps += shrunk
        padded = np.pad(shrunk, 1, mode="edge")
        rows = padded[:-2] & padded[1:-1] & padded[2:]
        shrunk = rows[:, :-2] & rows[:, 1:-1] & rows[:, 2:]
    return np.asarray(steps / over_px if over_px else mask, np.float32)
