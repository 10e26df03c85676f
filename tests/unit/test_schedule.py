"""Where the steps of a picture lie on the noise a checkpoint was trained with."""

import math
from collections.abc import Mapping

import numpy as np
import pytest

from orchestrator.diffusion.sampling import DEFAULT_SAMPLER, SAMPLERS
from orchestrator.diffusion.schedule import NoiseSchedule
from orchestrator.errors import ConfigError, InvalidInput

STABLE_DIFFUSION: Mapping[str, object] = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
SCHEDULE = NoiseSchedule.from_config(STABLE_DIFFUSION)


def configured(**entries):
    return NoiseSchedule.from_config({**STABLE_DIFFUSION, **entries})


def test_noise_of_stable_diffusion_spans_sigma_0_029_to_14_6():
    trained = SCHEDULE.trained.sigmas

    assert trained[0] == pytest.approx(0.029167, rel=1e-4)
    assert trained[-1] == pytest.approx(14.6146, rel=1e-4)


@pytest.mark.parametrize(
    ("sampler", "spacing", "timesteps"),
    [
        ("ddim", "leading", (801, 601, 401, 201, 1)),
        ("ddim", "linspace", (999, 749, 500, 250, 0)),
        ("ddim", "trailing", (999, 799, 599, 399, 199)),
        ("euler", "leading", (801, 601, 401, 201, 1)),
        ("euler", "linspace", (999, 749.25, 499.5, 249.75, 0)),
        ("dpmpp_2m", "leading", (831, 665, 499, 333, 167)),
        ("dpmpp_2m", "linspace", (999, 799, 599, 400, 200)),
        ("dpmpp_2m", "trailing", (999, 799, 599, 399, 199)),
        ("pndm", "leading", (801, 601, 601, 401, 201, 1)),
        ("lcm", None, (999, 799, 599, 399, 199)),
    ],
)
def test_five_steps_visit_the_timesteps_that_diffusers_visits(sampler, spacing, timesteps):
    assert SCHEDULE.levels(sampler, 5, spacing).timesteps == timesteps


@pytest.mark.parametrize("sampler", ["ddim", "pndm"])
def test_samplers_that_look_levels_up_are_asked_for_no_timestep_below_0(sampler):
    for steps in (60, 61, 62, 103, 121, 122):
        timesteps = SCHEDULE.levels(sampler, steps, "trailing").timesteps

        assert len(timesteps) == steps + (sampler == "pndm")
        assert timesteps[0] == 999 and min(timesteps) > 0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_has_levels_and_takes_its_own_spacing_where_none_is_wished(sampler):
    levels = SCHEDULE.levels(sampler, 20)

    assert levels.turns == (21 if sampler == "pndm" else 20)
    assert list(levels.sigmas) == sorted(levels.sigmas, reverse=True)


def test_default_sampler_is_dpm_solver_2m():
    assert DEFAULT_SAMPLER == "dpmpp_2m"


def test_spacing_of_the_checkpoint_holds_until_the_job_names_another():
    schedule = configured(timestep_spacing="trailing")

    assert schedule.levels("euler", 2).timesteps == (999, 499)
    assert schedule.levels("euler", 2, "leading").timesteps == (501, 1)


@pytest.mark.parametrize("respacing", ["karras", "exponential"])
def test_respaced_sigmas_of_the_checkpoint_hold_for_the_samplers_that_take_them(respacing):
    schedule = configured(**{f"use_{respacing}_sigmas": True})

    assert schedule.levels("heun", 8) == schedule.levels("heun", 8, sigmas=respacing)
    assert schedule.levels("ddim", 8) == SCHEDULE.levels("ddim", 8)


def test_karras_sigmas_are_even_in_the_seventh_root():
    roots = np.array(SCHEDULE.levels("euler", 10, sigmas="karras").sigmas[:-1]) ** (1 / 7)

    assert np.ptp(np.diff(roots)) < 1e-6


def test_exponential_sigmas_have_a_constant_ratio():
    sigmas = np.array(SCHEDULE.levels("euler", 10, sigmas="exponential").sigmas[:-1])

    assert np.ptp(sigmas[1:] / sigmas[:-1]) < 1e-6


@pytest.mark.parametrize(
    ("sampler", "respacing", "timesteps"),
    [
        ("dpmpp_2m", "karras", (999, 786, 427, 59, 0)),
        ("unipc", "exponential", (998, 680, 233, 20, 0)),
        ("euler", "karras", (999, 785.954, 427.490, 58.891, 0)),
    ],
)
def test_timesteps_of_respaced_sigmas_are_rounded_truncated_or_kept_as_the_namesake_does(sampler, respacing, timesteps):
    assert SCHEDULE.levels(sampler, 5, sigmas=respacing).timesteps == pytest.approx(timesteps, abs=1e-3)


def test_pndm_of_one_step_has_no_level_to_visit_again():
    assert SCHEDULE.levels("pndm", 1).timesteps == (1,)


def test_linear_betas_are_served_beside_the_scaled_ones():
    assert float(configured(beta_schedule="linear").trained.sigmas[-1]) == pytest.approx(25.146, abs=0.001)


def test_final_sigma_is_zero_or_the_smallest_trained_one_as_the_checkpoint_says():
    lowest = float(SCHEDULE.trained.sigmas[0])

    assert SCHEDULE.levels("unipc", 5).sigmas[-1] == 0.0
    assert configured(final_sigmas_type="sigma_min").levels("unipc", 5).sigmas[-1] == lowest
    assert configured(set_alpha_to_one=True).levels("ddim", 5).sigmas[-1] == 0.0
    assert SCHEDULE.levels("ddim", 5).sigmas[-1] == pytest.approx(lowest)


