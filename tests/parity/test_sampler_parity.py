"""Every sampler beside the diffusers scheduler it is named for, and the values diffusers publishes for its loops.

Both are given the same network outputs, start and noise. Compared are, at every step, what the network is shown (its
input and timestep) and the latents that come out, relative to the largest of them.
"""

import inspect
import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest

from orchestrator.diffusion.denoiser import denoiser
from orchestrator.diffusion.noise import StepNoise, TorchNormal
from orchestrator.diffusion.sampling import SAMPLERS
from orchestrator.diffusion.schedule import NoiseSchedule
from orchestrator.errors import InvalidInput

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

# diffusers turns tensors into arrays in a way that numpy 2 warns of and torch does not answer yet.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NAMESAKES = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "dpmpp_2m_sde": "DPMSolverMultistepScheduler",
    "lms": "LMSDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
    "lcm": "LCMScheduler",
}
OWN_ENTRIES = {"dpmpp_2m_sde": {"algorithm_type": "sde-dpmsolver++"}}
# As in stable-diffusion-v1-5/scheduler/scheduler_config.json.
STABLE_DIFFUSION = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
}
STEPS = (1, 2, 3, 5, 10, 20, 33, 50, 100)
RESPACED = ("euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "lms", "unipc")
SPACINGS = ("leading", "linspace", "trailing")
PREDICTION_TYPES = ("epsilon", "v_prediction")
SHAPE = (2, 4, 8, 8)
SEED = 3
TOLERANCE = 1e-4


def network(sample, t):
    """Of no meaning, but neither linear nor local, and different at every timestep."""
    wave = np.float32(math.sin(t / 170.0))
    return np.tanh(1.3 * sample + wave * np.roll(sample, 1, -1)) - 0.1 * np.cos(3.0 * sample + wave)


@dataclass(frozen=True)
class Recorded:
    """A diffusers loop: its start noise and, per call, input, timestep and output; per step, the latents after it."""

    noise: np.ndarray
    calls: list
    latents: list


def namesake(sampler, config):
    scheduler = getattr(diffusers, NAMESAKES[sampler])
    known = inspect.signature(scheduler.__init__).parameters
    entries = {**config, **OWN_ENTRIES.get(sampler, {})}
    return scheduler(**{key: value for key, value in entries.items() if key in known})


def clean_latents():
    return np.linspace(-2.0, 2.0, math.prod(SHAPE), dtype=np.float32).reshape(SHAPE)


def recorded(sampler, config, steps, strength=None):
    """The loop of StableDiffusionPipeline, or with a strength that of StableDiffusionImg2ImgPipeline."""
    scheduler = namesake(sampler, config)
    scheduler.set_timesteps(steps)
    generator = torch.Generator("cpu").manual_seed(SEED)
    noise = torch.randn(SHAPE, generator=generator)
    t_start = 0 if strength is None else max(steps - min(int(steps * strength), steps), 0)
    timesteps = scheduler.timesteps[t_start * scheduler.order :]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(t_start * scheduler.order)
    x = noise * scheduler.init_noise_sigma
    if strength is not None:
        x = scheduler.add_noise(torch.from_numpy(clean_latents()), noise, timesteps[:1])
    extra = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    calls, latents = [], []
    for t in timesteps:
        sample = scheduler.scale_model_input(x, t)
        output = torch.from_numpy(network(sample.numpy(), float(t)))
        x = scheduler.step(output, t, x, **extra).prev_sample
        calls.append((sample.numpy(), float(t), output.numpy()))
        latents.append(x.numpy())
    if sampler == "heun":  # two calls a step, but for the last
        latents = [*latents[1:-1:2], latents[-1]]
    if sampler == "pndm" and not config.get("skip_prk_steps", True):  # four calls for each of the first three steps
        latents = [*latents[3:12:4], *latents[12:]]
    return Recorded(noise.numpy(), calls, latents)


def far(ours, theirs):
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def replayed(sampler, config, steps, theirs, strength, **wish):
    """The largest relative difference between our loop and ``theirs`` over inputs and latents of all steps."""
    levels = NoiseSchedule.from_config(config).levels(sampler, steps, strength=strength or 1.0, **wish)
    calls, differences = iter(theirs.calls), []

    def played(sample, timestep):
        expected, t, output = next(calls)
        differences.append(far(sample, expected))
        assert timestep == pytest.approx(t, abs=1e-3)
        return output

    start = levels.start(theirs.noise, None if strength is None else clean_latents())
    noise = StepNoise(SEED, SHAPE, first=levels.first)
    for step, latents in zip(
        SAMPLERS[sampler](denoiser(played, levels), start, levels, noise), theirs.latents, strict=True
    ):
        differences.append(far(levels.model_latents(step), latents))
    assert next(calls, None) is None
    return max(differences)


def assert_equal_loops(sampler, config, steps, *, strength=None, **wish):
    theirs = recorded(sampler, config, steps, strength)

    assert replayed(sampler, config, steps, theirs, strength, **wish) < TOLERANCE


def served(sampler, steps):
    return sampler != "lcm" or steps <= 50


def affordable(sampler, steps, spacing, prediction_type):
    """Diffusers' LMS integrates its coefficients numerically, 8 ms a step: long loops in one combination only."""
    return sampler != "lms" or steps <= 20 or (spacing, prediction_type) == ("linspace", "epsilon")


@pytest.mark.parametrize(
    ("sampler", "spacing", "prediction_type", "steps"),
    [
        (sampler, spacing, prediction_type, steps)
        for sampler in SAMPLERS
        for spacing in SPACINGS
        for prediction_type in PREDICTION_TYPES
        for steps in STEPS
        if sampler != "lcm" and affordable(sampler, steps, spacing, prediction_type)
    ],
)
def test_sampler_equals_its_namesake_at_every_step(sampler, spacing, prediction_type, steps):
    config = {**STABLE_DIFFUSION, "prediction_type": prediction_type, "timestep_spacing": spacing}

    assert_equal_loops(sampler, config, steps, spacing=spacing)


@pytest.mark.parametrize("steps", [steps for steps in STEPS if served("lcm", steps)])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_lcm_equals_its_namesake_at_every_step(prediction_type, steps):
    assert_equal_loops("lcm", {**STABLE_DIFFUSION, "prediction_type": prediction_type}, steps)


def test_lcm_and_diffusers_both_refuse_more_steps_than_were_distilled():
    with pytest.raises(ValueError, match="original_steps"):
        namesake("lcm", STABLE_DIFFUSION).set_timesteps(51)
    with pytest.raises(InvalidInput, match="num_inference_steps is 51; lcm serves 1 to 50"):
        NoiseSchedule.from_config(STABLE_DIFFUSION).levels("lcm", 51)


@pytest.mark.parametrize(
    ("sampler", "respacing", "prediction_type", "spacing", "steps"),
    [
        (sampler, respacing, prediction_type, spacing, steps)
        for sampler in RESPACED
        for respacing in ("karras", "exponential")
        for prediction_type in PREDICTION_TYPES
        for spacing in SPACINGS
        for steps in (1, 2, 3, 10, 33, 100)
        if affordable(sampler, steps, spacing, prediction_type)
    ],
)
def test_respaced_sigmas_equal_the_namesakes_at_every_step(sampler, respacing, prediction_type, spacing, steps):
    config = {**STABLE_DIFFUSION, "prediction_type": prediction_type, "timestep_spacing": spacing}

    assert_equal_loops(sampler, {**config, f"use_{respacing}_sigmas": True}, steps, spacing=spacing, sigmas=respacing)


@pytest.mark.parametrize(("steps", "strength"), [(1, 1.0), (10, 0.3), (20, 0.95), (50, 0.02), (50, 0.58), (50, 0.75)])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_start_from_a_picture_equals_the_namesakes_at_every_step(sampler, prediction_type, steps, strength):
    config = {**STABLE_DIFFUSION, "prediction_type": prediction_type}

    assert_equal_loops(sampler, config, steps, strength=strength)


@pytest.mark.parametrize("steps", [4, 5, 10, 33, 100])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_pndm_that_begins_with_runge_kutta_steps_equals_its_namesake(spacing, prediction_type, steps):
    config = {**STABLE_DIFFUSION, "prediction_type": prediction_type, "skip_prk_steps": False}

    assert_equal_loops("pndm", {**config, "timestep_spacing": spacing}, steps)


@pytest.mark.parametrize(
    "entry",
    [
        {"final_sigmas_type": "sigma_min"},
        {"final_sigmas_type": "sigma_min", "lower_order_final": False},
        {"final_sigmas_type": "sigma_min", "euler_at_final": True},
        {"lower_order_final": False},
        {"set_alpha_to_one": True},
        {"clip_sample": True, "clip_sample_range": 0.8},
        {"steps_offset": 0},
        {"beta_schedule": "linear", "num_train_timesteps": 1100},
    ],
    ids=lambda entry: "+".join(map(str, entry)),
)
@pytest.mark.parametrize("steps", [4, 14, 15, 25])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_entries_of_a_checkpoints_config_mean_what_they_mean_to_the_namesake(sampler, steps, entry):
    if sampler == "unipc" and entry == {"lower_order_final": False}:
        pytest.skip("diffusers divides by zero here")

    assert_equal_loops(sampler, {**STABLE_DIFFUSION, **entry}, steps)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 20])
