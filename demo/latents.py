"""The demo's latent space, written down instead of found: colours and detail of 8 x 8 px blocks.

Channels: lightness, warm-cold, green-magenta of the block's mean colour, and the spread of lightness inside it. An
autoencoder left to find its own space on this machine had learned no colours after 1000 steps; this one is exact
from the first. The encoder learns to imitate `block_latents`, the decoder to undo it, and the UNet can train on
latents that cost no encoder.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK_PX = 8
RAW_SPREAD = 3.0
"""Standard deviation of the raw latents; the checkpoint's `scaling_factor` is `SCALED_SPREAD / RAW_SPREAD`."""
SCALED_SPREAD = 0.6
"""Of what the UNet sees. Below 1, since flat pictures shine through SD's last noise level (alpha_bar 0.0047)."""

MEANS = np.array([0.037, -0.059, -0.010, 0.027], np.float32)
SPREADS = np.array([0.458, 0.250, 0.224, 0.085], np.float32)


def block_features(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The four features, not yet normalised: uint8 [n, h, w, 3] -> float32 [n, 4, h/8, w/8]."""
    count, height, width, _ = pictures.shape
    rows, columns = height // BLOCK_PX, width // BLOCK_PX
    blocks = pictures.reshape(count, rows, BLOCK_PX, columns, BLOCK_PX, 3).astype(np.float32) / 127.5 - 1
    red, green, blue = np.moveaxis(blocks.mean(axis=(2, 4)), -1, 0)
    detail = blocks.mean(axis=-1).std(axis=(2, 4))
    light = (red + green + blue) / 3
    return np.stack([light, (red - blue) / 2, green - (red + blue) / 2, detail], axis=1).astype(np.float32)


def block_latents(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Raw latents of pictures: uint8 [n, h, w, 3] -> float32 [n, 4, h/8, w/8], standard deviation about 3."""
    features = block_features(pictures)
    normal: NDArray[np.float32] = (features - MEANS[:, None, None]) / SPREADS[:, None, None] * RAW_SPREAD
    return normal


def colours(latents: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The small picture that raw latents describe: float32 [4, h, w] -> uint8 [h, w, 3]."""
    light, warm, green, _ = latents / RAW_SPREAD * SPREADS[:, None, None] + MEANS[:, None, None]
    both = light - green / 3
    picture = np.stack([both + warm, light + 2 * green / 3, both - warm], axis=-1)
    return np.clip((picture + 1) * 127.5, 0, 255).astype(np.uint8)
