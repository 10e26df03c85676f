"""The noise a checkpoint was trained with, read from its diffusers scheduler config."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from orchestrator.diffusion.levels import Prediction
from orchestrator.diffusion.spacing import SPACINGS, Respacing, Spacing
from orchestrator.errors import ConfigError

_Choice = TypeVar("_Choice", bound=str)

_SERVED_ONLY: Mapping[str, object] = {
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "thresholding": False,
    "interpolation_type": "linear",
    "timestep_type": "discrete",
    "timestep_scaling": 10.0,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "use_flow_sigmas": False,
    "sigma_min": None,
    "sigma_max": None,
    "lambda_min_clipped": -math.inf,
    # Only flow matching has a shift; its configs name no betas, and other ones would be taken in their place.
    "shift": None,
}
"""Entries that change the numbers, and the one value of each that is served."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainedNoise:
    """The numbers of a ``scheduler_config.json``; None leaves the choice to each sampler's diffusers default.

    ``alphas_cumprod`` and ``sigmas`` [train steps] float32 belong to the timesteps 0 upwards; the former equal torch's
    to the bit. ``clip`` bounds the denoised latents; it is off unless the config says ``clip_sample``, also for DDIM.
    Likewise PNDM begins with Runge-Kutta steps only where the config says ``skip_prk_steps: false``.
    """

    alphas_cumprod: NDArray[np.float32]
    sigmas: NDArray[np.float32]
    prediction: Prediction
    steps_offset: int
    timestep_spacing: Spacing | None
    respacing: Respacing | None
    set_alpha_to_one: bool | None
    clip: float | None
    ends_at_sigma_min: bool
    lower_order_final: bool
    euler_at_final: bool
    original_inference_steps: int
    skip_prk_steps: bool

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> Self:
        """Reads the config as a mapping; keys of no effect here are left alone, unserved values are a ConfigError."""
        for key, served in _SERVED_ONLY.items():
            if config.get(key) not in (None, served):
                raise ConfigError(f"{key} is {config[key]} in the scheduler config; {served} is served")
        alphas_cumprod = _alphas_cumprod(config)
        alpha_to_one = config.get("set_alpha_to_one")
        karras, exponential = config.get("use_karras_sigmas"), config.get("use_exponential_sigmas")
        if karras and exponential:
            raise ConfigError("use_karras_sigmas and use_exponential_sigmas are both set; one of them is served")
        final_sigma = _choice(config, "final_sigmas_type", ("zero", "sigma_min"))
        return cls(
            alphas_cumprod=alphas_cumprod,
            sigmas=np.sqrt((1 - alphas_cumprod) / alphas_cumprod),
            prediction=Prediction(_choice(config, "prediction_type", ("epsilon", "v_prediction")) or "epsilon"),
            steps_offset=int(_number(config, "steps_offset", 0)),
            timestep_spacing=_choice(config, "timestep_spacing", SPACINGS),
            respacing="karras" if karras else "exponential" if exponential else None,
            set_alpha_to_one=None if alpha_to_one is None else bool(alpha_to_one),
            clip=_number(config, "clip_sample_range", 1.0) if config.get("clip_sample") else None,
            ends_at_sigma_min=final_sigma == "sigma_min",
            lower_order_final=bool(config.get("lower_order_final", True)),
            euler_at_final=bool(config.get("euler_at_final", False)),
            original_inference_steps=int(_number(config, "original_inference_steps", 50)),
            skip_prk_steps=bool(config.get("skip_prk_steps", True)),
        )

    def sigma_at(self, timestep: int) -> float:
        """The sigma of one trained timestep, rounded only where ``alphas_cumprod`` is."""
        alpha = float(self.alphas_cumprod[timestep])
        return math.sqrt((1.0 - alpha) / alpha)


def _alphas_cumprod(config: Mapping[str, object]) -> NDArray[np.float32]:
    start, end = _number(config, "beta_start", 0.0001), _number(config, "beta_end", 0.02)
    train_steps = int(_number(config, "num_train_timesteps", 1000))
    if not (0.0 < start <= end < 1.0 and train_steps > 1):
        raise ConfigError(f"betas are {start} to {end} over {train_steps} steps; 0 < start <= end < 1 are served")
    if _choice(config, "beta_schedule", ("linear", "scaled_linear")) == "scaled_linear":
        betas = _torch_linspace(math.sqrt(start), math.sqrt(end), train_steps) ** 2
    else:
        betas = _torch_linspace(start, end, train_steps)
    alphas = (np.float32(1.0) - betas).astype(np.float64)
    return np.cumprod(alphas).astype(np.float32)


def _torch_linspace(start: float, end: float, points: int) -> NDArray[np.float32]:
    """``torch.linspace`` in float32, to the bit: from both ends to the middle, each value rounded once (fused)."""
    first, last = np.float32(start), np.float32(end)
    stride = np.float64((last - first) / np.float32(points - 1))
    index = np.arange(points)
    rising, falling = np.float64(first) + stride * index, np.float64(last) - stride * (points - 1 - index)
    return np.where(index < points // 2, rising, falling).astype(np.float32)


def _choice(config: Mapping[str, object], key: str, served: tuple[_Choice, ...]) -> _Choice | None:
    value = config.get(key)
    for each in served:
        if value == each:
            return each
    if value is None:
        return None
    raise ConfigError(f"{key} is {value} in the scheduler config; {', '.join(served)} are served")


def _number(config: Mapping[str, object], key: str, default: float) -> float:
    value = config.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{key} is {value!r} in the scheduler config; a number is served")
    return float(value)
