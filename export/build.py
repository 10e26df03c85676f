"""One build from checkpoint to published repository, stage by stage."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, TextIO

import onnx
from numpy.typing import NDArray

from export import description, specs
from export.binding import bind
from export.checkpoint import Checkpoint
from export.config_pbtxt import CONFIG_FILE, GRAPH_FILE, PLAN_FILE, Serving, render
from export.errors import ExportError
from export.graph_cache import GraphCache
from export.progress import Progress
from export.repository import check_space, publish, staging
from export.session import Session
from export.styles import StyleFile
from export.tuning import Tuned, read_tuning

_PYTHON_MODEL: Final = Path(__file__).resolve().parents[1] / "model_repository" / "model.py"
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
    """One build, nothing optional left."""

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

    @property
    def graphs(self) -> tuple[specs.Graph, ...]:
        return specs.graphs_of(self.checkpoint.architecture, self.style_rank)

    @property
    def has_engines(self) -> bool:
        return self.serving.runtime is not specs.Runtime.ONNX

    def prepared(self, graph: specs.Graph) -> onnx.ModelProto | None:
        """The graph of this architecture, where it need not be traced."""
        return self.cache.find(graph, self.checkpoint, specs.precision_of(graph, self.precision))

    def weights_bytes(self, graph: specs.Graph) -> int:
        """Size of a graph's weights at the precision it gets; a VAE's two graphs hold about half each."""
        elements = sum(self.checkpoint.weights(component).elements for component in graph.components)
        share = 2 if graph.component == "vae" else 1
        return elements * _BYTES[specs.precision_of(graph, self.precision)] // share


@dataclass(frozen=True)
class Merged:
    """A model with styles in its weights: its name, and the tensors that are not the checkpoint's."""

    name: str
    changed: Mapping[str, NDArray[Any]]


def build(request: Request, stream: TextIO) -> None:
    """Builds and publishes the repository, telling ``stream`` what it does."""
    traced = {graph.name: request.retrace or request.prepared(graph) is None for graph in request.graphs}
    check_tools(request, [name for name, needed in traced.items() if needed])
    size_bytes = sum(map(request.weights_bytes, request.graphs))
    check_space(request.out.absolute(), size_bytes * (2 if request.has_engines else 1) + 50_000_000)
    with staging(request.out) as folder:
        progress = Progress(stream, _work(request, traced))
        models = folder / "models"
        for graph in request.graphs:
            build_model(request, graph, folder, progress)
        with progress.stage("description", cost_s("description", size_bytes)):
            _describe(request, folder)
        publish(models, request.out)
    stream.write(f"{request.out}: {request.name}, {request.serving.runtime}, {size_bytes / 1e6:.0f} MB of weights\n")
    if not _has_torch():
        stream.write("torch is not installed, so the graphs were not compared with it\n")


def build_model(
    request: Request, graph: specs.Graph, folder: Path, progress: Progress, merged: Merged | None = None
) -> None:
    """Writes one model's directory below ``models`` in ``folder``: the checkpoint's own, or one with styles merged."""
    precision = specs.precision_of(graph, request.precision)
    changed = {} if merged is None else merged.changed
    version = folder / "models" / (graph.name if merged is None else merged.name) / "1"
    version.mkdir(parents=True)
    bound = folder / f"{graph.name}.bound"
    bound.mkdir()
    path = bound / GRAPH_FILE
    size_bytes = request.weights_bytes(graph)
    model = _graph(request, graph, precision, progress)
    with progress.stage(f"{graph.name}: weights", cost_s("weights", size_bytes)) as stage:
        weights = {**request.checkpoint.weights_of(graph), **changed}
        parts = bind(model, weights, path, stage.advance, _apart(request, graph))
    _verify(request, graph, path, progress, changed)
    if request.has_engines:
        from export import to_tensorrt

        with progress.stage(f"{graph.name}: engine", cost_s("engine", size_bytes)) as stage:
            order = to_tensorrt.Order(graph, request.serving.runtime, request.compute_capabilities)
            built_bytes = to_tensorrt.build_engine(path, order, version / PLAN_FILE, stage.tell)
            stage.result = f"{built_bytes / 1e6:.1f} MB"
    else:
        for file in bound.iterdir():
            file.rename(version / file.name)
    if parts and merged is None:
        (version.parent / description.PARTS_FILE).write_text(
            json.dumps(description.describe_parts(parts)) + "\n", "utf-8"
        )
    if request.serving.device is specs.Device.CPU:
        shutil.copyfile(_PYTHON_MODEL, version / _PYTHON_MODEL.name)
    config = render(replace(graph, name=version.parent.name), request.serving, precision)
    tuned = read_tuning(request.out).get(graph.name, Tuned())
    (version.parent / CONFIG_FILE).write_text(tuned.applied(config), "utf-8")


