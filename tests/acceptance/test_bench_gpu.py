"""The GPU benchmark without its card: the runtime that it brings gives what ONNX Runtime gives, and the command runs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from orchestrator.checkpoint import CheckpointInfo

torch = pytest.importorskip("torch")
ort = pytest.importorskip("onnxruntime")

ROOT = Path(__file__).parents[2]
ROWS, EDGE = 2, 32
OUTPUTS = {
    "text_encoder": ["last_hidden_state", "pooler_output"],
    "unet": ["out_sample"],
    "vae_decoder": ["sample", "mean"],
    "vae_encoder": ["latent_mean", "latent_std"],
}
pytestmark = pytest.mark.slow


def random_inputs(session) -> dict[str, np.ndarray]:
    generator, made = np.random.default_rng(0), {}
    for entry in session.get_inputs():
        edge = {"tensor(uint8)": 8 * EDGE}.get(entry.type, 77 if entry.name == "encoder_hidden_states" else EDGE)
        shape = [ROWS, *(dim if isinstance(dim, int) else edge for dim in entry.shape[1:])]
        if entry.type == "tensor(int64)":
            made[entry.name] = generator.integers(0, 250, shape)
        elif entry.type == "tensor(uint8)":
            made[entry.name] = generator.integers(0, 255, shape).astype(np.uint8)
        else:
            made[entry.name] = generator.standard_normal(shape).astype(np.float32) * (
                0.02 if entry.name == "style" else 1
            )
    return made


@pytest.mark.parametrize("model", OUTPUTS)
def test_torch_runs_a_graph_of_the_repository_as_onnx_runtime_does(
    model: str, demo_repository: Path, demo_checkpoint: CheckpointInfo
) -> None:
    from benchmarks.gpu.torch_runtime import load

    graph = demo_repository / model / "1" / "model.onnx"
    session = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    inputs = random_inputs(session)
    given = load(graph, 2, OUTPUTS[model])(inputs)
    for name, expected in zip(OUTPUTS[model], session.run(OUTPUTS[model], inputs), strict=True):
        tolerance = 1 if expected.dtype == np.uint8 else 1e-4 * float(np.abs(expected).max())
        assert given[name].dtype == expected.dtype
        np.testing.assert_allclose(given[name].astype(np.float64), expected.astype(np.float64), rtol=0, atol=tolerance)


def test_weights_that_merged_models_share_are_read(demo_repository: Path, tmp_path: Path) -> None:
    from benchmarks.gpu.torch_runtime import load

    folder = shutil.copytree(demo_repository / "text_encoder" / "1", tmp_path / "text_encoder" / "1")
    (tmp_path / "merged.data").hardlink_to(folder / "model.onnx.data")
    inputs = {"input_ids": np.zeros((1, 77), np.int64)}
    one, other = (
        load(place / "text_encoder" / "1" / "model.onnx", 2, ["pooler_output"])(inputs)["pooler_output"]
        for place in (demo_repository, tmp_path)
    )
    np.testing.assert_array_equal(one, other)


def test_the_gpu_command_runs_end_to_end_where_only_the_card_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu.run", "--shapes", "demo", "--trial", "--soak", "1"]
    answer = subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    page = next(tmp_path.glob("gpu-*.md")).read_text()
    for title in ("UNet step", "Concurrent jobs", "Mixed styles", "The same picture", "Soak", "diffusers"):
        assert f"demo: {title}" in page
