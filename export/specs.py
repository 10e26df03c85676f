"""The graphs of a model repository: their tensors, ranges, batches and precisions. The one place they are written.

Traced graphs, TensorRT profiles, ``config.pbtxt`` and ``model_repository/README.md`` are all derived from here. What
SD 1.x and SDXL differ in is in ``FAMILIES`` and in the inputs that ``Architecture`` says the UNet has.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

GRAPH_VERSION: Final = 1
"""Part of every graph's key: raised when a wrapper or a tensor below changes, so that no stale graph is used."""

_LEAST_UPSCALED_PX: Final = 16
_OWN_SHAPES: Final = 4
"""On a CPU an execution has 2, 4, 6 or 8 rows, if all jobs are guided and of one size."""
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
    """A dynamic axis: its name in the graph, its range and the values TensorRT tunes for, all in elements.

    ``px`` says how many pixels of a picture's side one element stands for, 0 where it is none.
    """

    name: str
    minimum: int
    maximum: int
    tuned: tuple[int, int]
    multiple: int = 1
    px: int = 0


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
class Family:
    """What checkpoints of one layout share: the edges served, the two that TensorRT tunes for, and the UNet's batches.

    ``vae_in_fp32``: in fp16 its values overflow. ``is_told_sizes``: the UNet reads the last text encoder's pooled
    output and the size of the picture, and of every text encoder the hidden states before its last layer.
    """

    name: str
    edges_px: tuple[int, int]
    tuned_px: tuple[int, int]
    unet_batching: Mapping[Device, Batching]
    vae_in_fp32: bool = False
    is_told_sizes: bool = False


FAMILIES: Final[Mapping[str, Family]] = {
    # The delay only has to span the messages of one group, which the gate sends at once (docs/decisions.md).
    # A guided job is two rows: ten of them fill a GPU's execution. A CPU gains nothing beyond four jobs, and more rows
    # of 1024x1024 would not fit a laptop's memory.
    "sd1": Family(
        "sd1",
        (256, 1024),
        (512, 1024),
        {Device.CPU: Batching(8, (2, 2), 500), Device.GPU: Batching(20, (8, 2), 500)},
    ),
    # One row of 1024x1024 is eight times the work of an SD 1.x row of 512x512 and fills a GPU by itself.
    "sdxl": Family(
        "sdxl",
        (256, 1536),
        (768, 1024),
        {Device.CPU: Batching(4, (2, 2), 500), Device.GPU: Batching(8, (4, 2), 500)},
        vae_in_fp32=True,
        is_told_sizes=True,
    ),
}


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder by its component, and the widths of its hidden states and of its pooled output."""

    component: str
    width: int
    pooled_width: int


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

    ``controls`` are the components of the ControlNets that are fused with it.
    ``checked`` names an output that is NaN or infinite for a row that went wrong, where no other output could say so.
    ``style`` says what the input of that name holds; without it the graph has no such input.
    ``own_shapes`` is how many shapes may get a graph of their own on a CPU, each for the memory of one more network.
    """

    name: str
    component: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    batching: Mapping[Device, Batching]
    checked: str | None = None
    style: StyleInput | None = None
    controls: tuple[str, ...] = ()
    always_fp32: bool = False
    own_shapes: int = 0
    penultimate: bool = False
    """Of a text encoder: its hidden states are those before the last layer."""

    @property
    def components(self) -> tuple[str, ...]:
        """All that it holds weights of."""
        return (self.component, *self.controls)


@dataclass(frozen=True)
class Architecture:
    """What the tensor table needs to know of a checkpoint; everything else about it stays in its own configs."""

    family: Family
    encoders: tuple[TextEncoder, ...]
    latent_channels: int
    vae_scale_factor: int
    latent_multiple: int
    """The UNet halves its input ``log2`` of this many times, so latents' sides are multiples of it."""
    attention: tuple[Projection, ...] = ()
    """The UNet's attention projections, which a style may change row by row, in the order of their names."""
    controls: tuple[str, ...] = ()
    """The ControlNets, by name."""
    depth_size_px: int | None = None
    """The edge of the squares that the depth network sees, where there is one."""
    upscale_factor: int | None = None
    """How many times as wide the upscaler makes a picture, where there is one."""
    is_inpainting: bool = False
    """Whether the UNet also sees a mask and the latents of the picture without what the mask covers."""

    @property
    def text_width(self) -> int:
        """What the UNet attends to: every encoder's hidden states side by side."""
        return sum(encoder.width for encoder in self.encoders)


def graphs_of(architecture: Architecture, style_rank: int = STYLE_RANK) -> tuple[Graph, ...]:
    """The models of a checkpoint, in the order they are built; with rank 0 no row has a style."""
    a = architecture
    style = StyleInput(style_rank, a.attention) if style_rank and a.attention else None
    graphs = [*(_text_encoder(encoder, a.family) for encoder in a.encoders), _unet(a, style)]
    if a.controls:
        graphs.append(_controlled(_unet(a, style), a))
    return (*graphs, *_vae(a), *_companions(a))


def control_component(name: str) -> str:
    """What the checkpoint calls the ControlNet of that name."""
    return f"controlnet_{name}"


def _text_encoder(encoder: TextEncoder, family: Family) -> Graph:
    return Graph(
        encoder.component,
        encoder.component,
        (Tensor("input_ids", Kind.INT64, (MAX_TOKENS,)),),
        (
            Tensor("last_hidden_state", Kind.NETWORK, (MAX_TOKENS, encoder.width)),
            Tensor("pooler_output", Kind.NETWORK, (encoder.pooled_width,)),
        ),
        {Device.CPU: Batching(16, (2, 2), 1000), Device.GPU: Batching(32, (2, 8), 500)},
        penultimate=family.is_told_sizes,
    )


