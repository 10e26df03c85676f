"""The whole path, job to picture through the real Triton, against diffusers on the same checkpoint and seed.

The reference is StableDiffusionPipeline on a CPU generator in fp32, run here. ONNX Runtime in fp32 must reach 45 dB,
OpenVINO 25 dB where this CPU computes in bf16 and 45 dB where it does not; the figures reached are printed at the end.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from fakes.published import SCHEDULERS

from benchmarks.machine import has_bf16
from orchestrator.checkpoint import CheckpointInfo
from orchestrator.job import Job
from orchestrator.pipeline import Finished, Pipeline
from orchestrator.plan import make_plan

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

# Diffusers gives torch tensors to numpy in the way that numpy 2 warns of.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

CHECKPOINT = Path(__file__).parents[2] / "demo" / "checkpoint"
PipelineOn = Callable[[str], Pipeline]

RESPACED = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas"}


@dataclass(frozen=True)
class Case:
    prompt: str
    sampler: str
    size: tuple[int, int]
    steps: int
    guidance: float
    seed: int
    negative: str = ""
    spacing: str | None = None
    sigmas: str | None = None

    def __str__(self) -> str:
        return f"{self.sampler}-{self.size[0]}x{self.size[1]}-{self.steps}"


CASES = [
    Case("a red boat at dusk", "dpmpp_2m", (512, 512), 10, 7.5, 42, "rain"),
    Case("a white house on green hills", "dpmpp_2m", (256, 256), 12, 5.0, 0, sigmas="karras"),
    Case("a lighthouse by night", "dpmpp_2m_sde", (256, 256), 9, 7.5, 7),
    Case("two trees in the snow", "euler", (1024, 512), 4, 7.5, 8, spacing="trailing"),
    Case("a blue boat, sun", "euler", (320, 256), 10, 12.0, 2**63 - 1, sigmas="exponential"),
    Case("a yellow balloon, clouds", "euler_a", (256, 320), 14, 4.0, 123456789, "fog"),
    Case("mountains at dawn", "heun", (256, 256), 8, 3.0, 5),
    Case("the moon above a calm sea", "ddim", (384, 256), 12, 7.5, 2**32 + 1),
    Case("a desert", "lms", (256, 384), 11, 6.0, 3),
    Case("돛단배, 노을", "pndm", (256, 256), 16, 1.0, 1),
    Case("a green house, birds", "unipc", (384, 384), 13, 2.0, 99, spacing="leading"),
    Case("a boat", "lcm", (256, 256), 4, 1.5, 77),
]
OPENVINO_CASES = [CASES[0], CASES[5], CASES[7]]


@pytest.fixture(scope="module")
def pipe(demo_checkpoint: CheckpointInfo):
    """Diffusers' pipeline of the folder as it is."""
    load = diffusers.StableDiffusionPipeline.from_pretrained
    made = load(CHECKPOINT, safety_checker=None, requires_safety_checker=False).to(torch.float32)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def references(pipe) -> dict[Case, np.ndarray]:
    """Pictures by diffusers, made when first asked for."""
    return {}


def theirs(pipe, case: Case, references: dict[Case, np.ndarray]) -> np.ndarray:
    if case not in references:
        name, options = SCHEDULERS[case.sampler]
        config = {**pipe.scheduler.config, **options}
        if case.spacing is not None:
            config["timestep_spacing"] = case.spacing
        if case.sigmas is not None:
            config[RESPACED[case.sigmas]] = True
        original, pipe.scheduler = pipe.scheduler, getattr(diffusers, name).from_config(config)
        result = pipe(
            case.prompt,
            negative_prompt=case.negative,
            width=case.size[0],
            height=case.size[1],
            num_inference_steps=case.steps,
            guidance_scale=case.guidance,
            generator=torch.Generator().manual_seed(case.seed),
            output_type="np",
        )
        pipe.scheduler = original
        references[case] = (result.images[0] * 255).round().astype(np.uint8)
    return references[case]


def ours(pipeline: Pipeline, case: Case) -> np.ndarray:
    job = Job(
        generation_id=1,
        task_id="t",
        prompt=case.prompt,
        negative_prompt=case.negative,
        width_px=case.size[0],
        height_px=case.size[1],
        seed=case.seed,
        num_inference_steps=case.steps,
        guidance_scale=case.guidance,
        sampler=case.sampler,
        spacing=case.spacing,
        sigmas=case.sigmas,
    )
    *_, last = pipeline.run(make_plan(job, pipeline.checkpoint, lambda: 0))
    assert isinstance(last, Finished)
    return last.picture


def psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    error = float(np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_picture_through_onnx_runtime_equals_that_of_diffusers(
    case: Case, pipe, references, pipeline_on: PipelineOn, figures: dict[str, float]
):
    reached = psnr_db(ours(pipeline_on("onnxruntime-f32"), case), theirs(pipe, case, references))
    figures[f"ONNX Runtime fp32 {case}"] = reached
    assert reached >= 45


@pytest.mark.parametrize("case", OPENVINO_CASES, ids=str)
def test_picture_through_openvino_shows_the_same_scene_in_bf16_and_is_the_same_in_fp32(
    case: Case, pipe, references, pipeline_on: PipelineOn, figures: dict[str, float]
):
    precision, least_db = ("bf16", 25) if has_bf16() else ("f32", 45)
    reached = psnr_db(ours(pipeline_on(f"openvino-{precision}"), case), theirs(pipe, case, references))
    figures[f"OpenVINO {precision} {case}"] = reached
    assert reached >= least_db


def test_another_prompt_is_another_picture(pipeline_on: PipelineOn):
    pipeline = pipeline_on("onnxruntime-f32")
    one, other = (Case(prompt, "dpmpp_2m", (256, 256), 8, 7.5, 1) for prompt in ("a red boat", "a desert by night"))
    assert psnr_db(ours(pipeline, one), ours(pipeline, other)) < 25
