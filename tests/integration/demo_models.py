"""The demo's model repository, built once by the README's command, and copies for tests that change theirs."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.checkpoint import CheckpointInfo, read_checkpoint

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "demo" / "checkpoint"


def build(out: Path, checkpoint: Path, *options: str) -> Path:
    """The model repository ``out`` of a checkpoint, in fp32 ONNX graphs."""
    command = [sys.executable, "export/build_engines.py", "--checkpoint", str(checkpoint), "--runtime", "onnx"]
    built = subprocess.run(
        [*command, *options, "--out", str(out)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return out


@pytest.fixture(scope="session")
def demo_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model repository of demo/checkpoint, in fp32 ONNX graphs."""
    if not (CHECKPOINT / "model_index.json").is_file():
        pytest.skip("demo/checkpoint has not been trained in this checkout")
    return build(tmp_path_factory.mktemp("demo") / "models", CHECKPOINT)


@pytest.fixture(scope="session")
def demo_checkpoint(demo_repository: Path) -> CheckpointInfo:
    return read_checkpoint(demo_repository)


@pytest.fixture(scope="module")
def own_repository(demo_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the demo's models, for a module that merges styles beside them; onnx refuses weights with hard links."""
    return Path(shutil.copytree(demo_repository, tmp_path_factory.mktemp("styled") / "models"))