@pytest.mark.parametrize("lower_order_final", [True, False])
@pytest.mark.parametrize("respacing", ["karras", "exponential"])
@pytest.mark.parametrize("sampler", RESPACED)
def test_respaced_sigmas_that_end_on_the_smallest_equal_the_namesakes(sampler, respacing, lower_order_final, steps):
    entries = {"final_sigmas_type": "sigma_min", "lower_order_final": lower_order_final}

    assert_equal_loops(sampler, {**STABLE_DIFFUSION, **entries, f"use_{respacing}_sigmas": True}, steps)


@cache
def trained_sigmas(sampler):
    scheduler = namesake(sampler, STABLE_DIFFUSION)
    return scheduler.alphas_cumprod.numpy()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_trained_noise_equals_torchs_to_the_bit(sampler):
    ours = NoiseSchedule.from_config(STABLE_DIFFUSION).trained

    np.testing.assert_array_equal(ours.alphas_cumprod, trained_sigmas(sampler))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_timesteps_equal_the_namesakes_for_every_count_from_1_to_100(sampler):
    scheduler = namesake(sampler, STABLE_DIFFUSION)
    schedule = NoiseSchedule.from_config(STABLE_DIFFUSION)

    for steps in range(1, 101):
        if not served(sampler, steps):
            continue
        scheduler.set_timesteps(steps)
        theirs = scheduler.timesteps.tolist()
        visited = [theirs[0], *theirs[1::2]] if sampler == "heun" else theirs
        assert list(schedule.levels(sampler, steps).timesteps) == pytest.approx(visited, abs=1e-3)


