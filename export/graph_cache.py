"""Where traced graphs lie: one weightless file per architecture, precision and version of the specification."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from export import specs
from export.checkpoint import Checkpoint

_ROOT: Final = Path(__file__).resolve().parents[1]
SHIPPED: Final = (_ROOT / "demo" / "graphs", _ROOT / "export" / "graphs")
"""Committed graphs: the demo's, and those of SD 1.5, which most SD 1.x checkpoints share."""


def user_folder(kind: str = "graphs") -> Path:
    """Where this user's own graphs, or what else builds remember, are kept between builds."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "remarque" / kind


@dataclass(frozen=True)
class GraphCache:
    """Folders looked into in order; new graphs go into the last one."""

    folders: Sequence[Path]

    def find(self, graph: specs.Graph, checkpoint: Checkpoint, precision: specs.Precision) -> onnx.ModelProto | None:
        """The graph of this architecture, if one of the folders holds it whole."""
        for folder in self.folders:
            path = folder / file_name(graph, checkpoint, precision)
            if path.is_file() and (model := _read(path)) is not None:
                return model
        return None

    def keep(
        self, graph: specs.Graph, checkpoint: Checkpoint, precision: specs.Precision, model: onnx.ModelProto
    ) -> Path:
        """Writes a traced graph and returns its path; a reader never sees half of it."""
        path = self.folders[-1] / file_name(graph, checkpoint, precision)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        unfinished.write_bytes(model.SerializeToString(deterministic=True))
        unfinished.replace(path)
        return path


def file_name(graph: specs.Graph, checkpoint: Checkpoint, precision: specs.Precision) -> str:
    """Model, precision and a key of everything that the graph depends on."""
    multiples = {
        dim.name: dim.multiple for tensor in graph.inputs for dim in tensor.dims if isinstance(dim, specs.Axis)
    }
    # The version and the opset stand for the wrapper's code; everything else is the architecture's.
    facts: tuple[object, ...]
    facts = (specs.GRAPH_VERSION, specs.opset_of(graph, precision), multiples, checkpoint.shape_key(graph.component))
    facts += tuple(map(checkpoint.shape_key, graph.controls))
    if graph.penultimate:
        facts = (*facts, "penultimate")
    if graph.style is not None:
        facts = (*facts, graph.style.rank)
    if graph.component == "vae" and checkpoint.configs["vae"].get("latents_std") is not None:
        facts = (*facts, "centred")  # graphs of older versions leave the scale of each channel out
    key = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    return f"{graph.name}-{precision}-{key}.onnx"


def _read(path: Path) -> onnx.ModelProto | None:
    try:
        return onnx.load_model(path, load_external_data=False)
    except (DecodeError, OSError):
        return None
