"""What a denoise loop runs on: its noise levels, fixed before it starts, and the steps it leaves behind."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import numpy as np

from orchestrator.diffusion.noise import Latents

Denoise = Callable[[Latents, float], Latents]
"""``(x, sigma) -> denoised``: the clean latents expected under ``x``, which carries noise of ``sigma``."""

Noise = Callable[[int], Latents]
"""``index -> z``: standard normal noise for that step, the same however often it is asked for."""


class Prediction(Enum):
    """What the network was trained to answer; named as in a checkpoint's scheduler config."""

    EPSILON = "epsilon"
    VELOCITY = "v_prediction"

    def denoised(self, x: Latents, output: Latents, sigma: float) -> Latents:
        """The clean latents that the network's answer for ``x`` at ``sigma`` stands for (Salimans, Ho, 2202.00512)."""
        if self is Prediction.EPSILON:
            return x - sigma * output
        return x / (sigma**2 + 1.0) - (sigma / math.sqrt(sigma**2 + 1.0)) * output

    def output(self, x: Latents, denoised: Latents, sigma: float) -> Latents:
        """The inverse: the answer with which the network would have said ``denoised``."""
        if self is Prediction.EPSILON:
            return (x - denoised) / sigma
        return (x / (sigma**2 + 1.0) - denoised) * (math.sqrt(sigma**2 + 1.0) / sigma)


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One turn of the loop, done: all that the next turn needs, so any step is a place to resume from.

    ``latents`` [n,c,h,w] float32 carry the noise of the level that the turn stepped to, variance exploding (clean plus
    sigma times noise). ``denoised`` has their shape. ``memory`` is what a multistep method keeps of earlier turns.
    ``index`` is 0-based; the start of a loop is the step before its first turn.
    """

    index: int
    latents: Latents
    denoised: Latents
    memory: tuple[Latents, ...] = ()


@dataclass(frozen=True, slots=True)
class Halfway:
    """The middle of a Runge-Kutta turn: the level stepped to, and the one the network is asked at, its timestep too."""

    sigma_to: float
    sigma: float
    timestep: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """The noise levels of one picture; turn ``i`` calls the network at ``sigmas[i]`` and steps to ``sigmas[i + 1]``.

    ``first`` is the turn to begin with, more than 0 where the start is a picture. ``moves`` holds per turn the two
    levels the step is computed between. They differ from ``sigmas`` only where diffusers steps by a constant stride
    over timesteps that are not evenly spaced (DDIM and PNDM); latents are then reread at the next level.
    ``variance_preserving`` tells the convention of the sampler's namesake, ``noise_scale`` how much of the start's
    noise is taken, ``lower_order_final`` whether the last turn must not extrapolate, ``clip`` bounds ``denoised``.
    ``halfway`` has an entry for each Runge-Kutta turn that PNDM may begin with.
    """

    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]
    moves: tuple[tuple[float, float], ...]
    prediction: Prediction
    noise_scale: float
    variance_preserving: bool
    first: int = 0
    lower_order_final: bool = True
    clip: float | None = None
    halfway: tuple[Halfway, ...] = ()

    @property
    def turns(self) -> int:
        """How many steps the loop yields from its start."""
        return len(self.timesteps) - self.first

    def start(self, noise: Latents, clean: Latents | None = None) -> Step:
        """The step before the first turn: pure noise, or ``clean`` latents of a picture under noise of that level."""
        if clean is None:
            return Step(self.first - 1, noise * self.noise_scale, noise)
        return Step(self.first - 1, clean + self.sigmas[self.first] * noise, clean)

    def after(self, step: Step) -> range:
        """The turns that are left after ``step``."""
        return range(step.index + 1, len(self.timesteps))

    def model_latents(self, step: Step) -> Latents:
        """The latents as diffusers holds them after ``step`` and, after the last one, as the VAE decodes them."""
        if not self.variance_preserving:
            return step.latents
        return step.latents / math.sqrt(self.sigmas[step.index + 1] ** 2 + 1.0)

    def clipped(self, denoised: Latents) -> Latents:
        """``denoised`` within the bounds that the checkpoint's config sets, if it sets any."""
        return denoised if self.clip is None else np.clip(denoised, -self.clip, self.clip)
