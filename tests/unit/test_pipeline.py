"""The path from plan to picture on networks that are formulas."""

import io
import re
from itertools import islice

import numpy as np
import pytest
from small_checkpoint import FormulaModels, small_checkpoint

from orchestrator.diffusion.sampling import SAMPLERS
from orchestrator.errors import ModelUnavailable
from orchestrator.job import Job
from orchestrator.pictures import Pictures, SourcePicture
from orchestrator.pipeline import Finished, Pipeline, PipelineStep, preview, step_from_bytes, step_to_bytes
from orchestrator.plan import Plan, make_plan


def small_plan(prompt: str = "a red boat", **fields: object) -> Plan:
    fields = {"seed": 7, "num_inference_steps": 6, "width_px": 256, "height_px": 320, **fields}
    return make_plan(Job(generation_id=1, task_id="t", prompt=prompt, **fields), small_checkpoint(), lambda: 1)


def two_pass_plan(**fields: object) -> Plan:
    return small_plan(**{"width_px": 576, "height_px": 512, "two_pass": True, **fields})


@pytest.fixture
def repeated_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are enlarged by repeating pixels; the real way takes most of the time of a test with two passes."""

    def enlarged(picture: np.ndarray, height: int, width: int) -> np.ndarray:
        rows = np.arange(height) * picture.shape[2] // height
        columns = np.arange(width) * picture.shape[3] // width
        return picture[:, :, rows][..., columns]

    monkeypatch.setattr("orchestrator.pipeline.enlarged", enlarged)


def outcome(plan: Plan, resume: PipelineStep | None = None) -> tuple[list[PipelineStep], np.ndarray]:
    *steps, last = Pipeline(FormulaModels(), small_checkpoint()).run(plan, resume)
    assert isinstance(last, Finished)
    return steps, last.picture


def test_a_run_yields_every_step_and_then_the_picture():
    steps, picture = outcome(small_plan())
    assert [(step.index, step.total) for step in steps] == [(i, 6) for i in range(6)]
    assert (picture.shape, picture.dtype) == ((320, 256, 3), np.uint8)


def test_a_guidance_pair_is_two_rows_of_one_call():
    models = FormulaModels()
    list(Pipeline(models, small_checkpoint()).run(small_plan()))
    assert [sample.shape for sample, _, _ in models.predicted] == [(2, 4, 40, 32)] * 6


def test_the_negative_row_comes_first():
    models = FormulaModels()
    list(Pipeline(models, small_checkpoint()).run(small_plan(prompt="red", negative_prompt="boat")))
    expected, _ = FormulaModels().encode_text(
        np.array([small_plan(prompt="boat").prompt_chunks[0].ids, small_plan(prompt="red").prompt_chunks[0].ids])
    )
    np.testing.assert_array_equal(models.predicted[0][2], expected)


def test_without_guidance_one_row_is_asked_for():
    models = FormulaModels()
    list(Pipeline(models, small_checkpoint()).run(small_plan(guidance_scale=1.0)))
    assert [(sample.shape[0], embeddings.shape[0]) for sample, _, embeddings in models.predicted] == [(1, 1)] * 6


def test_a_long_prompt_reaches_the_unet_as_chunks_side_by_side():
    models = FormulaModels()
    list(Pipeline(models, small_checkpoint()).run(small_plan(prompt="red " * 100)))
    assert models.predicted[0][2].shape == (2, 154, 6)


def test_a_weight_changes_the_embeddings_and_no_other_input():
    plain, weighed = FormulaModels(), FormulaModels()
    list(islice(Pipeline(plain, small_checkpoint()).run(small_plan(prompt="red boat")), 1))
    list(islice(Pipeline(weighed, small_checkpoint()).run(small_plan(prompt="red (boat:1.4)")), 1))
    (x, t, states), (x_weighed, t_weighed, states_weighed) = plain.predicted[0], weighed.predicted[0]
    assert np.array_equal(x, x_weighed) and np.array_equal(t, t_weighed)
    assert not np.array_equal(states, states_weighed)


def test_a_weight_of_one_gives_the_bits_of_no_weight():
    assert np.array_equal(outcome(small_plan("red (boat:1.0)"))[1], outcome(small_plan("red boat"))[1])


def test_a_prompt_seen_before_is_not_encoded_again():
    models = FormulaModels()
    pipeline = Pipeline(models, small_checkpoint())
    list(pipeline.run(small_plan()))
    list(pipeline.run(small_plan(seed=8)))
    assert [ids.shape for ids in models.encoded] == [(1, 77), (1, 77)]


def test_another_checkpoint_does_not_get_the_embeddings_of_the_first():
    models = FormulaModels()
    pipeline = Pipeline(models, small_checkpoint())
    list(pipeline.run(small_plan()))
    job = Job(generation_id=1, task_id="t", prompt="a red boat", num_inference_steps=1, width_px=256, height_px=256)
    list(pipeline.run(make_plan(job, small_checkpoint(weights_sha256="f" * 64), lambda: 1)))
    assert len(models.encoded) == 4


def test_the_same_seed_gives_the_same_picture_and_another_seed_another():
    one, again, other = (outcome(small_plan(seed=seed))[1] for seed in (7, 7, 8))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


def test_a_run_calls_no_network_before_its_first_step_is_asked_for():
    models = FormulaModels()
    Pipeline(models, small_checkpoint()).run(small_plan())
    assert models.encoded == []


def test_a_run_that_is_not_asked_on_stops_within_a_step():
    models = FormulaModels()
    run = Pipeline(models, small_checkpoint()).run(small_plan())
    next(run)
    run.close()
    assert (len(models.predicted), models.decoded) == (1, 0)


def test_what_a_run_placed_in_the_server_is_gone_when_it_ends_or_is_closed():
    models = FormulaModels()
    run = Pipeline(models, small_checkpoint()).run(small_plan())
    next(run)
    placed_while_running = models.placed
    run.close()
    placed_after_closing = models.placed
    list(Pipeline(models, small_checkpoint()).run(small_plan()))
    assert (placed_while_running, placed_after_closing, models.placed) == (1, 0, 0)


def test_who_looks_at_a_runs_last_step_keeps_no_other_job_waiting():
    models = FormulaModels()
    placed = [models.placed for _ in Pipeline(models, small_checkpoint()).run(small_plan())]
    assert placed == [1] * 5 + [0, 0], "five steps, the last step, the picture"


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_a_run_resumed_after_any_step_gives_the_identical_picture(sampler: str):
    plan = small_plan(sampler=sampler)
    steps, picture = outcome(plan)
    for step in steps:
        kept = step_from_bytes(step_to_bytes(step, plan), plan)
        rest, resumed = outcome(plan, kept)
        assert [one.index for one in rest] == [one.index for one in steps[step.index + 1 :]]
        assert np.array_equal(resumed, picture)


@pytest.mark.usefixtures("repeated_pixels")
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_a", "pndm"])
def test_two_passes_resume_to_the_identical_picture_too(sampler: str):
    plan = two_pass_plan(sampler=sampler)
    steps, picture = outcome(plan)
    assert {step.pass_index for step in steps} == {0, 1}
    for step in steps:
        assert np.array_equal(outcome(plan, step_from_bytes(step_to_bytes(step, plan), plan))[1], picture)


def test_two_passes_count_their_steps_as_one_run():
    steps, picture = outcome(two_pass_plan())
    assert [step.index for step in steps] == list(range(7)) and {step.total for step in steps} == {7}
    assert picture.shape == (512, 576, 3)


def test_the_second_pass_starts_from_the_first():
    (first, _), (second, _) = outcome(two_pass_plan(prompt="red")), outcome(two_pass_plan(prompt="boat"))
    differences = [np.abs(a.step.latents - b.step.latents).max() for a, b in zip(first, second, strict=True)]
    assert min(differences) > 0


@pytest.mark.usefixtures("repeated_pixels")
@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_every_sampler_makes_two_passes(sampler: str):
    steps, picture = outcome(two_pass_plan(sampler=sampler))
    assert steps[-1].pass_index == 1 and picture.shape == (512, 576, 3)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: b"PK\x03\x04" + data[4:100],
        lambda data: data.replace(b"latents.npy", b"lateXts.npy"),
        lambda data: re.sub(rb"PK\x01\x02(..)..", b"PK\x01\x02\\1\xff\x00", data, flags=re.DOTALL),
    ],
    ids=["empty", "cut", "torn", "renamed", "of another zip"],
)
def test_a_broken_checkpoint_is_none_so_that_the_job_starts_anew(spoil):
    plan = small_plan()
    step = outcome(plan)[0][2]
    whole = step_to_bytes(step, plan)
    assert spoil(whole) != whole
    assert step_from_bytes(spoil(whole), plan) is None


def test_a_checkpoint_of_another_plan_is_none():
    plan, other = small_plan(seed=1), small_plan(seed=2)
    assert step_from_bytes(step_to_bytes(outcome(plan)[0][2], plan), other) is None


def test_a_checkpoint_holds_no_pickle():
    plan = small_plan()
    data = step_to_bytes(outcome(plan)[0][2], plan)
    with np.load(io.BytesIO(data[32:]), allow_pickle=False) as archive:
        assert set(archive) >= {"about", "latents", "denoised"}


def test_a_unet_that_answers_nan_fails_the_job_in_that_step():
    class NanModels(FormulaModels):
        def predict(self, sample, timestep, encoder_hidden_states):
            answer = super().predict(sample, timestep, encoder_hidden_states)
            return answer * np.float32(np.nan) if len(self.predicted) == 3 else answer

    steps = []
    with pytest.raises(ModelUnavailable, match="NaN or infinity in step 3 of 6"):
        steps.extend(Pipeline(NanModels(), small_checkpoint()).run(small_plan()))
    assert steps == [] or len(steps) == 2


def inpainting(strength: float, **changes: object) -> tuple[Plan, FormulaModels, Pipeline]:
    """A job with a picture and a mask over its upper half, and a pipeline whose UNet was trained to inpaint."""
    checkpoint = small_checkpoint(is_inpainting=True)
    hole = np.zeros((320, 256), np.uint8)
    hole[:160] = 255
    picture = np.full((320, 256, 3), 200, np.uint8)
    source = SourcePicture(picture=picture, strength=strength, mask=hole)
    job = Job(generation_id=1, task_id="t", prompt="a red boat", seed=7, num_inference_steps=6, **changes)
    models = FormulaModels()
    return make_plan(job, checkpoint, lambda: 1, pictures=Pictures(source=source)), models, Pipeline(models, checkpoint)


def test_a_unet_trained_to_inpaint_sees_the_mask_and_then_what_the_mask_leaves():
    plan, models, pipeline = inpainting(1.0)
    list(pipeline.run(plan))
    (masked,) = {id(each): each for each in models.masked}.values()
    assert masked.shape == (2, 5, 40, 32)
    np.testing.assert_array_equal(masked[0], masked[1])
    np.testing.assert_array_equal(masked[0, 0], np.repeat([[1.0], [0.0]], 20, axis=0).repeat(32, axis=1))
    # The formula's latents are colours over 64: grey where the mask is white, the picture elsewhere.
    assert set(masked[0, 1, :20].ravel()) == {0.0} and set(masked[0, 1, 20:].ravel()) == {200 / 64 - 2}


@pytest.mark.parametrize(("strength", "pictures"), [(1.0, 1), (0.5, 2)])
def test_at_full_strength_a_unet_trained_to_inpaint_asks_for_no_latents_of_the_whole_picture(
    strength: float, pictures: int
):
    plan, models, pipeline = inpainting(strength)
    list(pipeline.run(plan))
    assert models.encoded_pictures == pictures


def test_an_inpainting_run_resumed_after_any_step_gives_the_identical_picture():
    plan, _, pipeline = inpainting(0.8, sampler="euler_a")
    *steps, whole = pipeline.run(plan)
    for step in steps:
        *_, resumed = pipeline.run(plan, step_from_bytes(step_to_bytes(step, plan), plan))
        np.testing.assert_array_equal(resumed.picture, whole.picture)


def test_a_preview_is_the_latents_colours_without_a_network():
    models = FormulaModels()
    pipeline = Pipeline(models, small_checkpoint())
    step = next(pipeline.run(small_plan()))
    calls = len(models.predicted)
    rough = preview(small_checkpoint(), step)
    expected = np.clip(np.moveaxis(step.step.denoised[0, :3], 0, -1) * 0.2 + 0.5, 0, 1)
    assert (rough.shape, models.decoded, len(models.predicted)) == ((40, 32, 3), 0, calls)
    np.testing.assert_allclose(rough / 255, expected, atol=0.003)
