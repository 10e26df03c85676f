"""The graphs of a model repository: their tensors, ranges, batches and precisions. The one place they are written.

Traced graphs, TensorRT profiles, ``config.pbtxt`` and ``model_repository/README.md`` are all derived from here. A
second family (SDXL) is a second branch of ``graphs_of`` and, for its VAE, one more line in ``precision_of``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

GRAPH_VERSION: Final = 1
"""Part of every graph's key: raised when a wrapper or a tensor below changes, so that no stale graph is used."""

MIN_SIZE_PX: Final = 256
MAX_SIZE_PX: Final = 1024
MAX_TOKENS: Final = 77
MAX_CHUNKS: Final = 3
"""Chunks of 77 tokens that one prompt may be encoded in."""
STYLE_RANK: Final = 8
"""A style of up to this rank travels with its row; one of higher rank is merged into a model of its own."""


class Precision(StrEnum):
    """What a network computes in. TensorRT is strongly typed, so the graph itself carries it."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


class Runtime(StrEnum):
    """Who runs the graphs."""

    ONNX = "onnx"
    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"


class Device(StrEnum):
    """Where Triton places the models."""

    CPU = "cpu"
    GPU = "gpu"


class Kind(StrEnum):
    """Element type of a tensor on the wire; NETWORK is what ``wire_type`` makes of the precision."""

    NETWORK = "network"
    FLOAT32 = "float32"
    INT64 = "int64"
    UINT8 = "uint8"


@dataclass(frozen=True)
class Axis:
    """A dynamic axis: its name in the graph, its range and the values TensorRT tunes for, all in elements."""

    name: str
    minimum: int
    maximum: int
    tuned: tuple[int, int]
    multiple: int = 1


@dataclass(frozen=True)
class Tensor:
    """One input or output; ``dims`` are per row, the batch dimension comes before them everywhere."""

    name: str
    kind: Kind
    dims: tuple[int | Axis, ...]


@dataclass(frozen=True)
class Batching:
    """How many rows one execution may hold, how many TensorRT tunes for, and how long Triton waits for more."""

    max_rows: int
    tuned_rows: tuple[int, int]
    max_queue_delay_us: int


@dataclass(frozen=True)
class Projection:
    """A linear layer of the checkpoint that reads ``width_in`` numbers and gives ``width_out``."""

    layer: str
    width_out: int
    width_in: int


@dataclass(frozen=True)
class StyleInput:
    """The input ``style`` [size]: a row's low-rank weights for all ``layers``, flat; zeros are no style.

    Layer by layer in their order ``down`` [width_in, rank] and then ``up`` [rank, width_out], row-major; the layer
    gives ``base(x) + (x @ down) @ up``. ``up`` holds scale and weight; a lower rank is padded with zeros.
    """

    rank: int
    layers: tuple[Projection, ...]

    @property
    def size(self) -> int:
        """Numbers in one row."""
        return sum(self.rank * (layer.width_in + layer.width_out) for layer in self.layers)


@dataclass(frozen=True)
class Graph:
    """One model directory. ``component`` is the checkpoint's folder that holds its weights.

    ``checked`` names an output that is NaN or infinite for a row that went wrong, where no other output could say so.
    ``style`` says what the input of that name holds; without it the graph has no such input.
    """

    name: str
    component: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    batching: Mapping[Device, Batching]
    checked: str | None = None
    style: StyleInput | None = None


@dataclass(frozen=True)
class Architecture:
    """What the tensor table needs to know of a checkpoint; everything else about it stays in its own configs."""

    text_width: int
    text_pooled_width: int
    latent_channels: int
    vae_scale_factor: int
    latent_multiple: int
    """The UNet halves its input ``log2`` of this many times, so latents' sides are multiples of it."""
    attention: tuple[Projection, ...] = ()
    """The UNet's attention projections, which a style may change row by row, in the order of their names."""


@dataclass(frozen=True)
class Profile:
    """One TensorRT optimisation profile: (minimum, optimum, maximum) shape of every input, batch included."""

    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


