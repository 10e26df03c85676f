"""One model's directory: the checkpoint's own network, or one with styles merged into its weights."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import onnx
from numpy.typing import NDArray

from export import check_engines, description, engine_record, specs, to_fp8, to_tensorrt
from export.binding import Part, bind
from export.config_pbtxt import CONFIG_FILE, GRAPH_FILE, render
from export.engine_record import Target
from export.progress import Progress
from export.request import Request, cost_s
from export.tuning import Tuned, read_tuning

_PYTHON_MODEL: Final = Path(__file__).resolve().parents[1] / "model_repository" / "model.py"


@dataclass(frozen=True)
class Model:
    """A model's name in the repository, its graph, and the tensors that are not the checkpoint's."""

    name: str
    graph: specs.Graph
    changed: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def is_merged(self) -> bool:
        return self.name != self.graph.name


def build_model(request: Request, model: Model, folder: Path, progress: Progress) -> None:
    """Writes the directory below ``models`` in ``folder``; an engine made of the same stays as it is."""
    graph = model.graph
    precision = specs.precision_of(graph, request.precision)
    version = folder / "models" / model.name / "1"
    version.mkdir(parents=True)
    traced = _trace(request, graph, precision, progress)
    if request.target is not None:
        _engine(request, request.target, model, traced, folder, progress)
    else:
        parts = _bind(request, model, traced, bound_path(folder, graph), progress)
        _verify(request, model, bound_path(folder, graph), progress)
        for file in bound_path(folder, graph).parent.iterdir():
            file.rename(version / file.name)
        if not model.is_merged and parts:
            content = json.dumps(description.describe_parts(parts))
            (version.parent / description.PARTS_FILE).write_text(content + "\n", "utf-8")
    if request.serving.has_python_model:
        shutil.copyfile(_PYTHON_MODEL, version / _PYTHON_MODEL.name)
    (version.parent / CONFIG_FILE).write_text(config_of(request, graph, model.name), "utf-8")


def config_of(request: Request, graph: specs.Graph, name: str) -> str:
    """The text of a model's ``config.pbtxt``, with what was measured on this machine in it."""
    precision = specs.precision_of(graph, request.precision)
    tuned = read_tuning(request.out).get(graph.name, Tuned())
    return tuned.applied(render(replace(graph, name=name), request.serving, precision))


def bound_path(folder: Path, graph: specs.Graph) -> Path:
    """Where a graph lies while its engine is built."""
    path = folder / f"{graph.name}.bound" / GRAPH_FILE
    path.parent.mkdir(exist_ok=True)
    return path


def has_torch() -> bool:
    """Whether graphs can be traced and compared here."""
    return all(find_spec(name) is not None for name in ("torch", "diffusers", "transformers", "onnxscript"))


def copy_check(out: Path) -> None:
    """Puts the check of the engines beside them, for servers that have nothing else of this project."""
    source = Path(check_engines.__file__)
    shutil.copyfile(source, out / source.name)


def _trace(request: Request, graph: specs.Graph, precision: specs.Precision, progress: Progress) -> onnx.ModelProto:
    found = None if request.retrace else request.prepared(graph)
    if found is None:
        from export import to_onnx

        with progress.stage(f"{graph.name}: trace", cost_s("trace", request.weights_bytes(graph))) as stage:
            found = to_onnx.trace(graph, request.checkpoint, precision)
            kept = request.cache.keep(graph, request.checkpoint, precision, found)
            stage.result = f"{len(found.graph.node)} nodes, kept as {kept.name}"
    return found


def _bind(
    request: Request, model: Model, traced: onnx.ModelProto, path: Path, progress: Progress
) -> dict[str, list[Part]]:
    """The weights that a style may change lie apart, so that a merged model shares all the others."""
    graph = model.graph
    layers = () if request.has_engines else description.layers_of(request.checkpoint).get(graph.component, ())
    weights = to_fp8.EightBit({**request.checkpoint.weights_of(graph), **model.changed})
    with progress.stage(f"{model.name}: weights", cost_s("weights", request.weights_bytes(graph))) as stage:
        return bind(traced, weights, path, stage.advance, frozenset(f"{layer}.weight" for layer in layers))


