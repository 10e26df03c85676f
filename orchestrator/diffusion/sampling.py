"""Samplers: from noise to latents, one yielded step a turn, with nothing left behind.

Latents are variance exploding: ``x = clean + sigma * noise``. A sampler is a generator of (denoise, start, levels,
noise); whatever it remembers of earlier turns travels in ``Step.memory``, so a loop goes on from any of its steps with
the same bits, and any number of loops run side by side.
"""

import math
from collections.abc import Callable, Iterator, Mapping

from orchestrator.diffusion.levels import Denoise, Levels, Noise, Step
from orchestrator.diffusion.multistep import dpmpp_2m, dpmpp_2m_sde, lms, pndm, unipc

Sampler = Callable[[Denoise, Step, Levels, Noise], Iterator[Step]]


def euler(denoise: Denoise, start: Step, levels: Levels, noise: Noise) -> Iterator[Step]:
    """Euler's method in sigma (Karras et al., arXiv 2206.00364, algorithm 1 without churn). Order 1."""
    x = start.latents
    for i in levels.after(start):
        sigma, sigma_next = levels.sigmas[i : i + 2]
        denoised = denoise(x, sigma)
        d = (x - denoised) / sigma
        x = x + (sigma_next - sigma) * d
        yield Step(i, x, denoised)


def euler_a(denoise: Denoise, start: Step, levels: Levels, noise: Noise) -> Iterator[Step]:
    """Euler's method with ancestral noise: steps below the next level, returns to it with new noise. Weak order 1."""
    x = start.latents
    for i in levels.after(start):
        sigma, sigma_next = levels.sigmas[i : i + 2]
        sigma_up = sigma_next * math.sqrt(sigma**2 - sigma_next**2) / sigma
        sigma_down = sigma_next**2 / sigma
        denoised = denoise(x, sigma)
        d = (x - denoised) / sigma
        x = x + (sigma_down - sigma) * d + sigma_up * noise(i)
        yield Step(i, x, denoised)


def heun(denoise: Denoise, start: Step, levels: Levels, noise: Noise) -> Iterator[Step]:
    """Heun's method in sigma (Karras et al., algorithm 1): two evaluations a step, one for the last. Order 2."""
    x = start.latents
    for i in levels.after(start):
        sigma, sigma_next = levels.sigmas[i : i + 2]
        denoised = levels.clipped(denoise(x, sigma))
        d = (x - denoised) / sigma
        if sigma_next > 0.0:
            x_next = x + (sigma_next - sigma) * d
            denoised = levels.clipped(denoise(x_next, sigma_next))
            d = (d + (x_next - denoised) / sigma_next) / 2.0
        x = x + (sigma_next - sigma) * d
        yield Step(i, x, denoised)


def ddim(denoise: Denoise, start: Step, levels: Levels, noise: Noise) -> Iterator[Step]:
    """DDIM with eta 0 (Song et al., arXiv 2010.02502, eq. 12). Order 1."""
    x = start.latents
    for i in levels.after(start):
        (sigma, sigma_to), sigma_next = levels.moves[i], levels.sigmas[i + 1]
        denoised = denoise(x, sigma)
        eps = (x - denoised) / sigma
        denoised = levels.clipped(denoised)
        reread = math.sqrt((sigma_next**2 + 1.0) / (sigma_to**2 + 1.0))
        x = reread * denoised + (reread * sigma_to) * eps
        yield Step(i, x, denoised)


def lcm(denoise: Denoise, start: Step, levels: Levels, noise: Noise) -> Iterator[Step]:
    """Multistep consistency sampling (Luo et al., arXiv 2310.04378, algorithm 3), for distilled checkpoints."""
    x, sigma_data = start.latents, 0.5
    for i in levels.after(start):
        sigma, sigma_next = levels.sigmas[i : i + 2]
        s = 10.0 * levels.timesteps[i]
        c_skip, c_out = sigma_data**2 / (s**2 + sigma_data**2), s / math.sqrt(s**2 + sigma_data**2)
        x_0 = levels.clipped(denoise(x, sigma))
        denoised = c_out * x_0 + (c_skip / math.sqrt(sigma**2 + 1.0)) * x
        x = denoised if sigma_next == 0.0 else denoised + sigma_next * noise(i)
        yield Step(i, x, denoised)


SAMPLERS: Mapping[str, Sampler] = {
    "ddim": ddim,
    "euler": euler,
    "euler_a": euler_a,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "lms": lms,
    "pndm": pndm,
    "unipc": unipc,
    "lcm": lcm,
}
"""Every sampler by the name clients send."""

DEFAULT_SAMPLER = "dpmpp_2m"
