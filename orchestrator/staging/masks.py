"""Where furniture may stand where nobody says, and the rule that nothing else changes."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw


def floor_mask(height_px: int, width_px: int) -> NDArray[np.bool_]:
    """A trapezium where an empty room photographed at eye level has its floor, bool [h,w].

    It knows nothing of the picture. It stands in where a provider brings no understanding of the room of its own.
    """
    mask = Image.new("1", (width_px, height_px))
    horizon, near = round(height_px * 0.52), round(height_px * 0.97)
    corners = [
        (round(width_px * 0.16), horizon),
        (round(width_px * 0.84), horizon),
        (round(width_px * 0.98), near),
        (round(width_px * 0.02), near),
    ]
    ImageDraw.Draw(mask).polygon(corners, fill=1)
    return np.array(mask, dtype=np.bool_)


def composite(working: NDArray[np.uint8], staged: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """``staged`` inside the mask, and outside it ``working``, to the byte; uint8 [h,w,3] and bool [h,w]."""
    return np.where(mask[..., None], staged, working)
