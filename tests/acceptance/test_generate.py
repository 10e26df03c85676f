"""The command of the README and what it promises, through the real Triton on the demo's checkpoint."""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from local.triton import LocalTriton
from orchestrator.checkpoint import CheckpointInfo
from orchestrator.job import Job
from orchestrator.pipeline import Finished, Pipeline, step_from_bytes, step_to_bytes
from orchestrator.plan import Plan, make_plan

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
RUNTIME = "onnxruntime-f32"
PipelineOn = Callable[[str], Pipeline]


def small_plan(checkpoint: CheckpointInfo, prompt: str = "a red boat at dusk", **fields: object) -> Plan:
    fields = {"seed": 7, "num_inference_steps": 6, "width_px": 256, "height_px": 256, **fields}
    return make_plan(Job(generation_id=1, task_id="t", prompt=prompt, **fields), checkpoint, lambda: 0)


def picture(pipeline: Pipeline, plan: Plan) -> np.ndarray:
    *_, last = pipeline.run(plan)
    assert isinstance(last, Finished)
    return last.picture


@pytest.fixture(scope="module")
def commanded(triton_on: Callable[[str], LocalTriton], demo_repository: Path, tmp_path_factory) -> Path:
    """The folder in which the command ran."""
    folder = tmp_path_factory.mktemp("commanded")
    words = ["a red boat at dusk", "--seed", "7", "--steps", "6", "--size", "256x256", "--out", "boat.png"]
    command = [sys.executable, "-m", "orchestrator", "generate", *words, "--preview", "rough.png"]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "TRITON_URL": triton_on(RUNTIME).http_url,
        "MODEL_REPOSITORY": str(demo_repository),
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "step 6 of 6" in done.stderr
    return folder


def test_the_command_writes_the_picture_of_its_plan(
    commanded: Path, pipeline_on: PipelineOn, demo_checkpoint: CheckpointInfo
):
    with Image.open(commanded / "boat.png") as image:
        written = np.asarray(image)
    assert np.array_equal(written, picture(pipeline_on(RUNTIME), small_plan(demo_checkpoint)))


def test_the_command_signs_its_picture(commanded: Path):
    command = [sys.executable, "-m", "orchestrator", "inspect", str(commanded / "boat.png")]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "a red boat at dusk" in told and "valid" in told


def test_a_preview_looks_like_the_picture(commanded: Path):
    with Image.open(commanded / "boat.png") as image, Image.open(commanded / "rough.png") as rough:
        fine, coarse = (np.asarray(one.convert("RGB").resize((8, 8)), np.float64).ravel() for one in (image, rough))
    assert np.corrcoef(fine, coarse)[0, 1] > 0.6


def test_pictures_made_side_by_side_are_those_made_alone_bit_for_bit(
    pipeline_on: PipelineOn, demo_checkpoint: CheckpointInfo
):
    pipeline = pipeline_on(RUNTIME)
    plans = [
        small_plan(demo_checkpoint),
        small_plan(demo_checkpoint, "a white house", seed=8, sampler="euler_a", num_inference_steps=5),
        small_plan(demo_checkpoint, "two trees", seed=9, sampler="heun", num_inference_steps=4, guidance_scale=1.0),
        small_plan(demo_checkpoint, "a red boat at dusk", seed=7, negative_prompt="sun", guidance_scale=3.0),
    ]
    alone = [picture(pipeline, plan) for plan in plans]
    with ThreadPoolExecutor(len(plans)) as pool:
        together = list(pool.map(lambda plan: picture(pipeline, plan), plans))
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))


def test_a_run_resumed_from_its_kept_step_gives_the_identical_picture(
    pipeline_on: PipelineOn, demo_checkpoint: CheckpointInfo
):
    pipeline, plan = pipeline_on(RUNTIME), small_plan(demo_checkpoint, sampler="dpmpp_2m_sde")
    *_, third = islice(pipeline.run(plan), 3)
    kept = step_from_bytes(step_to_bytes(third, plan), plan)
    *_, last = pipeline.run(plan, kept)
    assert np.array_equal(last.picture, picture(pipeline, plan))


@pytest.mark.parametrize(
    ("aspect_ratio", "shape"),
    [("1:1", (512, 512, 3)), ("2:2", (1024, 1024, 3)), ("1:2", (1024, 512, 3)), ("2:1", (512, 1024, 3))],
)
def test_every_aspect_ratio_is_served(
    aspect_ratio: str, shape: tuple[int, ...], pipeline_on: PipelineOn, demo_checkpoint: CheckpointInfo
):
    plan = small_plan(demo_checkpoint, aspect_ratio=aspect_ratio, width_px=None, height_px=None, num_inference_steps=2)
    assert picture(pipeline_on(RUNTIME), plan).shape == shape
