"""Samplers that reuse the network's answers of earlier turns; each turn costs one evaluation."""

import math
from collections.abc import Iterator

import numpy as np

from orchestrator.diffusion.levels import Denoise, Levels, Noise, Prediction, Step
from orchestrator.diffusion.noise import Latents


def dpmpp_2m(denoise: Denoise, start: Step, levels: Levels, noise: Noise) -> Iterator[Step]:
    """DPM-Solver++ (2M), midpoint form (Lu et al., arXiv 2211.01095, algorithm 2). Order 2."""
    x, memory = start.latents, start.memory
    for i in levels.after(start):
        sigma, sigma_next = levels.sigmas[i : i + 2]
        denoised = denoise(x, sigma)
        D = _extrapolated(denoised, memory, levels, i)
        x = _moved(x, D, sigma_next / sigma)
        memory = (denoised,)
        yield Step(i, x, denoised, memory)


def dpmpp_2m_sde(denoise: Denoise, start: Step, levels: Levels, noise: Noise) -> Iterator[Step]:
    """SDE-DPM-Solver++ (2M), midpoint form (Lu et al., arXiv 2211.01095, appendix E): new noise at every step."""
    x, memory = start.latents, start.memory
    for i in levels.after(start):
        sigma, sigma_next = levels.sigmas[i : i + 2]
        denoised = denoise(x, sigma)
        D = _extrapolated(denoised, memory, levels, i)
        r2 = (sigma_next / sigma) ** 2
        x = r2 * x + (1.0 - r2) * D + (sigma_next * math.sqrt(1.0 - r2)) * noise(i)
        memory = (denoised,)
        yield Step(i, x, denoised, memory)


def _extrapolated(denoised: Latents, memory: tuple[Latents, ...], levels: Levels, i: int) -> Latents:
    """The denoised latents at the middle of the step, on the line through this turn's and the last one's."""
    if not memory or (levels.lower_order_final and i == len(levels.timesteps) - 1):
        return denoised
    sigma_before, sigma, sigma_next = levels.sigmas[i - 1 : i + 2]
    h_before, h = math.log(sigma_before / sigma), math.log(sigma / sigma_next)
    return denoised + (0.5 * h / h_before) * (denoised - memory[0])


def unipc(denoise: Denoise, start: Step, levels: Levels, noise: Noise) -> Iterator[Step]:
    """UniPC of order 2, B(h) = e^h - 1 (Zhao et al., arXiv 2302.04867, algorithms 5 and 6).

    Each turn first corrects where the last one stepped to with what the network says there, then predicts.
    """
    x, memory = start.latents, start.memory
    for i in levels.after(start):
        denoised = denoise(x, levels.sigmas[i])
        if memory:
            x = _uni_corrected(denoised, memory, levels, i)
        m = (denoised, *memory[1:2])
        sigma, sigma_next = levels.sigmas[i : i + 2]
        D = denoised
        if _uni_order(levels, i) == 2:
            D = denoised + (0.5 / _uni_ratio(levels, i)) * (m[1] - denoised)
        memory = (x, *m)
        x = _moved(x, D, sigma_next / sigma)
        yield Step(i, x, denoised, memory)


def _uni_corrected(denoised: Latents, memory: tuple[Latents, ...], levels: Levels, i: int) -> Latents:
    x, m0 = memory[:2]
    r = levels.sigmas[i] / levels.sigmas[i - 1]
    D1_t = denoised - m0
    if _uni_order(levels, i - 1) == 1:
        return _moved(x, m0 + 0.5 * D1_t, r)
    h, r_k = -math.log(r), _uni_ratio(levels, i - 1)
    phi_2 = math.expm1(-h) / -h - 1.0
    phi_3 = phi_2 / -h - 0.5
    b = np.array([phi_2, 2.0 * phi_3]) / math.expm1(-h)
    rho, rho_t = map(float, np.linalg.solve(np.array([[1.0, 1.0], [r_k, 1.0]]), b))
    D: Latents = m0 + (rho / r_k) * (memory[2] - m0)
    return _moved(x, D + rho_t * D1_t, r)


def _moved(x: Latents, D: Latents, r: float) -> Latents:
    """``x`` at ``r`` times its sigma, on the straight way to ``D``: their step in log-SNR, integrated exactly."""
    return r * x + (1.0 - r) * D


def _uni_order(levels: Levels, i: int) -> int:
    last = levels.lower_order_final and i == len(levels.timesteps) - 1
    # Respaced sigmas that end on sigma_min are left by a step of no length, over which nothing is extrapolated.
    stays = levels.sigmas[i] == levels.sigmas[i + 1]
    return 1 if last or stays or i == levels.first else 2


def _uni_ratio(levels: Levels, i: int) -> float:
    """r_k: the last step in log-SNR over the one ahead, negative because it lies behind."""
    sigma_before, sigma, sigma_next = levels.sigmas[i - 1 : i + 2]
    return math.log(sigma / sigma_before) / math.log(sigma / sigma_next)


