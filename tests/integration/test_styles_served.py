"""Styles through the real Triton: mixed in one execution, merged and loaded on the way, and a message to a picture."""

import hashlib
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from integration.demo_styles import ATTENTION, TEXT, write_style
from integration.service import Service, message, service
from integration.test_local_triton import executions
from PIL import Image

from local.triton import LocalTriton
from orchestrator.checkpoint import CheckpointInfo, read_checkpoint
from orchestrator.clients.storage import Storage
from orchestrator.clients.triton import TritonModels
from orchestrator.imaging.inspection import read
from orchestrator.job import Job, StyleRef
from orchestrator.merged_folders import MergedFolders
from orchestrator.merged_models import MergedModels, MergedSettings
from orchestrator.pipeline import Finished, Pipeline, PipelineStep
from orchestrator.plan import Plan, make_plan
from orchestrator.style_ways import AppliedStyle, StyleMode
from orchestrator.styles import StyleShelf

__all__ = ["service"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint(own_repository: Path) -> CheckpointInfo:
    return read_checkpoint(own_repository)


@pytest.fixture(scope="module")
def triton(serve_models: Callable[..., LocalTriton], own_repository: Path) -> LocalTriton:
    return serve_models(own_repository, runtime="onnxruntime-f32", threads=2)


@pytest.fixture
def models(triton: LocalTriton) -> Iterator[TritonModels]:
    """A client; what a test had merged is unloaded after it."""
    made = TritonModels(triton.http_url, deadline_s=600)
    yield made
    for name in made.loaded():
        if "--" in name:
            made.unload(name)
    made.close()


@pytest.fixture
def studio(models: TritonModels, own_repository: Path, checkpoint: CheckpointInfo) -> Callable[..., Pipeline]:
    """The pipeline, with so much memory for merged models."""

    def make(memory_bytes: int = 1 << 30) -> Pipeline:
        settings = MergedSettings(memory_bytes=memory_bytes)
        shelf = MergedModels(models, MergedFolders(own_repository, 1 << 30), checkpoint, settings)
        return Pipeline(models, checkpoint, shelf)

    return make


@pytest.fixture(scope="module")
def styles(checkpoint: CheckpointInfo, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("styles")
    files = {f"style {i}": write_style(folder / f"{i}.safetensors", checkpoint, i) for i in range(4)}
    files["queries"] = write_style(folder / "queries.safetensors", checkpoint, 11, ("to_q", "ff.net.2"))
    files["convolutions"] = write_style(folder / "convolutions.safetensors", checkpoint, 12, ("conv1",))
    files["words"] = write_style(folder / "words.safetensors", checkpoint, 13, ATTENTION, TEXT)
    return files


def planned(checkpoint: CheckpointInfo, *paths: Path, mode: StyleMode = "auto", seed: int = 7, steps: int = 3) -> Plan:
    applied: tuple[AppliedStyle, ...] = ()
    refs = tuple(StyleRef(path=str(path)) for path in paths)
    if paths:
        folder = paths[0].parent.as_uri()
        applied = StyleShelf(Storage(folder, allowed_input_prefixes=[folder]).inputs, checkpoint).admit(refs)
    size = {"width_px": 256, "height_px": 256}
    job = Job(
        generation_id=1, task_id="t", prompt="a red boat", seed=seed, num_inference_steps=steps, styles=refs, **size
    )
    return make_plan(job, checkpoint, lambda: 0, styles=applied, style_mode=mode)


def picture(pipeline: Pipeline, plan: Plan) -> np.ndarray:
    *_, last = pipeline.run(plan)
    assert isinstance(last, Finished)
    return last.picture


def psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    error = float(np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def test_a_jobs_picture_is_the_same_alone_and_among_jobs_in_other_styles(
    studio: Callable[..., Pipeline], checkpoint: CheckpointInfo, styles: dict[str, Path], triton: LocalTriton
) -> None:
    pipeline = studio()
    plans = [planned(checkpoint, styles[f"style {i}"], steps=5) for i in range(3)] + [planned(checkpoint, steps=5)]
    alone = [picture(pipeline, plan) for plan in plans]
    rows, ran = executions(triton, "unet")
    with ThreadPoolExecutor(len(plans)) as pool:
        together = list(pool.map(lambda plan: picture(pipeline, plan), plans))
    rows, ran = (after - before for after, before in zip(executions(triton, "unet"), (rows, ran), strict=True))
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))
    assert ran < rows / 2, "jobs of different styles must share executions"
    assert min(psnr_db(alone[3], one) for one in alone[:3]) < 35, "a style must show"


@pytest.mark.parametrize("names", [("style 0",), ("words",), ("style 0", "style 1")])
def test_a_merged_style_gives_the_picture_of_the_mixed_one(
    names: tuple[str, ...], studio: Callable[..., Pipeline], checkpoint: CheckpointInfo, styles: dict[str, Path]
) -> None:
    pipeline, paths = studio(), [styles[name] for name in names]
    auto, merged = (planned(checkpoint, *paths, mode=mode) for mode in ("auto", "merged"))
    assert (auto.ways.unet, merged.ways.unet) == ("mixed" if len(names) == 1 else "merged", "merged")
    assert psnr_db(picture(pipeline, auto), picture(pipeline, merged)) >= 45


def test_the_second_of_two_styles_on_different_layers_inherits_nothing(
    studio: Callable[..., Pipeline], checkpoint: CheckpointInfo, styles: dict[str, Path]
) -> None:
    pipeline = studio(memory_bytes=1)
    first, second = (planned(checkpoint, styles[name], mode="merged") for name in ("queries", "convolutions"))
    fresh = picture(pipeline, second)
    picture(pipeline, first)
    assert np.array_equal(picture(pipeline, second), fresh)


def test_more_styles_than_fit_are_served_under_load_and_none_is_pulled_away(
    studio: Callable[..., Pipeline], models: TritonModels, checkpoint: CheckpointInfo, styles: dict[str, Path]
) -> None:
    pipeline = studio(memory_bytes=1)
    plans = [planned(checkpoint, styles[f"style {i % 3}"], mode="merged") for i in range(6)]
    expected = [picture(pipeline, planned(checkpoint, styles[f"style {i}"])) for i in range(3)]
    with ThreadPoolExecutor(len(plans)) as pool:
        found = list(pool.map(lambda plan: picture(pipeline, plan), plans))
    assert min(psnr_db(one, expected[i % 3]) for i, one in enumerate(found)) >= 45
    assert len([name for name in models.loaded() if "--" in name]) == 1


def test_a_merged_model_lost_in_the_middle_of_a_picture_is_loaded_again(
    studio: Callable[..., Pipeline], models: TritonModels, checkpoint: CheckpointInfo, styles: dict[str, Path]
) -> None:
    pipeline, plan = studio(), planned(checkpoint, styles["style 0"], mode="merged")
    whole = picture(pipeline, plan)
    for turn in pipeline.run(plan):
        if isinstance(turn, PipelineStep) and turn.index == 1:
            [name] = [name for name in models.loaded() if "--" in name]
            models.unload(name)
    assert isinstance(turn, Finished)
    assert np.array_equal(turn.picture, whole)


@pytest.mark.parametrize("mode", ["mixed", "merged"])
def test_a_message_that_names_a_style_becomes_a_picture_in_it(
    mode: str, service: Service, triton: LocalTriton, own_repository: Path, checkpoint: CheckpointInfo
) -> None:
    path = write_style(service.folder / "ink.safetensors", checkpoint, 5)
    service.start_worker(
        INFERENCE_MODE="self",
        TRITON_URL=triton.http_url,
        MODEL_REPOSITORY=str(own_repository),
        STYLE_MODE=mode,
        STYLE_FOLDER=str(service.folder / "kept"),
    )
    size = {"aspect_ratio": None, "parameters": {"width": 256, "height": 256, "steps": 3}, "num_inference_steps": None}
    service.publish(message(1, **size), message(2, seed=1, lora_path=path.as_uri(), style_id=9, **size))
    service.wait([1, 2], within_s=300)
    assert (service.backend.outcomes(1), service.backend.outcomes(2)) == (["complete"], ["complete"]), service.logs()
    plain, styled = (service.results / "generations" / f"gen-{i}.png" for i in (1, 2))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    metadata = service.backend.processed(2)[-1].body["metadata"]
    assert metadata["styles"] == [{"name": "style-9", "sha256": sha256, "weight": 1.0}]
    assert sha256.encode() in styled.read_bytes()
    assert not read(styled.read_bytes()).is_broken
    assert psnr_db(np.asarray(Image.open(plain)), np.asarray(Image.open(styled))) < 35


def test_a_style_that_does_not_mix_fails_its_job_where_nothing_is_merged(
    service: Service, triton: LocalTriton, own_repository: Path, checkpoint: CheckpointInfo
) -> None:
    path = write_style(service.folder / "words.safetensors", checkpoint, 5, ATTENTION, TEXT)
    service.start_worker(
        INFERENCE_MODE="self", TRITON_URL=triton.http_url, MODEL_REPOSITORY=str(own_repository), STYLE_MODE="mixed"
    )
    service.publish(message(3, lora_path=path.as_uri()))
    service.wait([3], within_s=120)
    failed = service.backend.processed(3)[-1].body
    assert failed["error_code"] == "LORA_INCOMPATIBLE"
    assert "it changes the text encoder, which takes styles merged only" in failed["error_message"]
