"""The stub's environment on a machine that has torch and no network: its own numpy 1.26, torch from the machine."""

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.bench import ROOT
from orchestrator.errors import ServiceError

NUMPY = "numpy==1.26.4"
"""numpy 2 inside Triton's python backend reads inputs with stride 0."""


def bring_stub(state: Path, wheels: Path | None) -> Path:
    """An environment for the stub that sees this interpreter's torch; pip looks nowhere but in ``wheels``, if given."""
    if wheels is not None:
        os.environ |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels.resolve())}
    stub = state / "gpu-stub"
    if not (stub / "done").exists():
        base = getattr(sys, "_base_executable", None) or sys.executable
        _run([base, "-m", "venv", "--without-pip", "--clear", str(stub)])
        site = next(stub.glob("lib/python3*/site-packages"))
        _run([sys.executable, "-m", "pip", "--quiet", "install", "--no-deps", "--target", str(site), NUMPY])
        # After the stub's own packages: its numpy comes first, everything else from this interpreter.
        others = [ROOT, *(Path(entry) for entry in sys.path if entry.endswith("-packages"))]
        (site / "brought.pth").write_text("".join(f"{path}\n" for path in others))
        (stub / "done").touch()
    os.environ["REMARQUE_STUB"] = str(stub)
    return stub


def _run(command: list[str]) -> None:
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        said = answer.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise ServiceError(
            f"{' '.join(command[:5])} failed: {said[0]}; bring the wheel along (benchmarks/gpu/bundle.sh)"
        )
