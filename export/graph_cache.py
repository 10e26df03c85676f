"""Where traced graphs lie: one weightless file per architecture, precision and version of the specification."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from export import specs
from export.checkpoint import Checkpoint

SHIPPED = Path(__file__).resolve().parents[1] / "demo" / "graphs"


def user_folder() -> Path:
    """Where this user's own graphs are kept between builds."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "remarque" / "graphs"


@dataclass(frozen=True)
class GraphCache:
    """Folders looked into in order; new graphs go into the last one."""

    folders: Sequence[Path]

    def find(self, graph: specs.Graph, checkpoint: Checkpoint, precision: specs.Precision) -> Path | None:
        """The file of this architecture's graph, if one of the folders holds it whole."""
        for folder in self.folders:
            path = folder / _file_name(graph, checkpoint, precision)
            if path.is_file() and _is_whole(path):
                return path
        return None

    def keep(
        self, graph: specs.Graph, checkpoint: Checkpoint, precision: specs.Precision, model: onnx.ModelProto
    ) -> Path:
        """Writes a traced graph and returns its path; a reader never sees half of it."""
        path = self.folders[-1] / _file_name(graph, checkpoint, precision)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        unfinished.write_bytes(model.SerializeToString(deterministic=True))
        unfinished.replace(path)
        return path


def _file_name(graph: specs.Graph, checkpoint: Checkpoint, precision: specs.Precision) -> str:
    multiples = {
        dim.name: dim.multiple for tensor in graph.inputs for dim in tensor.dims if isinstance(dim, specs.Axis)
    }
    facts = (specs.GRAPH_VERSION, specs.opset_of(graph, precision), multiples, checkpoint.shape_key(graph.component))
    key = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    return f"{graph.name}-{precision}-{key}.onnx"


def _is_whole(path: Path) -> bool:
    try:
        onnx.load_model(path, load_external_data=False)
    except (DecodeError, OSError):
        return False
    return True
