"""What is written beside an engine: what it is for, what it was made of, and the GPU memory that it takes."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from export import specs
from export.check_engines import compute_capability
from export.errors import ExportError
from export.profiles import Profile
from export.to_tensorrt import Engine, check_available, version_of

FORMAT: Final = 1
RECIPE: Final = 1
"""Raised when ``to_tensorrt`` builds another engine from the same graph, weights and profiles."""
_LIBRARIES: Final = {specs.Runtime.TENSORRT: "tensorrt", specs.Runtime.TENSORRT_RTX: "tensorrt_rtx"}


@dataclass(frozen=True)
class Target:
    """Which library and which GPUs engines are built for."""

    library: str
    version: str
    compute_capabilities: tuple[str, ...]
    """For example ``8.9``."""

    @property
    def plan_file(self) -> str:
        """The engine's file name, so that engines of two versions or cards are never taken for each other."""
        gpus = "-".join(f"sm{capability.replace('.', '')}" for capability in self.compute_capabilities)
        return f"{self.library}-{self.version}-{gpus}.plan"


def target_of(runtime: specs.Runtime, compute_capabilities: Sequence[int]) -> Target:
    """The GPUs asked for (86 is 8.6), or the one in this machine; refuses what the library does not build for."""
    check_available(runtime, compute_capabilities)
    try:
        found = tuple(f"{number // 10}.{number % 10}" for number in compute_capabilities) or (compute_capability(),)
    except LookupError as error:
        raise ExportError(f"{error}; --runtime {runtime} builds for this machine's GPU") from error
    return Target(_LIBRARIES[runtime], version_of(runtime), found)


def inputs_sha256(
    target: Target,
    graph: onnx.ModelProto,
    weights_sha256: str,
    changed: Mapping[str, NDArray[Any]],
    profiles: Sequence[Profile],
) -> str:
    """One name for all that an engine is made of: it need not be built again where this is the same."""
    tensors = {
        name: hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest() for name, value in changed.items()
    }
    said = {
        "recipe": RECIPE,
        "target": [target.library, target.version, target.compute_capabilities],
        "graph": hashlib.sha256(graph.SerializeToString(deterministic=True)).hexdigest(),
        "weights": weights_sha256,
        "changed": tensors,
        "profiles": [[profile.name, profile.shapes] for profile in profiles],
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def record_path(plan: Path) -> Path:
    """Where an engine's record lies."""
    return plan.with_name(f"{plan.name}.json")


def write_record(plan: Path, target: Target, inputs: str, profiles: Sequence[Profile], engine: Engine) -> None:
    """Writes what ``check_engines`` and the next build read."""
    names = [profile.name for profile in profiles]
    record = {
        "format": FORMAT,
        "library": target.library,
        "version": target.version,
        "compute_capabilities": target.compute_capabilities,
        "inputs_sha256": inputs,
        "weights_bytes": engine.weights_bytes,
        "activations_bytes": dict(zip(names, engine.activations_bytes, strict=False)),
    }
    record_path(plan).write_text(json.dumps(record, indent=2) + "\n", "utf-8")


def is_current(plan: Path, inputs: str) -> bool:
    """Whether an engine is there that was made of the same."""
    try:
        record = json.loads(record_path(plan).read_text("utf-8"))
        return plan.is_file() and record["format"] == FORMAT and record["inputs_sha256"] == inputs
    except (OSError, ValueError, KeyError, TypeError):
        return False
