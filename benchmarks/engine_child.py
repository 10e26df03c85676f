"""A graph run as Triton's python backend runs it, without Triton: ``model_repository/model.py``'s own ``load``.

Runs in the stub's environment (the same OpenVINO and ONNX Runtime), so what it measures is what batching could reach
at best.
"""

import importlib.util
import json
import sys
import time
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.answering import answer

MODEL = Path(__file__).resolve().parents[1] / "model_repository" / "model.py"


class Engine:
    """One loaded graph."""

    def __init__(self) -> None:
        self._network: Any = None

    def load(self, graph: str, runtime: str, threads: int, outputs: list[str], own_shapes: int = 0) -> float:
        """Seconds that loading took."""
        begun_s = time.perf_counter()
        self._network = _backend().load(runtime, Path(graph), threads, outputs, own_shapes)
        return time.perf_counter() - begun_s

    def run(self, shapes: Mapping[str, Any], rows: int, repeat: int) -> list[float]:
        """Seconds of each of ``repeat`` runs of ``rows`` rows; ``shapes`` holds dims and dtype per input."""
        inputs = {name: _values(name, [rows, *each["dims"]], each["dtype"]) for name, each in shapes.items()}
        times = []
        for _ in range(repeat):
            begun_s = time.perf_counter()
            self._network(inputs)
            times.append(time.perf_counter() - begun_s)
        return times


def _values(name: str, shape: list[int], dtype: str) -> Any:
    if name == "timestep":
        return np.linspace(999, 1, shape[0], dtype=dtype).reshape(shape)
    if name == "style":
        return np.zeros(shape, dtype)
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def _backend() -> Any:
    """The shared model file, with a stand-in for the module that Triton brings."""
    logger = types.SimpleNamespace(log_info=_log, log_warn=_log)
    stand_in = types.ModuleType("triton_python_backend_utils")
    stand_in.Logger = logger  # type: ignore[attr-defined]
    sys.modules.setdefault("triton_python_backend_utils", stand_in)
    spec = importlib.util.spec_from_file_location("remarque_model", MODEL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["remarque_model"] = module
    spec.loader.exec_module(module)
    return module


def _log(text: str) -> None:
    print(json.dumps(text), file=sys.stderr)


if __name__ == "__main__":
    engine = Engine()
    answer({"load": engine.load, "run": engine.run})
