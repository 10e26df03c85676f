"""The rival that batches whole requests makes the same pictures, so that only when they are made differs."""

import numpy as np
import pytest
from small_checkpoint import FormulaModels, small_checkpoint

from benchmarks.whole_request import WholeRequests
from orchestrator.job import Job
from orchestrator.pipeline import Finished, Pipeline
from orchestrator.plan import Plan, make_plan

CHECKPOINT = small_checkpoint()


def plan(seed: int, steps: int = 4, guidance: float = 7.5) -> Plan:
    job = Job(
        generation_id=seed, task_id="t", prompt=f"a red boat {seed}", seed=seed, width_px=256, height_px=320,
        num_inference_steps=steps, guidance_scale=guidance,
    )  # fmt: skip
    return make_plan(job, CHECKPOINT, lambda: 0)


def rival(models: FormulaModels | None = None) -> WholeRequests:
    return WholeRequests(models or FormulaModels(), CHECKPOINT, at_once=4, decoded_at_once=2)


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_a_batch_of_whole_requests_gives_the_pipelines_pictures(guidance: float) -> None:
    plans = [plan(seed, guidance=guidance) for seed in (1, 2, 3)]
    for one, picture in zip(plans, rival().paint(plans), strict=True):
        *_, finished = Pipeline(FormulaModels(), CHECKPOINT).run(one)
        assert isinstance(finished, Finished)
        np.testing.assert_allclose(picture.astype(int), finished.picture.astype(int), atol=1)


def test_a_batch_is_one_call_a_step_and_one_for_all_prompts() -> None:
    models = FormulaModels()
    rival(models).paint([plan(1), plan(2), plan(3)])
    assert [len(sample) for sample, _, _ in models.predicted] == [6, 6, 6, 6]
    assert len(models.encoded) == 1


def test_jobs_of_another_length_wait_for_a_batch_of_their_own() -> None:
    models = FormulaModels()
    laps = rival(models).arriving([plan(1), plan(2, steps=3), plan(3), plan(4)], [0.0, 0.0, 0.0, 0.0])
    assert len(laps) == 4
    sizes = {len(sample) for sample, _, _ in models.predicted}
    assert max(sizes) <= 6
    assert all(lap.done_s >= lap.begun_s >= lap.asked_s - 1e-3 for lap in laps)
