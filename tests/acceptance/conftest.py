"""The demo's checkpoint as a user gets it: built by the command of the README, served by the real Triton."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest

from local.triton import LocalTriton
from orchestrator.checkpoint import CheckpointInfo, read_checkpoint
from orchestrator.clients.triton import TritonModels
from orchestrator.errors import ServiceError
from orchestrator.pipeline import Pipeline

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "demo" / "checkpoint"


@pytest.fixture(scope="session")
def demo_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model repository of demo/checkpoint, in fp32 ONNX graphs."""
    if not (CHECKPOINT / "model_index.json").is_file():
        pytest.skip("demo/checkpoint has not been trained in this checkout")
    out = tmp_path_factory.mktemp("demo") / "models"
    command = [sys.executable, "export/build_engines.py", "--checkpoint", str(CHECKPOINT), "--runtime", "onnx"]
    built = subprocess.run([*command, "--out", str(out)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return out


@pytest.fixture(scope="session")
def demo_checkpoint(demo_repository: Path) -> CheckpointInfo:
    return read_checkpoint(demo_repository)


@pytest.fixture(scope="session")
def triton_on(demo_repository: Path) -> Iterator[Callable[[str], LocalTriton]]:
    """A Triton of the runtime that is named, one server for each."""
    with ExitStack() as ending:

        @cache
        def start(runtime: str) -> LocalTriton:
            try:
                return ending.enter_context(LocalTriton(demo_repository, runtime=runtime))
            except ServiceError as error:
                if os.environ.get("CI"):
                    raise
                pytest.skip(str(error))

        yield start


@pytest.fixture(scope="session")
def pipeline_on(
    triton_on: Callable[[str], LocalTriton], demo_checkpoint: CheckpointInfo
) -> Iterator[Callable[[str], Pipeline]]:
    """The pipeline on the Triton of the runtime that is named."""
    with ExitStack() as ending:

        @cache
        def connect(runtime: str) -> Pipeline:
            models = TritonModels(triton_on(runtime).http_url, deadline_s=600)
            ending.callback(models.close)
            return Pipeline(models, demo_checkpoint)

        yield connect
