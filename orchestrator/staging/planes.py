"""Masks, depths and offsets at another size."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BILINEAR, BOX, NEAREST = Image.Resampling.BILINEAR, Image.Resampling.BOX, Image.Resampling.NEAREST


def resized(
    values: NDArray[np.float32], width_px: int, height_px: int, resampling: Image.Resampling
) -> NDArray[np.float32]:
    """``values`` [h,w] or [h,w,c] at that size, each channel by itself; pictures go through Pillow as they are."""
    if values.ndim == 2:
        return np.asarray(Image.fromarray(values).resize((width_px, height_px), resampling), dtype=np.float32)
    planes = np.moveaxis(values, -1, 0)
    return np.stack([resized(plane, width_px, height_px, resampling) for plane in planes], axis=-1)
