"""The one place that knows how a network is asked: scaled input, timestep, epsilon or v, and guidance."""

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from orchestrator.diffusion.levels import Denoise, Levels
from orchestrator.diffusion.noise import Latents

Network = Callable[[Latents, NDArray[np.float32]], Latents]
"""``(sample [n,c,h,w], timestep [n,1]) -> out_sample [n,c,h,w]``, float32; sample has about unit variance."""


class Predict(Protocol):
    """The UNet as the inference server serves it: rows of sample, timestep and text embeddings to rows of output."""

    def __call__(
        self, sample: Latents, timestep: NDArray[np.float32], encoder_hidden_states: NDArray[np.float32], /
    ) -> Latents:
        """``[n,4,h,w], [n,1], [n,77k,width] -> [n,4,h,w]``."""
        ...


def denoiser(network: Network, levels: Levels) -> Denoise:
    """Turns a network into ``denoise(x, sigma)`` for the sigmas of ``levels``; any other sigma is a KeyError."""
    timesteps = {each.sigma: each.timestep for each in levels.halfway}
    timesteps.update(zip(levels.sigmas[levels.first :], levels.timesteps[levels.first :], strict=False))

    def denoise(x: Latents, sigma: float) -> Latents:
        timestep = np.full((x.shape[0], 1), timesteps[sigma], dtype=np.float32)
        output = network(x / math.sqrt(sigma**2 + 1.0), timestep)
        return levels.prediction.denoised(x, output, sigma)

    return denoise


def guided(
    predict: Predict, prompt: NDArray[np.float32], negative: NDArray[np.float32], guidance_scale: float
) -> Network:
    """The network under classifier-free guidance (Ho, Salimans, arXiv 2207.12598).

    ``prompt`` and ``negative`` are embeddings [n,77k,width]. The pair goes out as one call, negative rows first; at a
    ``guidance_scale`` of 1.0 or less the negative prompt has no say, as in diffusers, and only the prompt's rows go.
    """
    if guidance_scale <= 1.0:
        return lambda sample, timestep: predict(sample, timestep, prompt)
    embeddings = np.concatenate((negative, prompt))

    def network(sample: Latents, timestep: NDArray[np.float32]) -> Latents:
        pair = predict(np.concatenate((sample, sample)), np.concatenate((timestep, timestep)), embeddings)
        uncond, cond = np.split(pair, 2)
        return uncond + guidance_scale * (cond - uncond)

    return network
