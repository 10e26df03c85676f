"""Samplers on a problem with a known solution: clean values are normal, so the ideal denoiser has a closed form.

For clean ~ N(MEAN, STD^2) the expectation of clean given x is linear in x, the probability flow keeps
``(x - MEAN) / sqrt(STD^2 + sigma^2)`` constant, and the loop's result can be compared with the truth in float64.
"""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from orchestrator.diffusion.denoiser import denoiser, guided
from orchestrator.diffusion.levels import Levels, Prediction, Step
from orchestrator.diffusion.noise import StepNoise, TorchNormal
from orchestrator.diffusion.sampling import SAMPLERS
from orchestrator.diffusion.schedule import NoiseSchedule

MEAN, STD = 0.3, 0.7
HIGHEST, LOWEST = 10.0, 0.02
DETERMINISTIC = ("ddim", "euler", "heun", "dpmpp_2m", "lms", "pndm", "unipc")
CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SHAPE = (2, 4, 8, 8)


def ideal(x, sigma):
    return MEAN + (x - MEAN) * STD**2 / (STD**2 + sigma**2)


def flowed(x, sigma_from, sigma_to):
    return MEAN + (x - MEAN) * math.sqrt((STD**2 + sigma_to**2) / (STD**2 + sigma_from**2))


def no_noise(_index):
    return 0.0


def spaced(sampler, steps):
    """Sigmas from HIGHEST to LOWEST, as even as each method assumes its own variable to be."""
    if sampler == "pndm":
        return np.tan(np.linspace(math.atan(HIGHEST), math.atan(LOWEST), steps + 1)).tolist()
    if sampler == "lms":
        return (np.linspace(HIGHEST ** (1 / 7), LOWEST ** (1 / 7), steps + 1) ** 7).tolist()
    return np.geomspace(HIGHEST, LOWEST, steps + 1).tolist()


def levels_of(sampler, sigmas):
    moves = list(pairwise(sigmas))
    if sampler == "pndm":
        sigmas, moves = [*sigmas[:2], *sigmas[1:]], [moves[0], *moves]
    return Levels(
        sigmas=tuple(sigmas),
        timesteps=tuple(map(float, range(len(moves), 0, -1))),
        moves=tuple(moves),
        prediction=Prediction.EPSILON,
        noise_scale=1.0,
        variance_preserving=False,
        lower_order_final=False,
    )


def solved(sampler, steps, x, noise=no_noise, denoise=ideal):
    """The last step of a loop from HIGHEST to LOWEST, how many steps it yielded and how often it evaluated."""
    evaluated = []

    def counted(x, sigma):
        evaluated.append(sigma)
        return denoise(x, sigma)

    levels = levels_of(sampler, spaced(sampler, steps))
    yielded = list(SAMPLERS[sampler](counted, Step(-1, x, x), levels, noise))
    return yielded[-1].latents, len(yielded), len(evaluated)


def flow_error(sampler, steps):
    x = np.array([5.0, -8.0, 12.0])
    return float(np.abs(solved(sampler, steps, x)[0] - flowed(x, HIGHEST, LOWEST)).max())


def variance_error(sampler, steps):
    """How far the result's variance is from the data's, exactly: the loop is linear, so unit responses add up."""
    start = np.full(steps + 1, MEAN)
    start[0] += math.hypot(HIGHEST, STD)
    unit = np.eye(steps + 1)
    x, *_ = solved(sampler, steps, start, lambda index: unit[index + 1])
    return abs(float(((x - MEAN) ** 2).sum()) - (STD**2 + LOWEST**2))


@pytest.mark.parametrize(
    ("sampler", "order"),
    [("ddim", 1), ("euler", 1), ("heun", 2), ("dpmpp_2m", 2), ("pndm", 2), ("unipc", 3), ("lms", 3)],
)
def test_error_falls_with_the_steps_at_the_order_of_the_method(sampler, order):
    measured = math.log2(flow_error(sampler, 80) / flow_error(sampler, 160))

    assert order - 0.1 < measured < order + 0.4


@pytest.mark.parametrize(("sampler", "order"), [("euler_a", 1), ("dpmpp_2m_sde", 2)])
def test_variance_of_a_sampler_with_noise_nears_the_datas_at_its_weak_order(sampler, order):
    measured = math.log2(variance_error(sampler, 80) / variance_error(sampler, 160))

    assert order - 0.1 < measured < order + 0.1