def _verify(request: Request, model: Model, path: Path, progress: Progress) -> None:
    graph = model.graph
    precision = specs.precision_of(graph, request.precision)
    work = cost_s("compare", request.weights_bytes(graph)) if has_torch() else 0.0
    with progress.stage(f"{model.name}: compare", work) as stage:
        if not has_torch():
            stage.result = "left out: torch is not installed"
            return
        from export import verify

        if not verify.can_run(precision):
            stage.result = f"left out: ONNX Runtime does not compute in {precision} on a CPU"
            return
        stage.result = ", ".join(map(str, verify.verify(graph, path, request.checkpoint, precision, model.changed)))


def _engine(
    request: Request, target: Target, model: Model, traced: onnx.ModelProto, folder: Path, progress: Progress
) -> None:
    graph, profiles = model.graph, request.profiles(model.graph)
    narrow = request.fp8 and graph.name == "unet"
    if narrow:
        traced = _quantised(request, model, traced, progress)
    weights_sha256 = request.checkpoint.digest_of(graph)
    inputs = engine_record.inputs_sha256(target, traced, weights_sha256, model.changed, profiles)
    plan = folder / "models" / model.name / "1" / target.plan_file
    old = request.out / model.name / "1" / target.plan_file
    work = cost_s("engine", request.weights_bytes(graph))
    if engine_record.is_current(old, inputs):
        with progress.stage(f"{model.name}: engine", work) as stage:
            for path in (old, engine_record.record_path(old)):
                os.link(path, plan.with_name(path.name))
            stage.result = "is there already, made of the same"
        return
    path = bound_path(folder, graph)
    _bind(request, model, traced, path, progress)
    if not narrow:  # fp8 is further from torch than any mistake that this would find
        _verify(request, model, path, progress)
    with progress.stage(f"{model.name}: engine", work) as stage:
        order = to_tensorrt.Order(
            graph, request.serving.runtime, profiles, request.compute_capabilities, _timings(request, target)
        )
        engine = to_tensorrt.build_engine(path, order, plan, stage.tell)
        engine_record.write_record(plan, target, inputs, profiles, engine)
        memory = f", {sum(engine.activations_bytes) / 1e6:.0f} MB of activations" if engine.activations_bytes else ""
        stage.result = f"{engine.size_bytes / 1e6:.1f} MB{memory}"


def _quantised(request: Request, model: Model, traced: onnx.ModelProto, progress: Progress) -> onnx.ModelProto:
    """The UNet's graph in fp8, calibrated in fp32 with the weights that it gets."""
    from export.calibration import calibrated

    fp32 = specs.Precision.FP32
    wide_request, graphs = replace(request, precision=fp32), {graph.name: graph for graph in request.graphs}
    wide = {name: _trace(wide_request, graphs[name], fp32, progress) for name in ("text_encoder", "unet")}
    with progress.stage(f"{model.name}: calibrate", cost_s("compare", request.weights_bytes(model.graph))) as stage:
        weights = {**request.checkpoint.weights_of(model.graph), **model.changed}
        largest = calibrated(request.checkpoint, wide["text_encoder"], wide["unet"], weights)
        stage.result = f"{len(largest)} layers in fp8, the largest input {max(largest.values()):.3g}"
    return to_fp8.quantised(traced, largest)


def _timings(request: Request, target: Target) -> Path | None:
    """One cache for all engines of a version and GPU; TensorRT-RTX times nothing."""
    if request.timings is None or target.library != "tensorrt":
        return None
    return request.timings / target.plan_file.replace(".plan", ".timings")
