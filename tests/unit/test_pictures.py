"""Pictures that a job brings: what is refused, and what starts, masks and windows mean."""

import numpy as np
import pytest
from small_checkpoint import FormulaModels, small_checkpoint

from orchestrator.diffusion.control import scales_by_turn
from orchestrator.diffusion.inpainting import Kept, latent_mask
from orchestrator.diffusion.levels import Step
from orchestrator.diffusion.schedule import NoiseSchedule
from orchestrator.errors import InvalidInput
from orchestrator.job import Job
from orchestrator.pictures import ControlPicture, Pictures, SourcePicture
from orchestrator.pipeline import Finished, Pipeline, step_from_bytes, step_to_bytes
from orchestrator.plan import Plan, make_plan

CHECKPOINT = small_checkpoint(controls=("depth", "canny"))


def picture(value: int = 100, height: int = 256, width: int = 320) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def mask() -> np.ndarray:
    """White in the right half."""
    made = np.zeros((256, 320), np.uint8)
    made[:, 160:] = 255
    return made


def source(strength: float = 0.5, **changes: object) -> Pictures:
    return Pictures(source=SourcePicture(**{"picture": picture(), "strength": strength, **changes}))


def control(name: str = "depth", **changes: object) -> ControlPicture:
    return ControlPicture(**{"name": name, "picture": picture(), **changes})


def plan_with(pictures: Pictures, **fields: object) -> Plan:
    job = Job(generation_id=1, task_id="t", prompt="red", **{"seed": 7, "num_inference_steps": 6, **fields})
    return make_plan(job, CHECKPOINT, lambda: 1, pictures=pictures)


def made(plan: Plan) -> np.ndarray:
    *_, last = Pipeline(FormulaModels(), CHECKPOINT).run(plan)
    assert isinstance(last, Finished)
    return last.picture


def test_a_job_with_a_picture_has_its_size():
    plan = plan_with(source())
    assert (plan.width_px, plan.height_px) == (320, 256)


@pytest.mark.parametrize(
    ("pictures", "fields", "told"),
    [
        (source(), {"width_px": 256, "height_px": 256}, "pictures are 320x256 px, but the size given is 256x256 px"),
        (source(), {"aspect_ratio": "1:1"}, "the size given is 512x512 px"),
        (source(picture=picture(width=300)), {}, "width is 300 px"),
        (source(mask=mask()[:, :256]), {}, "320x256, 256x256 px; one size for all"),
        (source(0.1), {}, r"strength is 0.1; 0.167 to 1.0 are served with 6 steps"),
        (source(), {"two_pass": True}, "one pass is served"),
        (Pictures(controls=(control("pose"),)), {}, "control is 'pose'; small was built with depth, canny"),
        (Pictures(controls=(control(), control())), {}, "control depth is given 2 times"),
        (Pictures(controls=(control(scale=2.5),)), {}, r"scale of control depth is 2.5; 0.0 to 2.0"),
        (Pictures(controls=(control(scale=float("nan")),)), {}, "scale of control depth is nan"),
        (Pictures(controls=(control(start=0.6, end=0.4),)), {}, r"from 0.6 to 0.4; shares of the steps"),
    ],
)
def test_what_cannot_be_served_is_refused_before_a_model_runs(pictures: Pictures, fields: dict[str, object], told: str):
    with pytest.raises(InvalidInput, match=told):
        plan_with(pictures, **fields)


def test_a_checkpoint_without_controlnets_says_so():
    with pytest.raises(InvalidInput, match="small was built with none"):
        Pictures(controls=(control(),)).check(small_checkpoint())


@pytest.mark.parametrize(
    "other",
    [
        source(picture=picture(101)),
        source(mask=mask()),
        source(0.6),
        Pictures(controls=(control(),)),
        Pictures(controls=(control(scale=0.5),)),
    ],
    ids=["picture", "mask", "strength", "control", "scale"],
)
def test_the_digest_of_a_plan_is_another_for_another_picture(other: Pictures):
    assert plan_with(other).digest not in (plan_with(source()).digest, plan_with(Pictures()).digest)


def test_equal_pixels_are_equal_pictures():
    assert source() == source() and plan_with(source()).digest == plan_with(source()).digest


def test_strength_is_the_share_of_the_steps_that_are_run():
    assert (plan_with(source(0.5)).total_steps, plan_with(source(1.0)).total_steps) == (3, 6)


def test_a_weaker_start_stays_nearer_to_the_picture():
    weak, strong = (made(plan_with(source(strength))).astype(int) for strength in (0.2, 1.0))
    assert np.abs(weak - 100).mean() < np.abs(strong - 100).mean()


def test_the_picture_stays_outside_the_mask_and_changes_inside():
    result = made(plan_with(source(1.0, mask=mask()))).astype(int)
    assert np.abs(result[:, :160] - 100).max() <= 1 < np.abs(result[:, 160:] - 100).max()


def test_a_masked_job_resumed_after_any_step_gives_the_identical_picture():
    plan = plan_with(source(0.9, mask=mask()), sampler="euler_a")
    pipeline = Pipeline(FormulaModels(), CHECKPOINT)
    *steps, whole = pipeline.run(plan)
    for step in steps:
        *_, resumed = pipeline.run(plan, step_from_bytes(step_to_bytes(step, plan), plan))
        assert np.array_equal(resumed.picture, whole.picture)


def test_grey_counts_as_white_from_the_middle_on():
    grey = np.array([[127, 0, 128, 0]], np.uint8).repeat(2, axis=0)
    assert latent_mask(grey, 1, 2).tolist() == [[[[0.0, 1.0]]]]


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler"])
def test_after_the_last_turn_the_vae_gets_the_picture_itself_outside_the_mask(sampler: str):
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    levels = NoiseSchedule.from_config({**config, "final_sigmas_type": "sigma_min"}).levels(sampler, 4)
    clean, noise = np.full((1, 4, 2, 2), 0.3, np.float32), np.ones((1, 4, 2, 2), np.float32)
    kept = Kept(clean, noise, np.zeros((1, 1, 2, 2), np.float32))
    assert levels.sigmas[-1] > 0

    last = kept.restored(Step(3, noise, noise), levels)
    earlier = kept.restored(Step(1, noise, noise), levels)

    np.testing.assert_allclose(levels.model_latents(last), clean, rtol=1e-6)
    np.testing.assert_allclose(earlier.latents, clean + levels.sigmas[2], rtol=1e-6)


def test_a_window_holds_the_turns_that_lie_wholly_in_it():
    windows = (control(scale=0.8, start=0.25), control(end=0.5))
    assert scales_by_turn(windows, 4) == ((0.0, 1.0), (0.8, 1.0), (0.8, 0.0), (0.8, 0.0))
