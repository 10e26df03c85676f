"""What must stay of a picture while the rest of it is painted anew.

Networks that were not trained to inpaint have it put back after every step; those that were see it beside the latents.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from orchestrator.diffusion.levels import Levels, Step
from orchestrator.diffusion.noise import Latents

# A mask's grey counts as painted anew from here on, as in diffusers.
PAINTED_FROM = 128
# The middle of a picture's range: half a level from diffusers' 0.0, which bytes do not hold.
_MIDDLE = 128


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """A picture's latents [1,c,h,w], the noise they are laid under, and ``mask`` [1,1,h,w]: 1 where they may go."""

    clean: Latents
    noise: Latents
    mask: Latents

    def restored(self, step: Step, levels: Levels) -> Step:
        """``step`` with the picture back outside the mask, at the level stepped to; clean after the last turn.

        What the sampler remembers stays as it is: the next turn sees the restored latents and remembers those.
        """
        sigma = levels.sigmas[step.index + 1]
        if step.index + 1 < len(levels.timesteps):
            original = self.clean + sigma * self.noise
        else:
            # Where a schedule ends above sigma 0 the picture itself is what the VAE gets, and no noise over it.
            original = self.clean * (math.sqrt(sigma**2 + 1.0) if levels.variance_preserving else 1.0)
        mixed = (1.0 - self.mask) * original + self.mask * step.latents
        return replace(step, latents=mixed.astype(np.float32, copy=False))


def latent_mask(mask: NDArray[np.uint8], height: int, width: int) -> Latents:
    """``mask`` [8h,8w] uint8, white where the picture may change, as [1,1,height,width] of 0 and 1.

    Each latent takes the value of one pixel, its cell's first: diffusers' nearest neighbour.
    """
    rows = np.arange(height) * mask.shape[0] // height
    columns = np.arange(width) * mask.shape[1] // width
    return (mask[np.ix_(rows, columns)] >= PAINTED_FROM).astype(np.float32)[None, None]


def uncovered(picture: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``picture`` [h,w,3], grey where ``mask`` [h,w] lets it change: what a network trained to inpaint goes by."""
    return np.where(mask[..., None] >= PAINTED_FROM, np.uint8(_MIDDLE), picture)
