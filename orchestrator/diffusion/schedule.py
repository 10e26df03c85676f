"""A checkpoint's noise schedule, and the levels on it that a sampler visits for a given number of steps."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from orchestrator.diffusion.levels import Halfway, Levels
from orchestrator.diffusion.spacing import (
    RESPACINGS,
    SPACINGS,
    Respacing,
    Spacing,
    respaced_sigmas,
    spaced_timesteps,
    timesteps_of_sigmas,
)
from orchestrator.diffusion.training import TrainedNoise
from orchestrator.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class _Method:
    """How the diffusers scheduler that a sampler is named for lays out its levels."""

    family: Literal["sigma", "log_snr", "ddim", "pndm", "consistency"]
    spacing: Spacing
    respaces: bool = False


_METHODS: Mapping[str, _Method] = {
    "ddim": _Method("ddim", "leading"),
    "euler": _Method("sigma", "linspace", respaces=True),
    "euler_a": _Method("sigma", "linspace"),
    "heun": _Method("sigma", "linspace", respaces=True),
    "dpmpp_2m": _Method("log_snr", "linspace", respaces=True),
    "dpmpp_2m_sde": _Method("log_snr", "linspace", respaces=True),
    "lms": _Method("sigma", "linspace", respaces=True),
    "pndm": _Method("pndm", "leading"),
    "unipc": _Method("log_snr", "linspace", respaces=True),
    "lcm": _Method("consistency", "leading"),
}

_SHORT_LOOP_STEPS = 15
_RUNGE_KUTTA_STEPS = 3


@dataclass(frozen=True, slots=True)
class _Request:
    """What was asked for, with nothing missing."""

    sampler: str
    steps: int
    spacing: Spacing
    respacing: Respacing | None
    first: int


@dataclass(frozen=True, slots=True)
class NoiseSchedule:
    """Lays the steps of a picture along the noise a checkpoint was trained with."""

    trained: TrainedNoise

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> Self:
        """Reads a diffusers ``scheduler_config.json``; a value that cannot be served is a ConfigError."""
        return cls(TrainedNoise.from_config(config))

    def levels(
        self,
        sampler: str,
        steps: int,
        spacing: str | None = None,
        sigmas: str | None = None,
        *,
        strength: float = 1.0,
    ) -> Levels:
        """The levels ``sampler`` visits in ``steps`` steps, those of the diffusers scheduler it is named for.

        ``spacing`` is leading, linspace or trailing and ``sigmas`` karras or exponential; None takes the checkpoint's
        choice, else the sampler's own. ``strength`` keeps that share of the steps, the last ones, for a start from a
        picture. What the sampler does not support is an InvalidInput.
        """
        request = self._resolved(sampler, steps, spacing, sigmas, strength)
        match _METHODS[sampler].family:
            case "sigma":
                return self._sigma_levels(request)
            case "log_snr":
                return self._log_snr_levels(request)
            case "ddim":
                return self._ddim_levels(request)
            case "pndm":
                return self._pndm_levels(request) if self.trained.skip_prk_steps else self._runge_kutta_levels(request)
            case "consistency":
                return self._consistency_levels(request)

    def _resolved(self, sampler: str, steps: int, spacing: str | None, sigmas: str | None, strength: float) -> _Request:
        method = _METHODS.get(sampler)
        if method is None:
            raise InvalidInput(f"sampler is {sampler}; {', '.join(_METHODS)} are served")
        most = self.trained.original_inference_steps if sampler == "lcm" else len(self.trained.sigmas) - 1
        if not 1 <= steps <= most:
            raise InvalidInput(f"num_inference_steps is {steps}; {sampler} serves 1 to {most}")
        kept = int(steps * strength) if 0.0 <= strength <= 1.0 else 0
        if kept < 1:
            # Rounded up: with 3 steps 0.333 leaves none.
            least = math.ceil(1000 / steps) / 1000
            raise InvalidInput(f"strength is {strength}; {least:g} to 1.0 are served with {steps} steps")
        if spacing is not None and spacing not in SPACINGS:
            raise InvalidInput(f"spacing is {spacing}; {', '.join(SPACINGS)} are served")
        if sigmas is not None and sigmas not in RESPACINGS:
            raise InvalidInput(f"sigmas are {sigmas}; {', '.join(RESPACINGS)} are served")
        if spacing not in (None, "leading") and sampler == "lcm":
            raise InvalidInput(f"spacing is {spacing}; lcm serves only the leading one it was distilled with")
        if sigmas is not None and not method.respaces:
            able = ", ".join(name for name, each in _METHODS.items() if each.respaces)
            raise InvalidInput(f"sigmas are {sigmas}; {sampler} serves only the trained ones, {able} any")
        return _Request(
            sampler,
            steps,
            spacing or self.trained.timestep_spacing or method.spacing,
            (sigmas or self.trained.respacing) if method.respaces else None,
            steps - kept,
        )

    def _spaced(self, request: _Request, *, drop_last: bool = False) -> NDArray[np.float64]:
        train_steps = len(self.trained.sigmas)
        timesteps = spaced_timesteps(
            request.spacing, request.steps, train_steps, self.trained.steps_offset, drop_last=drop_last
        )
        if timesteps[0] > train_steps - 1:
            first = f"{request.steps} {request.spacing} steps begin at timestep {timesteps[0]:.0f}"
            raise InvalidInput(f"{first}; 0 to {train_steps - 1} are served")
        # Of 61 trailing steps and some other counts the stride's rounding leaves room for one more, at timestep -1, as
        # in diffusers. Where levels are looked up by timestep it is the noisiest, and the picture would be spoiled.
        return timesteps[timesteps >= 0] if _METHODS[request.sampler].family in ("ddim", "pndm") else timesteps

    def _sigma_levels(self, request: _Request) -> Levels:
        """Euler, Heun and LMS: steps in sigma, fractional timesteps, down to sigma 0."""
        trained = self.trained.sigmas
        timesteps = self._spaced(request).astype(np.float32).astype(np.float64)
        sigmas = np.interp(timesteps, np.arange(len(trained)), trained)
        if request.respacing is not None:
            sigmas = respaced_sigmas(request.respacing, sigmas[0].item(), sigmas[-1].item(), request.steps)
            timesteps = timesteps_of_sigmas(sigmas, np.log(trained))
        last = float(trained[0]) if self.trained.ends_at_sigma_min and request.sampler == "euler" else 0.0
        levels = _float32((*sigmas, last))
        return Levels(
            sigmas=levels,
            timesteps=_float32(timesteps),
            moves=tuple(pairwise(levels)),
            prediction=self.trained.prediction,
            noise_scale=math.sqrt(levels[0] ** 2 + 1.0) if request.spacing == "leading" else levels[0],
            variance_preserving=False,
            first=request.first,
            clip=self.trained.clip,
        )

    def _log_snr_levels(self, request: _Request) -> Levels:
        """DPM-Solver++ and UniPC: steps in log-SNR, whole timesteps, the last one left out for a final sigma."""
        trained = self.trained.sigmas
        timesteps = self._spaced(request, drop_last=True).round()
        sigmas = np.interp(timesteps, np.arange(len(trained)), trained)
        if request.respacing is not None:
            sigmas = respaced_sigmas(request.respacing, trained[-1].item(), trained[0].item(), request.steps)
            timesteps = timesteps_of_sigmas(sigmas, np.log(trained))
            # Diffusers rounds for karras and casts to int for exponential: 998.99 is timestep 998 there.
            timesteps = timesteps.round() if request.respacing == "karras" else np.trunc(timesteps)
        # Diffusers' UniPC ends on the last of its respaced sigmas, which of one step is the first.
        own = request.sampler == "unipc" and request.respacing is not None
        lowest = float(sigmas[-1]) if own else float(trained[0])
        levels = _float32((*sigmas, lowest if self.trained.ends_at_sigma_min else 0.0))
        return Levels(
            sigmas=levels,
            timesteps=_float32(timesteps),
            moves=tuple(pairwise(levels)),
            prediction=self.trained.prediction,
            noise_scale=math.sqrt(levels[0] ** 2 + 1.0),
            variance_preserving=True,
            first=request.first,
            lower_order_final=self._lower_order_final(request),
        )

    def _lower_order_final(self, request: _Request) -> bool:
        """Whether the last turn is of first order, which it must be where it goes to sigma 0."""
        if request.sampler == "unipc":
            return self.trained.lower_order_final or not self.trained.ends_at_sigma_min
        short = self.trained.lower_order_final and request.steps < _SHORT_LOOP_STEPS
        return short or self.trained.euler_at_final or not self.trained.ends_at_sigma_min

    def _ddim_levels(self, request: _Request) -> Levels:
        """Each step goes down a constant stride of timesteps, wherever the next one lies."""
        timesteps, stride = self._strided(request)
        moves = [(timestep, timestep - stride) for timestep in timesteps]
        return self._stride_levels(
            request, timesteps, moves, 0.0 if self.trained.set_alpha_to_one is not False else None
        )

    def _pndm_levels(self, request: _Request) -> Levels:
        """DDIM's stride; the second level is visited again to redo the first step with what was seen there."""
        timesteps, stride = self._strided(request)
        timesteps[1:1] = timesteps[1:2]
        moves = [(timestep, timestep - stride) for timestep in timesteps]
        if len(timesteps) > request.first + 1:
            again = timesteps[request.first + 1]
            moves[request.first + 1] = (again + stride, again)
        return self._stride_levels(request, timesteps, moves, 0.0 if self.trained.set_alpha_to_one else None)

    def _runge_kutta_levels(self, request: _Request) -> Levels:
        """PNDM that begins with three classical Runge-Kutta steps, of four evaluations each."""
        if request.steps < _RUNGE_KUTTA_STEPS + 1 or request.first:
            what = f"{request.steps} steps from step {request.first}"
            raise InvalidInput(f"pndm is to do {what}; with Runge-Kutta steps 4 and more are served, all of them")
        timesteps, stride = self._strided(request)
        moves = [(timestep, timestep - stride) for timestep in timesteps]
        halfway = []
        for i, timestep in enumerate(timesteps[:_RUNGE_KUTTA_STEPS]):
            moves[i] = (timestep, timesteps[i + 1])
            middle = timesteps[i + 1] + stride // 2
            sigmas = self.trained.sigma_at(timestep - stride // 2), self.trained.sigma_at(middle)
            halfway.append(Halfway(*sigmas, float(middle)))
        levels = self._stride_levels(request, timesteps, moves, 0.0 if self.trained.set_alpha_to_one else None)
        return replace(levels, halfway=tuple(halfway))

    def _strided(self, request: _Request) -> tuple[list[int], int]:
        timesteps = self._spaced(request).round().astype(np.int64).tolist()
        return timesteps, len(self.trained.sigmas) // request.steps

    def _stride_levels(
        self, request: _Request, timesteps: list[int], moves: list[tuple[int, int]], final: float | None
    ) -> Levels:
        """Levels of whole timesteps; ``final`` is the sigma of a step below the first one, None for the first's own."""
        if final is None:
            final = self.trained.sigma_at(0)
        trained = self.trained.sigma_at
        steps = tuple((trained(s), trained(t) if t >= 0 else final) for s, t in moves)
        sigmas = tuple(trained(timestep) for timestep in timesteps)
        return Levels(
            sigmas=(*sigmas, steps[-1][1]),
            timesteps=tuple(map(float, timesteps)),
            moves=steps,
            prediction=self.trained.prediction,
            noise_scale=math.sqrt(sigmas[0] ** 2 + 1.0),
            variance_preserving=True,
            first=request.first,
            clip=self.trained.clip if request.sampler == "ddim" else None,
        )

    def _consistency_levels(self, request: _Request) -> Levels:
        """LCM: a choice among the timesteps that the checkpoint was distilled with (Luo et al., arXiv 2310.04378)."""
        origin = self.trained.original_inference_steps
        skip = len(self.trained.sigmas) // origin
        distilled = (np.arange(1, origin + 1) * skip - 1)[::-1]
        chosen = np.floor(np.linspace(0, origin, request.steps, endpoint=False)).astype(np.int64)
        timesteps = distilled[chosen].tolist()
        sigmas = (*(self.trained.sigma_at(timestep) for timestep in timesteps), 0.0)
        return Levels(
            sigmas=sigmas,
            timesteps=tuple(map(float, timesteps)),
            moves=tuple(pairwise(sigmas)),
            prediction=self.trained.prediction,
            noise_scale=math.sqrt(sigmas[0] ** 2 + 1.0),
            variance_preserving=True,
            first=request.first,
            clip=self.trained.clip,
        )


def _float32(values: NDArray[np.float64] | tuple[float, ...]) -> tuple[float, ...]:
    """Python floats with float32's rounding, in which diffusers keeps sigmas and timesteps."""
    return tuple(np.asarray(values, dtype=np.float32).astype(np.float64).tolist())