@pytest.mark.parametrize(
    ("sampler", "error"),
    [
        ("ddim", 6.3e-2),
        ("euler", 6.3e-2),
        ("heun", 1.1e-2),
        ("dpmpp_2m", 4.8e-3),
        ("lms", 4.0e-3),
        ("unipc", 2.0e-3),
        ("pndm", 1.3e-3),
    ],
)
def test_twenty_steps_end_within_a_known_distance_of_the_solution(sampler, error):
    assert error / 2 < flow_error(sampler, 20) < error


@pytest.mark.parametrize(("sampler", "error"), [("euler_a", 0.13), ("dpmpp_2m_sde", 0.015)])
def test_twenty_steps_with_noise_end_within_a_known_distance_of_the_variance(sampler, error):
    assert error / 2 < variance_error(sampler, 20) < error


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_lcm_with_a_perfect_consistency_function_is_exact_at_any_number_of_steps(steps):
    sigmas = [*np.geomspace(HIGHEST, 1.0, steps).tolist(), 0.0]
    start, unit = np.full(steps + 1, MEAN), np.eye(steps + 1)
    start[0] += math.hypot(HIGHEST, STD)
    # c_skip is 0.0025 at timestep 1; at these timesteps the boundary condition is below the assertion's reach.
    levels = replace(levels_of("lcm", sigmas), timesteps=tuple(range(900 + steps, 900, -1)))
    *_, last = SAMPLERS["lcm"](
        lambda x, sigma: flowed(x, sigma, 0.0), Step(-1, start, start), levels, lambda index: unit[index + 1]
    )

    assert ((last.latents - MEAN) ** 2).sum() == pytest.approx(STD**2, rel=1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_steps_are_yielded_once_each_and_cost_the_evaluations_of_the_method(sampler, steps):
    x = np.array([5.0])
    _, yielded, evaluated = solved(sampler, steps, x, denoise=ideal)

    assert yielded == steps + (sampler == "pndm")
    assert evaluated == {"heun": 2 * steps, "pndm": steps + 1}.get(sampler, steps)


def test_heun_saves_the_second_evaluation_of_a_last_step_to_sigma_0():
    levels = NoiseSchedule.from_config(CONFIG).levels("heun", 10)
    evaluated = []

    def counted(x, sigma):
        evaluated.append(sigma)
        return ideal(x, sigma)

    x = np.array([5.0])
    yielded = list(SAMPLERS["heun"](counted, Step(-1, x, x), levels, no_noise))

    assert (len(yielded), len(evaluated)) == (10, 19)


def test_pndm_that_begins_with_runge_kutta_steps_pays_four_evaluations_for_each_of_three():
    levels = NoiseSchedule.from_config({**CONFIG, "skip_prk_steps": False}).levels("pndm", 10)
    evaluated = []

    def counted(x, sigma):
        evaluated.append(sigma)
        return ideal(x, sigma)

    x = np.array([5.0])
    yielded = list(SAMPLERS["pndm"](counted, Step(-1, x, x), levels, no_noise))

    assert (len(yielded), len(evaluated)) == (10, 19)


def network_of(levels):
    """The ideal network as a checkpoint would hold it: scaled input and timestep in, epsilon or v out."""
    sigmas = dict(zip(levels.timesteps, levels.sigmas, strict=False))

    def network(sample, timestep):
        sigma = sigmas[float(timestep[0, 0])]
        x = sample * np.float32(math.sqrt(sigma**2 + 1.0))
        return levels.prediction.output(x, ideal(x, sigma), sigma)

    return network


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_picture_of_the_ideal_network_is_the_flow_of_its_start_noise(sampler, spacing, prediction_type):
    levels = NoiseSchedule.from_config({**CONFIG, "prediction_type": prediction_type}).levels(sampler, 50, spacing)
    start = levels.start(TorchNormal(1).draw(SHAPE))
    *_, last = SAMPLERS[sampler](denoiser(network_of(levels), levels), start, levels, no_noise)

    sigma = levels.sigmas[0]
    truth = flowed(start.latents, sigma, levels.sigmas[-1]) / math.sqrt(levels.sigmas[-1] ** 2 + 1)
    assert last.latents.dtype == np.float32
    assert np.abs(levels.model_latents(last) - truth).max() < 0.1


def wavy(sample, timestep):
    """A network of no meaning, but not linear: what is left of a wrong memory shows."""
    t = timestep[:, :, None, None] / 100.0
    return np.tanh(1.5 * sample + np.roll(sample, 1, -1) * np.sin(t)) - 0.1 * np.cos(3.0 * sample)


def loop(sampler, *, strength=1.0, start=None, **entries):
    levels = NoiseSchedule.from_config({**CONFIG, **entries}).levels(sampler, 8, strength=strength)
    noise = TorchNormal(9).draw(SHAPE)
    first = levels.start(noise, None if strength == 1.0 else noise * 0.5) if start is None else start
    return SAMPLERS[sampler](denoiser(wavy, levels), first, levels, StepNoise(9, SHAPE, first=levels.first))


@pytest.mark.parametrize(
    ("sampler", "wish"),
    [(sampler, {"strength": strength}) for sampler in SAMPLERS for strength in (1.0, 0.7)]
    + [("pndm", {"skip_prk_steps": False})],
)
def test_loop_resumed_from_any_of_its_steps_gives_the_same_bits(sampler, wish):
    whole = list(loop(sampler, **wish))

    for position, step in enumerate(whole):
        rest = list(loop(sampler, start=step, **wish))
        assert [each.index for each in rest] == [each.index for each in whole[position + 1 :]]
        for resumed, expected in zip(rest, whole[position + 1 :], strict=True):
            np.testing.assert_array_equal(resumed.latents, expected.latents)
            np.testing.assert_array_equal(resumed.denoised, expected.denoised)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_loops_that_run_side_by_side_do_not_see_each_other(sampler):
    alone = list(loop(sampler))
    pairs = list(zip(loop(sampler), loop(sampler), strict=True))

    for expected, pair in zip(alone, pairs, strict=True):
        for step in pair:
            np.testing.assert_array_equal(step.latents, expected.latents)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_everything_that_a_step_holds_is_float32(sampler):
    for step in loop(sampler):
        assert {array.dtype for array in (step.latents, step.denoised, *step.memory)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_start_of_a_loop_is_left_as_it_was(sampler):
    levels = NoiseSchedule.from_config(CONFIG).levels(sampler, 8)
    start = levels.start(TorchNormal(9).draw(SHAPE))
    before = start.latents.copy()
    list(loop(sampler, start=start))

    np.testing.assert_array_equal(start.latents, before)


def test_denoised_latents_are_clipped_only_where_the_checkpoint_asks_for_it():
    def largest(config):
        levels = NoiseSchedule.from_config(config).levels("heun", 5)
        steps = SAMPLERS["heun"](lambda x, _sigma: 3.0 * x, levels.start(TorchNormal(1).draw(SHAPE)), levels, no_noise)
        return max(float(np.abs(step.denoised).max()) for step in steps)

    assert largest(CONFIG) > 1.5
    assert largest({**CONFIG, "clip_sample": True, "clip_sample_range": 1.5}) == 1.5


@pytest.mark.parametrize("prediction", Prediction)
def test_network_output_and_denoised_latents_are_two_readings_of_one_answer(prediction):
    x, output = TorchNormal(1).draw(SHAPE) * np.float32(5), TorchNormal(2).draw(SHAPE)

    np.testing.assert_allclose(prediction.output(x, prediction.denoised(x, output, 5.0), 5.0), output, atol=1e-5)


def test_network_is_given_input_of_unit_variance_and_one_timestep_a_row():
    levels = NoiseSchedule.from_config(CONFIG).levels("euler", 10)
    seen = []

    def network(sample, timestep):
        seen.append((sample, timestep))
        return sample

    denoiser(network, levels)(levels.start(TorchNormal(1).draw((3, 4, 64, 64))).latents, levels.sigmas[0])

    ((sample, timestep),) = seen
    assert abs(float(sample.std()) - 1.0) < 0.01
    assert timestep.shape == (3, 1)
    assert timestep.dtype == sample.dtype == np.float32
    assert set(timestep.ravel()) == {999.0}


def test_guidance_asks_for_both_prompts_in_one_call_and_leads_away_from_the_negative_one():
    calls = []

    def network(sample, timestep):
        calls.append((len(sample), len(timestep)))
        answers = np.array([1.0, 2.0], np.float32)[-len(sample) :]  # the negative prompt's row comes first
        return np.broadcast_to(answers[:, None, None, None], sample.shape).astype(np.float32)

    sample, timestep = np.zeros((1, 4, 8, 8), np.float32), np.zeros((1, 1), np.float32)
    guided_output = guided(network, 7.5)(sample, timestep)
    plain_output = guided(network, 1.0)(sample, timestep)

    assert calls == [(2, 2), (1, 1)]
    assert np.all(guided_output == 8.5)
    assert np.all(plain_output == 2.0)
    assert guided_output.dtype == np.float32