def test_last_of_few_steps_is_of_first_order_unless_the_checkpoint_says_otherwise():
    at_sigma_min = configured(final_sigmas_type="sigma_min")

    assert at_sigma_min.levels("dpmpp_2m", 14).lower_order_final
    assert not at_sigma_min.levels("dpmpp_2m", 15).lower_order_final
    assert configured(final_sigmas_type="sigma_min", euler_at_final=True).levels("dpmpp_2m", 15).lower_order_final
    assert not configured(final_sigmas_type="sigma_min", lower_order_final=False).levels("unipc", 5).lower_order_final


@pytest.mark.parametrize(("strength", "turns"), [(1.0, 50), (0.999, 49), (0.58, 28), (0.5, 25), (0.02, 1)])
def test_start_from_a_picture_keeps_the_last_steps(strength, turns):
    whole, tail = SCHEDULE.levels("euler", 50), SCHEDULE.levels("euler", 50, strength=strength)

    assert tail.turns == turns
    assert tail.first == 50 - turns
    assert tail.sigmas == whole.sigmas


def test_start_noise_of_leading_steps_counts_the_signal_that_is_left_at_the_first_level():
    sigma = SCHEDULE.levels("euler", 20, "leading").sigmas[0]

    assert SCHEDULE.levels("euler", 20, "leading").noise_scale == pytest.approx(math.sqrt(sigma**2 + 1))
    assert SCHEDULE.levels("euler", 20, "linspace").noise_scale == pytest.approx(14.6146, rel=1e-4)


def test_start_is_noise_alone_or_a_picture_under_the_noise_of_its_level():
    levels, noise = SCHEDULE.levels("euler", 4, strength=0.5), np.ones((1, 4, 8, 8), np.float32)

    assert np.all(levels.start(noise).latents == np.float32(levels.noise_scale))
    assert np.all(levels.start(noise, noise * 3).latents == np.float32(3 + levels.sigmas[2]))
    assert levels.start(noise).index == 1


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        (("dpm", 20), "sampler is dpm; ddim, euler, euler_a"),
        (("euler", 0), "num_inference_steps is 0; euler serves 1 to 999"),
        (("euler", 1000), "num_inference_steps is 1000; euler serves 1 to 999"),
        (("lcm", 51), "num_inference_steps is 51; lcm serves 1 to 50"),
        (("euler", 20, "even"), "spacing is even; leading, linspace, trailing are served"),
        (("lcm", 4, "trailing"), "spacing is trailing; lcm serves only the leading one"),
        (("euler", 20, None, "beta"), "sigmas are beta; karras, exponential are served"),
        (("ddim", 20, None, "karras"), "sigmas are karras; ddim serves only the trained ones, euler, heun"),
    ],
)
def test_what_a_sampler_does_not_support_is_refused_in_one_sentence(wish, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        SCHEDULE.levels(*wish)


@pytest.mark.parametrize("strength", [0.0, 0.04, -1.0, 1.1, math.nan])
def test_strength_that_leaves_no_step_or_more_than_all_is_refused(strength):
    with pytest.raises(InvalidInput, match=r"strength is .*; 0.05 to 1.0 are served with 20 steps"):
        SCHEDULE.levels("euler", 20, strength=strength)


def test_the_least_strength_that_a_refusal_names_is_served():
    for steps in range(1, 151):
        with pytest.raises(InvalidInput) as refused:
            SCHEDULE.levels("euler", steps, strength=0.0)
        least = float(str(refused.value).split("; ")[1].split()[0])
        assert SCHEDULE.levels("euler", steps, strength=least).turns == 1 + (least * steps >= 2)


@pytest.mark.parametrize(("steps", "strength"), [(3, 1.0), (10, 0.5)])
def test_runge_kutta_steps_are_served_for_whole_loops_of_four_steps_and_more(steps, strength):
    schedule = configured(skip_prk_steps=False)

    assert len(schedule.levels("pndm", 4).halfway) == 3
    with pytest.raises(InvalidInput, match="with Runge-Kutta steps 4 and more are served, all of them"):
        schedule.levels("pndm", steps, strength=strength)


def test_steps_that_begin_beyond_the_trained_timesteps_are_refused():
    with pytest.raises(InvalidInput, match="10 leading steps begin at timestep 1100; 0 to 999 are served"):
        configured(steps_offset=200).levels("euler", 10, "leading")


def test_a_lambda_that_is_not_clipped_is_served():
    assert configured(lambda_min_clipped=-math.inf).levels("unipc", 5) == SCHEDULE.levels("unipc", 5)


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"thresholding": True}, "thresholding is True in the scheduler config; False is served"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr is True"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas is"),
        (
            {"beta_schedule": "squaredcos_cap_v2"},
            "beta_schedule is squaredcos_cap_v2 .*; linear, scaled_linear are served",
        ),
        ({"lambda_min_clipped": -5.1}, "lambda_min_clipped is -5.1 in the scheduler config; -inf is served"),
        ({"shift": 3.0}, "shift is 3.0 in the scheduler config; None is served"),
        ({"use_karras_sigmas": True, "use_exponential_sigmas": True}, "are both set; one of them is served"),
        ({"prediction_type": "sample"}, "prediction_type is sample .*; epsilon, v_prediction are served"),
        ({"timestep_spacing": "even"}, "timestep_spacing is even"),
        ({"beta_start": "0.1"}, "beta_start is '0.1' .*; a number is served"),
        ({"beta_start": 0.5, "beta_end": 0.1}, "betas are 0.5 to 0.1 over 1000 steps"),
    ],
)
def test_scheduler_config_that_would_change_the_numbers_is_refused(entry, sentence):
    with pytest.raises(ConfigError, match=sentence):
        configured(**entry)
