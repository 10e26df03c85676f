"""What one build is asked for, nothing optional left."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import onnx

from export import specs
from export.checkpoint import Checkpoint
from export.config_pbtxt import Serving
from export.engine_record import Target
from export.graph_cache import GraphCache
from export.profiles import Profile, profiles_of
from export.styles import StyleFile

_BYTES: Final = {specs.Precision.FP32: 4, specs.Precision.FP16: 2, specs.Precision.BF16: 2}
# (seconds, seconds per GB of weights) of each stage on two idle cores: only their proportions matter to the time left.
_COSTS_S: Final = {
    "trace": (15.0, 12.0),
    "weights": (0.1, 2.0),
    "compare": (2.0, 8.0),
    "engine": (4.0, 12.0),
    "description": (1.0, 3.0),
}


@dataclass(frozen=True)
class Request:
    """One build. ``target`` is what engines are built for, None where the graphs themselves are served."""

    checkpoint: Checkpoint
    name: str
    out: Path
    serving: Serving
    precision: specs.Precision
    cache: GraphCache
    retrace: bool
    compute_capabilities: Sequence[int]
    style_rank: int
    styles: Sequence[StyleFile] = ()
    """What is built: merged models for a repository that exists, or, without any, the repository."""
    target: Target | None = None
    timings: Path | None = None
    """The folder of TensorRT's timing caches."""
    fp8: bool = False
    """Whether the UNet's engine multiplies in fp8."""
    max_rows: int | None = None
    """Of one execution of the UNet, where it is not what ``specs`` says."""

    @property
    def graphs(self) -> tuple[specs.Graph, ...]:
        graphs = specs.graphs_of(self.checkpoint.architecture, self.style_rank)
        return tuple(self._limited(graph) if graph.component == "unet" else graph for graph in graphs)

    @property
    def has_engines(self) -> bool:
        return self.serving.runtime is not specs.Runtime.ONNX

    def prepared(self, graph: specs.Graph) -> onnx.ModelProto | None:
        """The graph of this architecture, where it need not be traced."""
        return self.cache.find(graph, self.checkpoint, specs.precision_of(graph, self.precision))

    def profiles(self, graph: specs.Graph) -> tuple[Profile, ...]:
        """Of a graph's engine."""
        return profiles_of(graph, graph.batching[specs.Device.GPU], self.serving.buckets_px)

    def _limited(self, graph: specs.Graph) -> specs.Graph:
        if self.max_rows is None:
            return graph
        batching = graph.batching[self.serving.device]
        many, few = (min(rows, self.max_rows) for rows in batching.tuned_rows)
        limited = replace(batching, max_rows=self.max_rows, tuned_rows=(many, few))
        return replace(graph, batching={**graph.batching, self.serving.device: limited})

    def weights_bytes(self, graph: specs.Graph) -> int:
        """Size of a graph's weights at the precision it gets; a VAE's two graphs hold about half each."""
        elements = sum(self.checkpoint.weights(component).elements for component in graph.components)
        share = 2 if graph.component == "vae" else 1
        return elements * _BYTES[specs.precision_of(graph, self.precision)] // share


def cost_s(stage: str, size_bytes: int) -> float:
    """What a stage takes in proportion to the others."""
    fixed_s, per_gb_s = _COSTS_S[stage]
    return fixed_s + per_gb_s * size_bytes / 1e9
