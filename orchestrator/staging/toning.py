"""A staged picture's tones brought back to its photograph's, since networks let walls and floors drift."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from orchestrator.staging.masks import inwards
from orchestrator.staging.planes import BILINEAR, resized

Floats = NDArray[np.float32]

# How far inside the mask's border photograph and picture are compared, and by how much they may differ there, of 255:
# beyond it stands furniture and not the same wall in another tone.
RING_PX: Final = 16
MOST: Final = 72.0
CELL_PX: Final = 8


def toned(photo: NDArray[np.uint8], staged: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """``staged`` [h,w,3] less what it is off from ``photo`` along the border of ``mask`` [h,w], carried inwards.

    What is carried is as smooth as the border allows: edges and furniture stay, only their tone follows. Where
    furniture covers the whole border nothing changes. Sides are multiples of 8 px.
    """
    off = photo.astype(np.float32) - staged
    ring = mask & (inwards(mask, RING_PX) < 1) & (np.abs(off).max(axis=-1) < MOST)
    weights = _summed(ring.astype(np.float32)[..., None], CELL_PX)
    carried = _spread(_summed(off * ring[..., None], CELL_PX), weights)
    height, width = mask.shape
    corrected = np.rint(staged + resized(carried, width, height, BILINEAR)).clip(0, 255).astype(np.uint8)
    return np.where(mask[..., None], corrected, staged)


def _spread(sums: Floats, weights: Floats) -> Floats:
    """Means [h,w,3] of what is known, and elsewhere what the coarser levels know: pull-push (Gortler et al., 1996).

    ``weights`` [h,w,1] count what is summed; a cell is known by itself from one sample on.
    """
    means = np.asarray(sums / np.maximum(weights, 1e-6), np.float32)
    height, width = weights.shape[:2]
    if height == width == 1:
        return means
    even = ((0, height % 2), (0, width % 2), (0, 0))
    coarse = _spread(*(_summed(np.pad(values, even), 2) for values in (sums, weights)))
    finer = resized(coarse, 2 * coarse.shape[1], 2 * coarse.shape[0], BILINEAR)[:height, :width]
    share = np.minimum(weights, np.float32(1))
    return np.asarray(share * means + (1 - share) * finer, np.float32)


def _summed(values: Floats, edge: int) -> Floats:
    """Sums [h/e,w/e,c] over squares of that edge."""
    height, width, channels = values.shape
    squares = values.reshape(height // edge, edge, width // edge, edge, channels)
    return np.asarray(squares.sum(axis=(1, 3)), np.float32)
