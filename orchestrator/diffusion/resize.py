"""Pictures made larger between two passes, and the rough picture that latents show without a VAE."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from orchestrator.diffusion.noise import Latents

# Keys' cubic (IEEE ASSP 29, 1981) with a = -0.5: of the family the one that reproduces quadratics.
KEYS_A = -0.5


def enlarged(picture: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """``picture`` [n,c,h,w] resampled to [n,c,height,width] by Keys' cubic, edges repeated; it may overshoot."""
    rows, columns = _cubic(picture.shape[2], height), _cubic(picture.shape[3], width)
    return np.asarray(np.einsum("yh,nchw,xw->ncyx", rows, picture, columns, optimize=True), np.float32)


def _cubic(before: int, after: int) -> NDArray[np.float64]:
    """[after, before]: each row the weights with which one new sample reads the old ones."""
    centres = (np.arange(after) + 0.5) * before / after - 0.5
    taps = np.floor(centres)[:, None] + np.arange(-1, 3)
    distance = np.abs(centres[:, None] - taps)
    near = (KEYS_A + 2) * distance**3 - (KEYS_A + 3) * distance**2 + 1
    far = KEYS_A * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    matrix = np.zeros((after, before))
    columns = np.clip(taps, 0, before - 1).astype(np.intp)
    np.add.at(matrix, (np.arange(after)[:, None], columns), np.where(distance <= 1, near, far))
    return matrix


def rough_picture(latents: Latents, matrix: Sequence[Sequence[float]], bias: Sequence[float]) -> NDArray[np.uint8]:
    """[h,w,3] uint8 of ``latents`` [1,c,h,w], one pixel per latent; ``latents @ matrix + bias`` is 0 to 1."""
    colours = np.einsum("chw,cr->hwr", latents[0], np.asarray(matrix, np.float32)) + np.asarray(bias, np.float32)
    return np.asarray(np.clip(colours * 255.0 + 0.5, 0, 255), np.uint8)
