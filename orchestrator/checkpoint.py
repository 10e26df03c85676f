"""The checkpoint that a built model repository serves: ``remarque.json`` and the tokenizer beside it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.diffusion.lora_names import NETWORKS
from orchestrator.diffusion.schedule import NoiseSchedule
from orchestrator.diffusion.style_vector import NO_LAYOUT, StyleLayout
from orchestrator.diffusion.tokenizer import Tokenizer, read_tokenizer
from orchestrator.errors import ConfigError

FORMAT = 1
# The weight's shape of every layer that a style can change, by network (unet, text_encoder) and diffusers' name.
Layers = Mapping[str, Mapping[str, tuple[int, ...]]]
# How many contexts of the text encoder the UNet attends to at most.
MAX_CHUNKS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What the checkpoints of a family have in common.

    ``native_size_px`` is the edge they are trained at where one does not say otherwise. ``size_step_px`` follows from
    how often the UNet halves the latents, which are 8 px wide. What the ``text_encoders`` say is put side by side;
    ``is_told_sizes`` where the UNet also reads the last one's pooled output and the size of the picture.
    """

    native_size_px: int
    size_step_px: int
    text_encoders: tuple[str, ...]
    is_told_sizes: bool


LAYOUTS = {
    "sd1": Layout(native_size_px=512, size_step_px=64, text_encoders=("text_encoder",), is_told_sizes=False),
    "sdxl": Layout(
        native_size_px=1024, size_step_px=32, text_encoders=("text_encoder", "text_encoder_2"), is_told_sizes=True
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What turns latents into rough colours: ``rgb = latents @ matrix + bias``, in 0 to 1."""

    matrix: tuple[tuple[float, ...], ...]
    bias: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointInfo:
    """What the orchestrator must know of the networks it calls, read once at start.

    ``pad_ids`` names the text encoders that pad with another id than ``tokenizer`` does, ``controls`` the ControlNets
    that are fused with the UNet, in their order there. ``zeros_for_no_negative``: where no negative prompt is given its
    embeddings are zeros, and not those of an empty text. ``depth_size_px`` is the edge of the square that the model
    ``depth`` reads, ``upscale_factor`` how much larger ``upscaler`` makes a picture; None where there is none.
    ``is_inpainting``: the UNet sees a mask and the masked picture's latents besides, and paints nothing without them.
    ``native_size_px`` is the edge that the UNet was trained at; much larger pictures repeat their subject unless they
    are made in two passes.
    """

    name: str
    family: str
    weights_sha256: str
    models: Mapping[str, str]
    schedule: NoiseSchedule
    latent_channels: int
    vae_scale_factor: int
    cross_attention_dim: int
    max_tokens: int
    max_chunks: int
    min_size_px: int
    max_size_px: int
    size_step_px: int
    native_size_px: int
    style_layout: StyleLayout
    layers: Layers
    preview: Preview
    tokenizer: Tokenizer
    pad_ids: Mapping[str, int] = field(default_factory=dict)
    zeros_for_no_negative: bool = False
    controls: tuple[str, ...] = ()
    depth_size_px: int | None = None
    upscale_factor: int | None = None
    is_inpainting: bool = False

    @property
    def layout(self) -> Layout:
        return LAYOUTS[self.family]


def read_checkpoint(repository: Path) -> CheckpointInfo:
    """The checkpoint of the model repository in ``repository``.

    Raises:
        ConfigError: nothing was built there, or something this version does not serve; the sentence says what to run.
    """
    path = repository / "remarque.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"MODEL_REPOSITORY is {repository}, where no remarque.json can be read; "
            "`make triton` builds and serves the demo's models, export/build_engines.py builds any other checkpoint's"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}); build the repository again") from error
    tokenizer = read_tokenizer(repository / "text_encoder" / "tokenizer")
    try:
        return _from_fields(fields, tokenizer)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} lacks or misstates {error}; build the repository again") from error


def _from_fields(fields: Mapping[str, Any], tokenizer: Tokenizer) -> CheckpointInfo:
    """Every field checked once here, so that no job meets a broken repository half-way."""
    if fields["format"] != FORMAT:
        raise ValueError(f"format {fields['format']}, where format {FORMAT} is read")
    if fields["family"] not in LAYOUTS:
        raise ValueError(f"family {fields['family']}, where {', '.join(LAYOUTS)} are served")
    texts = ("name", "family", "weights_sha256")
    counts = ("latent_channels", "vae_scale_factor", "cross_attention_dim", "max_tokens", "min_size_px", "max_size_px")
    for names, kind in ((texts, str), (("models", "scheduler"), dict), (counts, int)):
        for name in names:
            if not isinstance(fields[name], kind):
                raise TypeError(f"{name} {fields[name]!r}")
    layers = _layers(fields.get("layers", {}))
    return CheckpointInfo(
        **{name: fields[name] for name in (*texts, "models", *counts)},
        schedule=NoiseSchedule.from_config(fields["scheduler"]),
        size_step_px=int(fields.get("size_step_px", LAYOUTS[fields["family"]].size_step_px)),
        max_chunks=int(fields.get("max_chunks", MAX_CHUNKS)),
        style_layout=_style_layout(fields.get("style", {}), layers.get("unet", {})),
        layers=layers,
        preview=_preview(fields["preview"], fields["latent_channels"]),
        tokenizer=tokenizer,
        pad_ids={model: int(pad_id) for model, pad_id in fields.get("pad_ids", {}).items()},
        zeros_for_no_negative=bool(fields.get("zeros_for_no_negative", False)),
        controls=tuple(map(str, fields.get("controls", ()))),
        depth_size_px=_count_of(fields, "depth", "size_px"),
        upscale_factor=_count_of(fields, "upscaler", "factor"),
        is_inpainting=bool(fields.get("inpainting", False)),
        native_size_px=int(fields.get("native_size_px", LAYOUTS[fields["family"]].native_size_px)),
    )


def _count_of(fields: Mapping[str, Any], model: str, name: str) -> int | None:
    """A whole number that one of the models beside the checkpoint's own is told by; None where it was not built."""
    if model not in fields:
        return None
    count = fields[model][name]
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"{model} with {name} {count!r}")
    return count


def _layers(fields: Mapping[str, Mapping[str, Sequence[int]]]) -> Layers:
    """Shapes by network and layer; repositories built before styles were served list none."""
    if not isinstance(fields, dict) or not all(isinstance(layers, dict) for layers in fields.values()):
        raise TypeError("layers that are no JSON objects")
    return {key: {name: _shape(shape) for name, shape in fields[key].items()} for key in NETWORKS if key in fields}


def _style_layout(fields: Mapping[str, Any], layers: Mapping[str, tuple[int, ...]]) -> StyleLayout:
    """How the UNet's ``style`` input is laid out; a rank of 0, or no word of it, means that there is none."""
    rank, names = fields.get("rank", 0), tuple(fields.get("layers", ()))
    if not isinstance(rank, int) or rank < 0 or (rank > 0 and not names):
        raise ValueError(f"style of rank {rank!r} in {len(names)} layers")
    if rank == 0:
        return NO_LAYOUT
    for name in names:
        if len(layers.get(name, ())) != 2:
            raise ValueError(f"style layers that hold {name}, which is no linear layer of the UNet")
    return StyleLayout(rank=rank, layers=names, shapes=tuple((layers[name][0], layers[name][1]) for name in names))


def _shape(sides: Sequence[int]) -> tuple[int, ...]:
    if len(sides) not in (2, 4) or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"layers with the shape {sides}")
    return tuple(sides)


def _preview(fields: Mapping[str, Any], channels: int) -> Preview:
    matrix = np.asarray(fields["matrix"], np.float32)
    bias = np.asarray(fields["bias"], np.float32)
    if matrix.shape != (channels, 3) or bias.shape != (3,):
        raise ValueError(f"preview with a matrix {matrix.shape} and a bias {bias.shape}")
    return Preview(matrix=tuple(map(tuple, matrix.tolist())), bias=tuple(bias.tolist()))