def _apart(request: Request, graph: specs.Graph) -> frozenset[str]:
    """The weights that a style may change lie in files of their own, so that a merged model shares all the others."""
    layers = description.layers_of(request.checkpoint).get(graph.component, {})
    return frozenset() if request.has_engines else frozenset(f"{layer}.weight" for layer in layers)


def _graph(request: Request, graph: specs.Graph, precision: specs.Precision, progress: Progress) -> onnx.ModelProto:
    found = None if request.retrace else request.prepared(graph)
    if found is None:
        from export import to_onnx

        with progress.stage(f"{graph.name}: trace", cost_s("trace", request.weights_bytes(graph))) as stage:
            found = to_onnx.trace(graph, request.checkpoint, precision)
            kept = request.cache.keep(graph, request.checkpoint, precision, found)
            stage.result = f"{len(found.graph.node)} nodes, kept as {kept.name}"
    return found


def _verify(
    request: Request, graph: specs.Graph, path: Path, progress: Progress, changed: Mapping[str, NDArray[Any]]
) -> None:
    precision = specs.precision_of(graph, request.precision)
    work = cost_s("compare", request.weights_bytes(graph)) if _has_torch() else 0.0
    with progress.stage(f"{graph.name}: compare", work) as stage:
        if not _has_torch():
            stage.result = "left out: torch is not installed"
            return
        from export import verify

        if not verify.can_run(precision):
            stage.result = f"left out: ONNX Runtime does not compute in {precision} on a CPU"
            return
        stage.result = ", ".join(map(str, verify.verify(graph, path, request.checkpoint, precision, changed)))


def _describe(request: Request, folder: Path) -> None:
    models = folder / "models"
    decoder = next(graph for graph in request.graphs if graph.name == "vae_decoder")
    (latents,) = decoder.inputs
    wire = specs.wire_type(latents.kind, specs.precision_of(decoder, request.precision))
    path = (folder / f"{decoder.name}.bound" if request.has_engines else models / decoder.name / "1") / GRAPH_FILE
    session = Session(path)
    content = description.describe(
        request.checkpoint,
        request.graphs,
        request.name,
        lambda value: session.run({latents.name: value.astype(wire)})[decoder.outputs[0].name],
    )
    description.write_tokenizer(request.checkpoint, models / "text_encoder" / "tokenizer")
    (models / description.DESCRIPTION_FILE).write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _has_torch() -> bool:
    return all(find_spec(name) is not None for name in ("torch", "diffusers", "transformers", "onnxscript"))


def check_tools(request: Request, traced: Sequence[str]) -> None:
    """Says what is missing before anything is built rather than in the middle."""
    if traced and not _has_torch():
        raise ExportError(
            f"no prepared graph fits {', '.join(traced)} of {request.name}, and tracing needs torch: "
            "pip install 'remarque[export]'"
        )
    if request.has_engines:
        from export import to_tensorrt

        to_tensorrt.check_available(request.serving.runtime, request.compute_capabilities)


def _work(request: Request, traced: Mapping[str, bool]) -> float:
    stages = ["weights", *(["compare"] if _has_torch() else []), *(["engine"] if request.has_engines else [])]
    total = cost_s("description", sum(map(request.weights_bytes, request.graphs)))
    for graph in request.graphs:
        wanted = ["trace", *stages] if traced[graph.name] else stages
        total += sum(cost_s(stage, request.weights_bytes(graph)) for stage in wanted)
    return total


def cost_s(stage: str, size_bytes: int) -> float:
    """What a stage takes in proportion to the others."""
    fixed_s, per_gb_s = _COSTS_S[stage]
    return fixed_s + per_gb_s * size_bytes / 1e9
