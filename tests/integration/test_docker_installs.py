"""The Dockerfiles' install commands, run as they stand in clean environments: there is no Docker here to build with.

The build image is left out: torch alone is gigabytes, and ``make test`` installs the same requirements with the same
constraints.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "deploy" / "docker"


def runs(dockerfile: str) -> list[str]:
    """Its RUN instructions, continued lines joined."""
    text = (DOCKER / dockerfile).read_text().replace("\\\n", " ")
    return [line.removeprefix("RUN ") for line in text.splitlines() if line.startswith("RUN ")]


def exercise(commands: list[str], folder: Path, replaced: Mapping[str, str]) -> None:
    """Runs each command with the image's paths replaced and pip's cache in use."""
    environ = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    environ["PATH"] = f"{Path(sys.executable).parent}:{environ['PATH']}"
    for command in commands:
        for path, here in {"--no-cache-dir": "--quiet", **replaced}.items():
            command = command.replace(path, here)
        done = subprocess.run(["bash", "-ec", command], cwd=folder, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def test_the_workers_image_installs_from_its_hashes_and_starts(tmp_path: Path) -> None:
    installing = [run for run in runs("orchestrator.Dockerfile") if "venv" in run]
    assert len(installing) == 2
    lock = str(DOCKER / "requirements.txt")
    exercise(installing, tmp_path, {"/venv": str(tmp_path / "venv"), "/tmp/requirements.txt": lock})
    python = str(tmp_path / "venv" / "bin" / "python")
    shutil.copytree(
        ROOT / "orchestrator", tmp_path / "app" / "orchestrator", ignore=shutil.ignore_patterns("__pycache__")
    )

    def said(*arguments: str) -> str:
        run = subprocess.run([python, "-W", "error", *arguments], cwd=tmp_path / "app", capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return run.stdout

    assert said("-m", "orchestrator", "--version").startswith("Remarque ")
    assert "No broken requirements" in said("-W", "ignore", "-m", "pip", "check")
    # Everything that `work` imports is there, and nothing of what must not be.
    assert (
        said(
            "-c", "import orchestrator.work, opentelemetry.sdk; import importlib.util as u; print(u.find_spec('torch'))"
        )
        == "None\n"
    )


def test_a_library_whose_hash_differs_is_not_installed(tmp_path: Path) -> None:
    lock = (DOCKER / "requirements.txt").read_text()
    entry = re.search(r"^h11==[^\n]*\n(?:    --hash[^\n]*\n?)+", lock, re.MULTILINE)
    assert entry is not None
    (tmp_path / "requirements.txt").write_text(re.sub(r"sha256:[0-9a-f]{8}", "sha256:00000000", entry[0]))
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--require-hashes",
        "-r",
        "requirements.txt",
    ]
    refused = subprocess.run(pip, cwd=tmp_path, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "DO NOT MATCH THE HASHES" in refused.stderr


@pytest.mark.slow
def test_the_cpu_tritons_environment_installs(tmp_path: Path) -> None:
    stub = tmp_path / "stub"
    exercise(runs("triton-cpu.Dockerfile"), tmp_path, {"/stub": str(stub)})
    code = "import numpy, onnxruntime, openvino; print(numpy.__version__)"
    assert subprocess.run([stub / "bin/python3", "-c", code], capture_output=True, text=True).stdout == "1.26.4\n"
