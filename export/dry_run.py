"""Says what a build would make: graphs, profiles, GPU memory and time."""

from typing import Final, TextIO

from export import specs
from export.build import work_s
from export.profiles import Profile, cuda_graphs_of
from export.request import Request

# What a builder told of activations in fp16, as a multiple of one feature map of all rows at full size: the first of
# ``block_out_channels`` by height and width. The text encoders' are too few to tell.
_FEATURE_MAPS: Final = {"unet": 12.6, "unet_controlnet": 12.6, "vae_decoder": 11.1, "vae_encoder": 6.1}
_BYTES: Final = {specs.Precision.FP32: 4, specs.Precision.FP16: 2, specs.Precision.BF16: 2}


def tell(request: Request, stream: TextIO) -> None:
    """Prints the plan of a build; nothing is written and no TensorRT or GPU is needed."""
    serving = request.serving
    traced = {graph.name: request.retrace or request.prepared(graph) is None for graph in request.graphs}
    stream.write(f"{request.name}: {serving.runtime} on a {serving.device}, {request.precision}\n")
    weights_bytes = activations_bytes = 0.0
    for graph in request.graphs:
        weights_bytes += request.weights_bytes(graph)
        stream.write(_graph_line(request, graph, traced[graph.name]))
        for profile in request.profiles(graph) if request.has_engines else ():
            expected_bytes = _activations_bytes(request, graph, profile)
            activations_bytes += expected_bytes
            stream.write(_profile_line(profile, expected_bytes))
        captured = cuda_graphs_of(graph, graph.batching[serving.device], serving.buckets_px)
        if request.has_engines and captured:
            stream.write(
                f"  {len(captured)} CUDA graphs, of {min(g.rows for g in captured)} to "
                f"{max(g.rows for g in captured)} rows\n"
            )
    if request.has_engines:
        stream.write(
            f"GPU memory: about {(weights_bytes + activations_bytes) / 1e9:.1f} GB, "
            f"of which {weights_bytes / 1e9:.1f} GB weights\n"
        )
    stream.write(f"time: about {work_s(request, traced):.0f} s on two idle cores\n")


def _graph_line(request: Request, graph: specs.Graph, is_traced: bool) -> str:
    batching = graph.batching[request.serving.device]
    inputs = ", ".join(f"{tensor.name} {_dims(tensor)}" for tensor in graph.inputs)
    return (
        f"{graph.name}: {specs.precision_of(graph, request.precision)}, {request.weights_bytes(graph) / 1e6:.0f} MB of "
        f"weights, graph {'to be traced' if is_traced else 'prepared'}\n"
        f"  {inputs}\n"
        f"  up to {batching.max_rows} rows, waiting up to {batching.max_queue_delay_us / 1000:g} ms for them\n"
    )


def _dims(tensor: specs.Tensor) -> str:
    return f"[{', '.join(_span(dim) for dim in tensor.dims)}]"


def _span(dim: int | specs.Axis) -> str:
    return str(dim) if isinstance(dim, int) else f"{dim.minimum}..{dim.maximum}"


def _profile_line(profile: Profile, activations_bytes: float) -> str:
    low, best, high = next(iter(profile.shapes.values()))
    memory = f"  {activations_bytes / 1e9:5.2f} GB of activations" if activations_bytes else ""
    return f"  {profile.name:>10}: rows {low[0]} to {high[0]}, best at {best[0]}{memory}\n"


def _activations_bytes(request: Request, graph: specs.Graph, profile: Profile) -> float:
    """About what the profile's largest batch takes."""
    if graph.name not in _FEATURE_MAPS:
        return 0.0
    maps = _FEATURE_MAPS[graph.name]
    channels = request.checkpoint.configs[graph.component]["block_out_channels"][0]
    rows, height, width = _largest(graph, profile)
    return float(maps * rows * height * width * channels * _BYTES[specs.precision_of(graph, request.precision)])


def _largest(graph: specs.Graph, profile: Profile) -> tuple[int, int, int]:
    """Rows, height and width of the largest batch as the network's widest layer sees it: a VAE's in pixels."""
    tensor = graph.inputs[0]
    sides = [
        size * (dim.px if graph.component == "vae" else 1)
        for dim, size in zip(tensor.dims, profile.shapes[tensor.name][2][1:], strict=True)
        if isinstance(dim, specs.Axis) and dim.px
    ]
    return profile.shapes[tensor.name][2][0], sides[0], sides[1]
