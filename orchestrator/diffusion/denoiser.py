"""The one place that knows how a network is asked: scaled input, timestep, epsilon or v, and guidance."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from orchestrator.diffusion.levels import Denoise, Levels
from orchestrator.diffusion.noise import Latents

Network = Callable[[Latents, NDArray[np.float32]], Latents]
"""``(sample [n,c,h,w], timestep [n,1]) -> out_sample [n,c,h,w]``, float32; sample has about unit variance."""


def denoiser(network: Network, levels: Levels) -> Denoise:
    """Turns a network into ``denoise(x, sigma)`` for the sigmas of ``levels``; any other sigma is a KeyError."""
    timesteps = {each.sigma: each.timestep for each in levels.halfway}
    timesteps.update(zip(levels.sigmas[levels.first :], levels.timesteps[levels.first :], strict=False))

    def denoise(x: Latents, sigma: float) -> Latents:
        timestep = np.full((x.shape[0], 1), timesteps[sigma], dtype=np.float32)
        output = network(x / math.sqrt(sigma**2 + 1.0), timestep)
        return levels.prediction.denoised(x, output, sigma)

    return denoise


def guided(network: Network, guidance_scale: float) -> Network:
    """``network`` under classifier-free guidance (Ho, Salimans, arXiv 2207.12598), where there is any.

    The pair goes out as one call, negative rows first: ``network`` must be conditioned on rows in that order. At a
    ``guidance_scale`` of 1.0 or less the negative prompt has no say, as in diffusers, and only the prompt's rows go.
    """
    if guidance_scale <= 1.0:
        return network

    def doubled(sample: Latents, timestep: NDArray[np.float32]) -> Latents:
        pair = network(np.concatenate((sample, sample)), np.concatenate((timestep, timestep)))
        uncond, cond = np.split(pair, 2)
        return uncond + guidance_scale * (cond - uncond)

    return doubled