def graphs_of(architecture: Architecture, style_rank: int = STYLE_RANK) -> tuple[Graph, ...]:
    """The four models of an SD 1.x checkpoint, in the order they are built; with rank 0 no row has a style."""
    a = architecture
    style = StyleInput(style_rank, a.attention) if style_rank and a.attention else None
    styles = () if style is None else (Tensor("style", Kind.NETWORK, (style.size,)),)
    h, w = (_latent_axis(name, a) for name in "hw")
    H, W = (_pixel_axis(name, a) for name in "HW")
    tokens = Axis("tokens", MAX_TOKENS, MAX_TOKENS * MAX_CHUNKS, (MAX_TOKENS, MAX_TOKENS), multiple=MAX_TOKENS)
    picture = Tensor("sample", Kind.UINT8, (H, W, 3))
    latents = (a.latent_channels, h, w)
    return (
        Graph(
            "text_encoder",
            "text_encoder",
            (Tensor("input_ids", Kind.INT64, (MAX_TOKENS,)),),
            (
                Tensor("last_hidden_state", Kind.NETWORK, (MAX_TOKENS, a.text_width)),
                Tensor("pooler_output", Kind.NETWORK, (a.text_pooled_width,)),
            ),
            {Device.CPU: Batching(16, (2, 2), 1000), Device.GPU: Batching(32, (2, 8), 500)},
        ),
        Graph(
            "unet",
            "unet",
            (
                Tensor("sample", Kind.NETWORK, latents),
                Tensor("timestep", Kind.FLOAT32, (1,)),
                Tensor("encoder_hidden_states", Kind.NETWORK, (tokens, a.text_width)),
                *styles,
            ),
            (Tensor("out_sample", Kind.NETWORK, latents),),
            # A guided job is two rows: ten of them fill a GPU's execution. A CPU gains nothing beyond four jobs, and
            # more rows of 1024x1024 would not fit a laptop's memory.
            {Device.CPU: Batching(8, (2, 2), 5000), Device.GPU: Batching(20, (8, 2), 2000)},
            style=style,
        ),
        Graph(
            "vae_decoder",
            "vae",
            (Tensor("latent_sample", Kind.NETWORK, latents),),
            (picture, Tensor("mean", Kind.FLOAT32, (1,))),
            {Device.CPU: Batching(4, (1, 1), 1000), Device.GPU: Batching(4, (1, 1), 1000)},
            checked="mean",
        ),
        Graph(
            "vae_encoder",
            "vae",
            (picture,),
            (Tensor("latent_mean", Kind.NETWORK, latents), Tensor("latent_std", Kind.NETWORK, latents)),
            {Device.CPU: Batching(4, (1, 1), 1000), Device.GPU: Batching(4, (1, 1), 1000)},
        ),
    )


def profiles_of(graph: Graph) -> tuple[Profile, ...]:
    """Two profiles that both span the whole range: one tuned for many rows at 512x512, one for few at 1024x1024.

    Triton takes the profile whose optimum is nearest to a batch and refuses a batch that its profile does not span.
    """
    batching = graph.batching[Device.GPU]
    dynamic = any(isinstance(dim, Axis) for tensor in graph.inputs for dim in tensor.dims)
    profiles = []
    for which in (0, 1) if dynamic else (1,):
        shapes = {}
        for tensor in graph.inputs:
            low = tuple(dim.minimum if isinstance(dim, Axis) else dim for dim in tensor.dims)
            best = tuple(dim.tuned[which] if isinstance(dim, Axis) else dim for dim in tensor.dims)
            high = tuple(dim.maximum if isinstance(dim, Axis) else dim for dim in tensor.dims)
            shapes[tensor.name] = (1, *low), (batching.tuned_rows[which], *best), (batching.max_rows, *high)
        profiles.append(Profile(shapes))
    return tuple(profiles)


def precision_of(graph: Graph, asked: Precision) -> Precision:
    """The precision a graph really gets: bfloat16's 8 bits of mantissa would show as bands in a picture's colours."""
    return Precision.FP32 if graph.component == "vae" and asked is Precision.BF16 else asked


def wire_type(kind: Kind, precision: Precision) -> str:
    """numpy's name of a tensor's element type. numpy has no bfloat16, so such networks speak float32 outside."""
    if kind is not Kind.NETWORK:
        return kind.value
    return "float16" if precision is Precision.FP16 else "float32"


def opset_of(graph: Graph, precision: Precision) -> int:
    """The ONNX opset a graph is traced with.

    23 keeps Attention as one operator, but TensorRT-RTX refuses it in fp32 and at the VAE's head width of 512.
    """
    return 20


def _latent_axis(name: str, a: Architecture) -> Axis:
    low, middle, high = (px // a.vae_scale_factor for px in (MIN_SIZE_PX, MAX_SIZE_PX // 2, MAX_SIZE_PX))
    return Axis(name, low, high, (middle, high), multiple=a.latent_multiple)


def _pixel_axis(name: str, a: Architecture) -> Axis:
    step_px = a.latent_multiple * a.vae_scale_factor
    return Axis(name, MIN_SIZE_PX, MAX_SIZE_PX, (MAX_SIZE_PX // 2, MAX_SIZE_PX), multiple=step_px)
