"""Where on the noise schedule the steps of a picture lie: timesteps, and the two ways to respace their sigmas."""

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Spacing = Literal["leading", "linspace", "trailing"]
Respacing = Literal["karras", "exponential"]

SPACINGS: tuple[Spacing, ...] = ("leading", "linspace", "trailing")
RESPACINGS: tuple[Respacing, ...] = ("karras", "exponential")

_RHO = 7.0


def spaced_timesteps(
    spacing: Spacing, steps: int, train_steps: int, steps_offset: int, *, drop_last: bool = False
) -> NDArray[np.float64]:
    """Falling timesteps, unrounded where ``linspace`` gives fractions (Lin et al., arXiv 2305.08891, table 2).

    ``drop_last`` spaces one step more and leaves the last one out, as the solvers in log-SNR do, which end on their
    own final sigma.
    """
    points = steps + drop_last
    if spacing == "trailing":
        return (np.arange(train_steps, 0, -train_steps / steps).round() - 1.0).astype(np.float64)
    if spacing == "linspace":
        return np.linspace(0, train_steps - 1, points)[::-1][:steps].astype(np.float64)
    rising = np.arange(points) * (train_steps // points) + steps_offset
    return rising[::-1][:steps].astype(np.float64)


def respaced_sigmas(respacing: Respacing, sigma_max: float, sigma_min: float, steps: int) -> NDArray[np.float64]:
    """Falling sigmas between the two ends: Karras et al. (arXiv 2206.00364, eq. 5, rho 7) or even in log sigma."""
    if respacing == "exponential":
        return np.exp(np.linspace(math.log(sigma_max), math.log(sigma_min), steps))
    ends = sigma_max ** (1 / _RHO), sigma_min ** (1 / _RHO)
    return (ends[0] + np.linspace(0, 1, steps) * (ends[1] - ends[0])) ** _RHO  # type: ignore[no-any-return]


def timesteps_of_sigmas(sigmas: NDArray[np.float64], log_sigmas: NDArray[np.float32]) -> NDArray[np.float64]:
    """Fractional timesteps of any sigmas, linear in log sigma between the trained ones; outside them the nearest end.

    ``log_sigmas`` stays float32, as diffusers holds it: its rounding decides whether the first of the exponential
    sigmas is timestep 999 or 998.99, which the solvers that truncate turn into 998.
    """
    wanted = np.log(np.maximum(sigmas, 1e-10))
    low = np.clip(np.searchsorted(log_sigmas.astype(np.float64), wanted, side="right") - 1, 0, len(log_sigmas) - 2)
    below, above = log_sigmas[low], log_sigmas[low + 1]
    weight = np.clip((below - wanted) / (below - above), 0.0, 1.0)
    return (1.0 - weight) * low + weight * (low + 1)