def lms(denoise: Denoise, start: Step, levels: Levels, noise: Noise) -> Iterator[Step]:
    """Linear multistep of order 4 in sigma: Adams-Bashforth for uneven steps, as k-diffusion introduced it."""
    x, memory = start.latents, start.memory
    for i in levels.after(start):
        sigma = levels.sigmas[i]
        denoised = denoise(x, sigma)
        memory = ((x - denoised) / sigma, *memory[:3])
        for c, d in zip(_lms_coefficients(levels.sigmas, i), memory, strict=False):
            x = x + c * d
        yield Step(i, x, denoised, memory)


def _lms_coefficients(sigmas: tuple[float, ...], i: int) -> list[float]:
    """Integrals over the step of the Lagrange polynomials through the last levels, newest first.

    Counted from the top of the schedule as diffusers does: a loop that starts from a picture uses its first
    derivatives with the coefficients of a loop that has four.
    """
    known = np.array(sigmas[max(0, i - 3) : i + 1][::-1])
    middle, half = (sigmas[i + 1] + sigmas[i]) / 2.0, (sigmas[i + 1] - sigmas[i]) / 2.0
    tau = middle + half * np.array([-1.0, 1.0]) / math.sqrt(3.0)  # two Gauss points: exact up to order 4
    coefficients = []
    for j, each in enumerate(known):
        others = np.delete(known, j)
        coefficients.append(half * float(np.prod((tau[:, None] - others) / (each - others), axis=1).sum()))
    return coefficients


_ADAMS_BASHFORTH = ((3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def pndm(denoise: Denoise, start: Step, levels: Levels, noise: Noise) -> Iterator[Step]:
    """PLMS (Liu et al., arXiv 2202.09778, eq. 12): even Adams-Bashforth on the network's answers, DDIM's transfer.

    Takes one turn more than there are steps: the first step is done twice, then with the mean of both its ends. Where
    the levels have ``halfway`` entries, that many Runge-Kutta turns (eq. 13) fill the memory instead.
    """
    x, memory = start.latents, start.memory
    for i in levels.after(start):
        (sigma_from, sigma_to), sigma_next = levels.moves[i], levels.sigmas[i + 1]
        denoised = denoise(x, levels.sigmas[i])
        e = levels.prediction.output(x, denoised, levels.sigmas[i])
        if i < len(levels.halfway):
            memory, e_mean = (e, *memory), _runge_kutta(denoise, x, e, levels, i)
        elif i == levels.first:
            memory, e_mean = (x, e), e
        elif i == levels.first + 1:
            x_first, e_first = memory
            x = math.sqrt((sigma_from**2 + 1.0) / (levels.sigmas[i - 1] ** 2 + 1.0)) * x_first
            memory, e_mean = (e_first,), (e + e_first) / 2.0
        else:
            memory = (e, *memory[:3])
            e_mean = _adams_bashforth(memory)
        x = _transferred(x, e_mean, levels.prediction, (sigma_from, sigma_to, sigma_next))
        yield Step(i, x, denoised, memory)


def _transferred(x: Latents, e: Latents, prediction: Prediction, sigmas: tuple[float, float, float]) -> Latents:
    """``x`` moved from the first sigma to the second by DDIM's transfer, then reread as if it lay at the third."""
    sigma_from, sigma_to, sigma_read = sigmas
    reread = math.sqrt((sigma_read**2 + 1.0) / (sigma_to**2 + 1.0))
    return reread * _moved(x, prediction.denoised(x, e, sigma_from), sigma_to / sigma_from)


def _runge_kutta(denoise: Denoise, x: Latents, e_1: Latents, levels: Levels, i: int) -> Latents:
    """The mean answer over turn ``i`` by the classical method of order 4, given the one at its beginning."""

    def answered(e: Latents, sigma_to: float, sigma: float) -> Latents:
        x_there = _transferred(x, e, levels.prediction, (levels.sigmas[i], sigma_to, sigma))
        return levels.prediction.output(x_there, denoise(x_there, sigma), sigma)

    middle, sigma_next = levels.halfway[i], levels.sigmas[i + 1]
    e_2 = answered(e_1, middle.sigma_to, middle.sigma)
    e_3 = answered(e_2, middle.sigma, middle.sigma)
    e_4 = answered(e_3, sigma_next, sigma_next)
    e_middle: Latents = e_2 + e_3
    return (e_1 + 2.0 * e_middle + e_4) / 6.0


def _adams_bashforth(known: tuple[Latents, ...]) -> Latents:
    """The mean over the coming step of the polynomial through two to four even values, newest first."""
    mean = np.zeros_like(known[0])
    for c, each in zip(_ADAMS_BASHFORTH[len(known) - 2], known, strict=True):
        mean += c * each
    return mean
