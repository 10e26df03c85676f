"""One build from checkpoint to published repository, stage by stage."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from export import description, specs
from export.binding import bind
from export.build_model import Model, bound_path, build_model, copy_check, has_torch
from export.config_pbtxt import GRAPH_FILE
from export.errors import ExportError
from export.progress import Progress
from export.repository import check_space, publish, staging
from export.request import Request, cost_s
from export.session import Session


def build(request: Request, stream: TextIO) -> None:
    """Builds and publishes the repository, telling ``stream`` what it does."""
    traced = {graph.name: request.retrace or request.prepared(graph) is None for graph in request.graphs}
    check_tools(request, [name for name, needed in traced.items() if needed])
    size_bytes = sum(map(request.weights_bytes, request.graphs))
    check_space(request.out, size_bytes * (2 if request.has_engines else 1) + 50_000_000)
    with staging(request.out) as folder:
        progress = Progress(stream, work_s(request, traced))
        models = folder / "models"
        for graph in request.graphs:
            build_model(request, Model(graph.name, graph), folder, progress)
        with progress.stage("description", cost_s("description", size_bytes)):
            _describe(request, folder)
        publish(models, request.out)
        if request.has_engines:
            copy_check(request.out)
    stream.write(f"{request.out}: {request.name}, {request.serving.runtime}, {size_bytes / 1e6:.0f} MB of weights\n")
    if not has_torch():
        stream.write("torch is not installed, so the graphs were not compared with it\n")


def check_tools(request: Request, traced: Sequence[str]) -> None:
    """Says what is missing before anything is built rather than in the middle."""
    if traced and not has_torch():
        raise ExportError(
            f"no prepared graph fits {', '.join(traced)} of {request.name}, and tracing needs torch: "
            "pip install 'remarque[export]'"
        )


def work_s(request: Request, traced: Mapping[str, bool]) -> float:
    """About how long the build takes on two idle cores."""
    stages = ["weights", *(["compare"] if has_torch() else []), *(["engine"] if request.has_engines else [])]
    total = cost_s("description", sum(map(request.weights_bytes, request.graphs)))
    for graph in request.graphs:
        wanted = ["trace", *stages] if traced[graph.name] else stages
        total += sum(cost_s(stage, request.weights_bytes(graph)) for stage in wanted)
    return total


def _describe(request: Request, folder: Path) -> None:
    models = folder / "models"
    description.write_tokenizer(request.checkpoint, models / "text_encoder" / "tokenizer")
    decoder = next(graph for graph in request.graphs if graph.name == "vae_decoder")
    (latents,) = decoder.inputs
    wire = specs.wire_type(latents.kind, specs.precision_of(decoder, request.precision))
    session = Session(_decoder_path(request, decoder, folder))
    content = description.describe(
        request.checkpoint,
        request.graphs,
        request.name,
        lambda value: session.run({latents.name: value.astype(wire)})[decoder.outputs[0].name],
    )
    (models / description.DESCRIPTION_FILE).write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _decoder_path(request: Request, decoder: specs.Graph, folder: Path) -> Path:
    """The decoder as ONNX Runtime can run it, also where its engine was there already."""
    path = bound_path(folder, decoder) if request.has_engines else folder / "models" / decoder.name / "1" / GRAPH_FILE
    graph = None if path.is_file() else request.prepared(decoder)
    if graph is not None:
        bind(graph, request.checkpoint.weights_of(decoder), path)
    return path
