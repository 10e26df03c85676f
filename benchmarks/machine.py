"""The machine a benchmark ran on, told by what matters for its figures and by nothing that names it."""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from local.environment import TRITON_WHEEL

VERSIONS = ("numpy", "openvino", "onnxruntime", "torch", "diffusers")
MATRIX_FEATURES = ("avx512f", "avx512_bf16", "amx_bf16")


def describe(stub_python: Path | None = None) -> dict[str, Any]:
    """Cores, processor, memory, versions, load. ``stub_python`` tells what the graphs are run by."""
    fields = _cpu_fields()
    flags = fields.get("flags", "").split()
    return {
        "processor": fields.get("model name", platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "matrix features": " ".join(name for name in MATRIX_FEATURES if name in flags) or "none",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "load before": f"{os.getloadavg()[0]:.1f}",
        "commit": _commit(),
        "versions": {
            "Python": platform.python_version(),
            "Triton": f"2.51 ({TRITON_WHEEL})",
            **_versions(VERSIONS),
            **_stub_versions(stub_python),
        },
    }


def has_amx() -> bool:
    """Whether the processor multiplies bf16 matrices in tiles, which the SD 1.5 bar is about."""
    return "amx_bf16" in _cpu_fields().get("flags", "").split()


def has_bf16() -> bool:
    """Whether OpenVINO's automatic precision is bf16 here."""
    return {"amx_bf16", "avx512_bf16"}.intersection(_cpu_fields().get("flags", "").split()) != set()


def _cpu_fields() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().split("\n\n")[0].splitlines() if path.exists() else []
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _versions(names: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _stub_versions(python: Path | None) -> dict[str, str]:
    """The python backend's own libraries, which may differ from this process's."""
    if python is None:
        return {}
    names = ("numpy", "openvino", "onnxruntime")
    ask = f"import importlib.metadata as m\nfor n in {names}: print(n, m.version(n))"
    answer = subprocess.run([python, "-I", "-c", ask], capture_output=True, text=True, check=False)
    return {f"{line.split()[0]} in Triton": line.split()[1] for line in answer.stdout.splitlines()}


def _commit() -> str:
    """Short name of the commit, marked where files differ from it."""
    root = Path(__file__).resolve().parents[1]
    asked = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=9", "--exclude", "*"]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"
