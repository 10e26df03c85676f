"""How trainers name a style's tensors, and which of the served layers each name means.

Three families of names are read: those of peft (``base_model.model.<layer>.lora_A.weight``), of diffusers
(``unet.<layer>.lora.down.weight`` and two older spellings) and of kohya and A1111, who write a layer's name with
underscores (``lora_unet_down_blocks_0_...``), some after the blocks of Stability's own code
(``lora_unet_input_blocks_1_1_...``).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

NETWORKS: Final = ("unet", "text_encoder", "text_encoder_2")
"""What a style may change; only SDXL has the last."""
PEFT_PREFIX: Final = "base_model.model."
KOHYA_PREFIXES: Final = ("lora_unet_", "lora_te")
# What a key's end says about the tensor. A lone ``default`` is the adapter's name, left in by some trainers.
_SUFFIXES: Final[tuple[tuple[str, str], ...]] = (
    (r"\.lora_(?:A(?:\.default)?|down)\.weight", "down"),
    (r"\.lora_(?:B(?:\.default)?|up)\.weight", "up"),
    (r"\.lora_mid\.weight", "mid"),
    (r"(?:\.lora|_lora|\.lora_linear_layer)\.down\.weight", "down"),
    (r"(?:\.lora|_lora|\.lora_linear_layer)\.up\.weight", "up"),
    (r"(?:\.lora|_lora|\.lora_linear_layer)?\.alpha", "alpha"),
    (r"\.lora_magnitude_vector(?:\.default)?(?:\.weight)?", "magnitude"),
    (r"\.dora_scale", "dora_scale"),
    (r"\.diff", "diff"),
)
_LYCORIS: Final = re.compile(r"(.+?)\.((?:hada|lokr)_(?:w[12](?:_[ab])?|t[12]))(?:\.default)?")
_ENDINGS: Final = tuple((re.compile(f"(.+?){suffix}"), role) for suffix, role in _SUFFIXES)
_TEXT_PROJECTIONS: Final = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
_RESNET: Final = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_STEM: Final = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_SHOWN_CHARS: Final = 160


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of a served network: ``network`` is one of ``NETWORKS``, ``name`` is what diffusers calls it."""

    network: str
    name: str


def split(key: str) -> tuple[str, str] | None:
    """The layer as the key writes it, and what the tensor is to it; None where no trainer's key ends so."""
    bare = key.removeprefix(PEFT_PREFIX)
    for ending, role in _ENDINGS:
        if found := ending.fullmatch(bare):
            return found[1].replace(".processor", ""), role
    found = _LYCORIS.fullmatch(bare)
    return None if found is None else (found[1], found[2])


def family(keys: Iterable[str]) -> str:
    """Whose names these are: ``peft``, ``kohya`` or ``diffusers``."""
    names = list(keys)
    if any(name.startswith(PEFT_PREFIX) for name in names):
        return "peft"
    return "kohya" if any(name.startswith(KOHYA_PREFIXES) for name in names) else "diffusers"


def spellings(layers: Mapping[str, Iterable[str]]) -> dict[str, Layer]:
    """Every way to write each of the served ``layers`` (names by network)."""
    unet = tuple(layers.get("unet", ()))
    found = {
        written: Layer("unet", name) for name in unet for written in _unet_spellings(name, _stability_name(name, unet))
    }
    for name in layers.get("text_encoder", ()):
        # Trainers of diffusers number the only encoder of SD 1.x too.
        found |= dict.fromkeys(
            _text_spellings(name, ("", "text_encoder."), ("lora_te_", "lora_te1_")), Layer("text_encoder", name)
        )
    for name in layers.get("text_encoder_2", ()):
        found |= dict.fromkeys(
            _text_spellings(name, ("text_encoder_2.",), ("lora_te2_",)), Layer("text_encoder_2", name)
        )
    return found


def attends_to_text(written: str) -> bool:
    """Whether the layer reads the prompt: its width tells the base model."""
    return written.replace(".", "_").endswith(("attn2_to_k", "attn2_to_v"))


def shown(key: str) -> str:
    """A key for a sentence: a file may hold any text of any length."""
    plain = ascii(key)[1:-1]
    return plain if len(plain) <= _SHOWN_CHARS else f"{plain[:_SHOWN_CHARS]}..."


def _unet_spellings(name: str, stability: str | None) -> Iterator[str]:
    for dotted in {name, re.sub(r"\.to_out\.0$", ".to_out", name)}:
        yield from (dotted, f"unet.{dotted}")
    for known in (name, stability):
        if known is not None:
            yield "lora_unet_" + known.replace(".", "_")


def _text_spellings(name: str, networks: Iterable[str], kohya: Iterable[str]) -> Iterator[str]:
    bare = name.removeprefix("text_model.")
    head, _, last = bare.rpartition(".")
    for dotted in {bare, f"{head}.{_TEXT_PROJECTIONS.get(last, last)}"}:
        for prefix in ("", "text_model."):
            yield from (f"{network}{prefix}{dotted}" for network in networks)
    underscored = bare.replace(".", "_")
    # Only what lies within the transformer has the prefix of its class in kohya's names.
    within = "" if bare == "text_projection" else "text_model_"
    yield from (f"{network}{within}{underscored}" for network in kohya)


def _stability_name(name: str, unet: tuple[str, ...]) -> str | None:
    """The layer's name in Stability's code, whose blocks are numbered through; None where it has no such name."""
    if name in _STEM:
        return _STEM[name]
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)|mid_block\.(\w+)\.(\d+)\.(.+)", name)
    if found is None:
        return None
    if found[1] is None:
        kind, index, rest = found[6], int(found[7]), found[8]
        # One attention stands between the two residual blocks.
        return f"middle_block.{1 if kind == 'attentions' else 2 * index}.{_inside(kind, rest)}"
    side, block, kind, index, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    per_block = len({n.split(".")[3] for n in unet if n.startswith(f"{side}_blocks.0.resnets.")}) + (side == "down")
    first = per_block * block + (side == "down")
    if kind == "downsamplers":
        return f"input_blocks.{first + per_block - 1}.0.op"
    if kind == "upsamplers":
        attends = any(n.startswith(f"up_blocks.{block}.attentions.") for n in unet)
        return f"output_blocks.{first + per_block - 1}.{2 if attends else 1}.conv"
    place = f"{'input' if side == 'down' else 'output'}_blocks.{first + index}"
    return f"{place}.{1 if kind == 'attentions' else 0}.{_inside(kind, rest)}"


def _inside(kind: str, rest: str) -> str:
    return _RESNET.get(rest, rest) if kind == "resnets" else rest
