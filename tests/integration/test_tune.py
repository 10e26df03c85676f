"""``build_engines --tune`` with the real Triton, on a UNet of a few kilobytes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_graphs

from export.tuning import read_tuning
from local.triton import LocalTriton
from orchestrator.clients.kserve import InferenceServer

ROOT = Path(__file__).parents[2]


def tuned(repository: Path, *words: str) -> str:
    """What the command says."""
    command = [sys.executable, "export/build_engines.py", "--tune", "--out", str(repository), "--repeats", "1", *words]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


@pytest.mark.usefixtures("triton_environment")
def test_tuning_measures_a_local_triton_and_writes_what_serves_best(tmp_path: Path) -> None:
    repository = tiny_graphs.write_repository(tmp_path / "models")
    said = tuned(repository)
    found = read_tuning(repository)["unet"]
    assert found.runtime in ("openvino-bf16", "openvino-f32", "onnxruntime-f32")
    assert set(found.rows_aimed_at) == {4096, 16384} and 1 <= (found.threads or 0) <= len(os.sched_getaffinity(0))
    assert "1024 px" in said and "two instances" in said and "rows/s" in said
    with LocalTriton(repository, models=["unet"]) as triton:
        server = InferenceServer(triton.http_url, deadline_s=10)
        parameters = server.signature("unet").parameters
        server.close()
    assert parameters["runtime"] == found.runtime and parameters["rows_aimed_at"].startswith("4096:")
