"""Adds models with styles merged in to a repository that exists: for engines, whose weights nothing changes later."""

import json
from pathlib import Path
from typing import Any, TextIO

from export import specs
from export.build import check_tools
from export.build_model import Model, build_model, config_of
from export.config_pbtxt import CONFIG_FILE
from export.description import DESCRIPTION_FILE
from export.errors import ExportError
from export.progress import Progress
from export.repository import add_models, check_space, share_equal_files, staging
from export.request import Request, cost_s
from export.styles import merge, name_of


def build_styles(request: Request, stream: TextIO) -> None:
    """Builds one merged model for each network that the styles change, always from the checkpoint's own weights."""
    description = _description(request)
    checkpoint = request.checkpoint
    networks = [component for component in checkpoint.components if component.startswith(("unet", "text_encoder"))]
    changed = merge({component: checkpoint.weights(component) for component in networks}, request.styles)
    graphs = [graph for graph in request.graphs if graph.component in changed]
    names = {graph.name: name_of(graph.name, description["models"][graph.name], request.styles) for graph in graphs}
    check_tools(request, [graph.name for graph in graphs if request.prepared(graph) is None])
    for graph in graphs:
        _check_base(request, graph)
    size_bytes = sum(map(request.weights_bytes, graphs))
    check_space(request.out, size_bytes * (2 if request.has_engines else 1) + 50_000_000)
    with staging(request.out) as folder:
        progress = Progress(stream, sum(cost_s("weights", request.weights_bytes(graph)) for graph in graphs))
        for graph in graphs:
            build_model(request, Model(names[graph.name], graph, changed[graph.component]), folder, progress)
            share_equal_files(folder / "models" / names[graph.name], request.out / graph.name)
        add_models(folder / "models", request.out)
    for graph in graphs:
        layers = len(changed[graph.component])
        stream.write(f"{request.out / names[graph.name]}: {graph.name} with {layers} layers changed\n")


def _description(request: Request) -> dict[str, Any]:
    path = request.out / DESCRIPTION_FILE
    try:
        description: dict[str, Any] = json.loads(path.read_text("utf-8"))
        found, rank = description["weights_sha256"], description.get("style", {}).get("rank", 0)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ExportError(f"{path} is missing or broken; build the repository without --style first") from error
    if found != request.checkpoint.weights_sha256:
        raise ExportError(f"{request.out} was built from another checkpoint than {request.checkpoint.folder}")
    if rank != request.style_rank:
        raise ExportError(f"{request.out} was built with --style-rank {rank}; --style-rank is {request.style_rank}")
    return description


def _check_base(request: Request, graph: specs.Graph) -> None:
    """A merged model stands in for its base, so it is served in the same way."""
    path: Path = request.out / graph.name / CONFIG_FILE
    if not path.is_file() or path.read_text("utf-8") != config_of(request, graph, graph.name):
        raise ExportError(f"{path} was built with other options; a style is built with those of its base model")