# What follows are the expected values of diffusers' own tests/schedulers/test_scheduler_*.py, rewritten for our loop.

LINEAR = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
LINEAR_1100 = {**LINEAR, "num_train_timesteps": 1100}
DDIM = {**LINEAR, "clip_sample": True, "set_alpha_to_one": True}
DPM = {**LINEAR, "final_sigmas_type": "sigma_min", "lower_order_final": False}
UNIPC = {**LINEAR, "final_sigmas_type": "sigma_min"}
PNDM = {**LINEAR, "skip_prk_steps": False}
LCM = {**LINEAR, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
V = {"prediction_type": "v_prediction"}
KARRAS = {"use_karras_sigmas": True}


def published_sample():
    """arange(768)/768 as [4,3,8,8], rows varying fastest."""
    return np.moveaxis(np.arange(768, dtype=np.float32).reshape(3, 8, 8, 4) / 768, 3, 0)


def published_noise():
    return np.moveaxis(np.arange(768, dtype=np.float32)[::-1].reshape(3, 8, 8, 4) / 768, 3, 0)


def published_network(sample, timestep):
    t = timestep.reshape(-1, 1, 1, 1)
    return sample * t / (t + 1.0)


@pytest.mark.parametrize(
    ("sampler", "config", "steps", "total", "mean"),
    [
        ("ddim", DDIM, 10, 172.0067, 0.223967),
        ("ddim", {**DDIM, **V}, 10, 52.5302, 0.0684),
        ("ddim", {**DDIM, "beta_start": 0.01}, 10, 149.8295, 0.1951),
        ("ddim", {**DDIM, "beta_start": 0.01, "set_alpha_to_one": False}, 10, 149.0784, 0.1941),
        ("dpmpp_2m", DPM, 10, None, 0.3301),
        ("dpmpp_2m", {**DPM, **V}, 10, None, 0.2251),
        ("unipc", UNIPC, 10, None, 0.2464),
        ("unipc", {**UNIPC, **KARRAS}, 10, None, 0.2925),
        ("unipc", {**UNIPC, **V}, 10, None, 0.1014),
        ("unipc", {**UNIPC, **V, **KARRAS}, 10, None, 0.1966),
        ("pndm", PNDM, 10, 198.1318, 0.2580),
        ("pndm", {**PNDM, **V}, 10, 67.3986, 0.0878),
        ("pndm", {**PNDM, "beta_start": 0.01, "set_alpha_to_one": True}, 10, 230.0399, 0.2995),
        ("pndm", {**PNDM, "beta_start": 0.01}, 10, 186.9482, 0.2434),
        ("lcm", LCM, 1, 18.7097, 0.0244),
        ("lcm", LCM, 10, 197.7616, 0.2575),
    ],
)
def test_loop_ends_at_the_value_diffusers_publishes(sampler, config, steps, total, mean):
    levels = NoiseSchedule.from_config(config).levels(sampler, steps)
    noise = StepNoise(0, (4, 3, 8, 8), drawn_before=0)
    denoise = denoiser(published_network, levels)
    *_, last = SAMPLERS[sampler](denoise, levels.start(published_sample()), levels, noise)
    result = np.abs(levels.model_latents(last))

    assert total is None or float(result.sum()) == pytest.approx(total, abs=1e-2)
    assert float(result.mean()) == pytest.approx(mean, abs=1e-3)


@pytest.mark.parametrize(
    ("sampler", "config", "strength", "total", "mean"),
    [
        ("ddim", DDIM, 0.2, 354.5418, 0.4616),
        ("dpmpp_2m", DPM, 0.5, 318.4111, 0.4146),
        ("unipc", UNIPC, 0.2, 315.5757, 0.4109),
    ],
)
def test_loop_from_a_picture_ends_at_the_value_diffusers_publishes(sampler, config, strength, total, mean):
    levels = NoiseSchedule.from_config(config).levels(sampler, 10, strength=strength)
    start = levels.start(published_noise(), published_sample())
    *_, last = SAMPLERS[sampler](denoiser(published_network, levels), start, levels, lambda _index: np.float32(0))
    result = np.abs(levels.model_latents(last))

    assert float(result.sum()) == pytest.approx(total, abs=1e-2)
    assert float(result.mean()) == pytest.approx(mean, abs=1e-3)


@pytest.mark.parametrize(
    ("sampler", "config", "strength", "total", "mean"),
    [
        ("euler", LINEAR_1100, 1.0, 10.0807, 0.0131),
        ("euler", {**LINEAR_1100, **V}, 1.0, 0.0002, 2.2676e-06),
        ("euler", {**LINEAR_1100, **KARRAS}, 1.0, 124.52299499511719, 0.16213932633399963),
        ("euler", LINEAR_1100, 0.2, 57062.9297, 74.3007),
        ("euler_a", LINEAR_1100, 1.0, 152.3192, 0.1983),
        ("euler_a", {**LINEAR_1100, **V}, 1.0, 108.4439, 0.1412),
        ("euler_a", LINEAR_1100, 0.2, 56163.0508, 73.1290),
        ("heun", LINEAR_1100, 1.0, 0.1233, 0.0002),
        ("heun", {**LINEAR_1100, **V}, 1.0, 4.6934e-07, 6.1112e-10),
        ("heun", {**LINEAR_1100, **KARRAS}, 1.0, 0.00015, 1.9869554535034695e-07),
        ("heun", LINEAR_1100, 0.2, 75074.8906, 97.7538),
        ("lms", LINEAR_1100, 1.0, 1006.388, 1.31),
        ("lms", {**LINEAR_1100, **V}, 1.0, 0.0017, 2.2676e-06),
        ("lms", {**LINEAR_1100, **KARRAS}, 1.0, 3812.9927, 4.9648),
        ("lms", LINEAR_1100, 0.2, 27663.6895, 36.0204),
    ],
)
def test_loop_on_rescaled_samples_ends_at_the_value_diffusers_publishes(sampler, config, strength, total, mean):
    """For schedulers that scale the input, diffusers' tests hand the scaled input to ``step`` as the sample, too.

    No pipeline does that. A loop that can be resumed from any step can follow: one step at a time, latents rescaled.
    """
    levels = NoiseSchedule.from_config(config).levels(sampler, 10, strength=strength)
    noise = StepNoise(0, (4, 3, 8, 8), drawn_before=0, first=levels.first)
    sigma_of = dict(zip(levels.timesteps, levels.sigmas, strict=False))

    def scaled(x, sigma):
        # Rounded in float32 as torch does: 1.2e-7 more or less is 0.01 of a sum of 57062.
        return x / np.sqrt(np.float32(sigma) ** 2 + np.float32(1.0))

    def advanced(step):
        x_first = scaled(step.latents, levels.sigmas[step.index + 1])

        def answered(s, sigma):
            t = np.float32(next(t for t, each in sigma_of.items() if each == sigma))
            return levels.prediction.denoised(s, published_network(s, t), sigma)

        def denoise(x, sigma):
            if x is x_first:
                return answered(x, sigma)
            s = scaled(x, sigma)  # Heun's second call: its derivative is taken at the scaled input, too
            return x - (s - answered(s, sigma))

        return next(SAMPLERS[sampler](denoise, replace(step, latents=x_first), levels, noise))

    step = levels.start(published_sample())
    if strength < 1.0:
        step = levels.start(published_noise(), published_sample() * np.float32(levels.noise_scale))
    for _ in range(levels.turns):
        step = advanced(step)
    result = np.abs(step.latents.astype(np.float64))

    assert float(result.sum()) == pytest.approx(total, abs=2e-2 if sampler == "lms" else 1e-2)
    assert float(result.mean()) == pytest.approx(mean, abs=1e-3)


def test_noise_of_the_test_is_the_noise_of_the_loop():
    """Guards the test itself: both sides draw their start from the same place."""
    theirs = recorded("euler", STABLE_DIFFUSION, 1)

    np.testing.assert_allclose(TorchNormal(SEED).draw(SHAPE), theirs.noise, atol=1e-6)