def _unet(a: Architecture, style: StyleInput | None) -> Graph:
    latents: tuple[int | Axis, ...] = (a.latent_channels, *_sides("hw", a))
    # The mask, and the latents of the picture without what it covers: they stay what they are between steps.
    masked = (1 + a.latent_channels, *latents[1:])
    tokens = Axis("tokens", MAX_TOKENS, MAX_TOKENS * MAX_CHUNKS, (MAX_TOKENS, MAX_TOKENS), multiple=MAX_TOKENS)
    sizes = (
        Tensor("text_embeds", Kind.NETWORK, (a.encoders[-1].pooled_width,)),
        Tensor("time_ids", Kind.FLOAT32, (6,)),
    )
    return Graph(
        "unet",
        "unet",
        (
            Tensor("sample", Kind.NETWORK, latents),
            Tensor("timestep", Kind.FLOAT32, (1,)),
            Tensor("encoder_hidden_states", Kind.NETWORK, (tokens, a.text_width)),
            *(sizes if a.family.is_told_sizes else ()),
            *((Tensor("masked", Kind.NETWORK, masked),) if a.is_inpainting else ()),
            *(() if style is None else (Tensor("style", Kind.NETWORK, (style.size,)),)),
        ),
        (Tensor("out_sample", Kind.NETWORK, latents),),
        a.family.unet_batching,
        style=style,
        own_shapes=_OWN_SHAPES,
    )


def _controlled(unet: Graph, a: Architecture) -> Graph:
    """The UNet fused with its ControlNets: on the wire their residuals would cost 45 to 240 ms a step.

    A ControlNet's picture has the axes of the latents, written in pixels.
    """
    picture: tuple[int | Axis, ...] = (*_sides("hw", a, a.vae_scale_factor), 3)
    seen = tuple(Tensor(f"control_{name}", Kind.UINT8, picture) for name in a.controls)
    scales = Tensor("control_scales", Kind.FLOAT32, (len(a.controls),))
    styles = tuple(tensor for tensor in unet.inputs if tensor.name == "style")
    others = tuple(tensor for tensor in unet.inputs if tensor.name != "style")
    controls = tuple(map(control_component, a.controls))
    return replace(unet, name="unet_controlnet", inputs=(*others, *seen, scales, *styles), controls=controls)


def _vae(a: Architecture) -> tuple[Graph, ...]:
    latents: tuple[int | Axis, ...] = (a.latent_channels, *_sides("hw", a))
    # Named apart from the latents' axes: one graph has the one as its input, the other computes it.
    picture = Tensor("sample", Kind.UINT8, (*_sides("HW", a, a.vae_scale_factor), 3))
    few = Batching(4, (1, 1), 1000)
    decoder = Graph(
        "vae_decoder",
        "vae",
        (Tensor("latent_sample", Kind.NETWORK, latents),),
        (picture, Tensor("mean", Kind.FLOAT32, (1,))),
        {Device.CPU: few, Device.GPU: few},
        checked="mean",
        always_fp32=a.family.vae_in_fp32,
    )
    moments = (Tensor("latent_mean", Kind.NETWORK, latents), Tensor("latent_std", Kind.NETWORK, latents))
    encoder = replace(decoder, name="vae_encoder", inputs=(picture,), outputs=moments, checked=None)
    return decoder, encoder


def _companions(a: Architecture) -> Iterator[Graph]:
    """The networks that see pictures alone, once a picture: their inputs and outputs are pictures as they are."""
    batching = {Device.CPU: Batching(4, (1, 1), 1000), Device.GPU: Batching(4, (1, 1), 1000)}
    if a.depth_size_px is not None:
        edge_px = a.depth_size_px
        square = Tensor("sample", Kind.UINT8, (edge_px, edge_px, 3))
        depth = Tensor("inverse_depth", Kind.FLOAT32, (edge_px, edge_px))
        yield Graph("depth", "depth", (square,), (depth,), batching, always_fp32=True)
    if a.upscale_factor is not None:
        low, high, best = _LEAST_UPSCALED_PX, a.family.edges_px[1], a.family.tuned_px
        sides = tuple(Axis(name, low, high, best, px=1) for name in "HW")
        factor = a.upscale_factor
        large = tuple(Axis(f"{factor}{side.name}", factor * low, factor * high, best) for side in sides)
        picture, upscaled = Tensor("sample", Kind.UINT8, (*sides, 3)), Tensor("upscaled", Kind.UINT8, (*large, 3))
        yield Graph("upscaler", "upscaler", (picture,), (upscaled,), batching)


def precision_of(graph: Graph, asked: Precision) -> Precision:
    """The precision a graph really gets: bfloat16's 8 bits of mantissa would show as bands in a picture's colours."""
    in_fp32 = graph.always_fp32 or (graph.component in ("vae", "upscaler") and asked is Precision.BF16)
    return Precision.FP32 if in_fp32 else asked


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


def _sides(names: str, a: Architecture, cell: int = 1) -> Iterator[Axis]:
    """Height and width of latents, or, with ``cell`` pixels to a latent, of a picture."""
    px = (*a.family.edges_px, *a.family.tuned_px)
    low, high, *tuned = (edge // a.vae_scale_factor * cell for edge in px)
    for name in names:
        yield Axis(name, low, high, (tuned[0], tuned[1]), a.latent_multiple * cell, a.vae_scale_factor // cell)
