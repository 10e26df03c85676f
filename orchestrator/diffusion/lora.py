"""A style's tensors, by whatever trainer, matched to the layers of the served networks: all of them or none."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, Protocol

from orchestrator.diffusion.deltas import Decomposed, Delta, Hadamard, Kronecker, LowRank, Shape, StoredTensor, Whole
from orchestrator.diffusion.lora_formats import Parts, delta_of
from orchestrator.diffusion.lora_names import NETWORKS, Layer, attends_to_text, family, shown, spellings, split
from orchestrator.diffusion.lora_scales import PeftScaling, alpha_scale
from orchestrator.errors import LoraIncompatible

# Known by how wide the text is that their cross-attention reads.
BASE_MODELS: Final[Mapping[int, str]] = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL"}
MAX_TENSORS: Final = 20_000
METHODS: Final[Mapping[type, str]] = {LowRank: "LoRA", Hadamard: "LoHa", Kronecker: "LoKr", Whole: "difference"}


class Served(Protocol):
    """The networks that a style must fit; ``layers`` has the weight's shape of every layer, by network and name."""

    @property
    def name(self) -> str: ...

    @property
    def cross_attention_dim(self) -> int: ...

    @property
    def layers(self) -> Mapping[str, Mapping[str, Shape]]: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lora:
    """What a style does to each layer, under the names that diffusers gives them; every tensor of its file is in it.

    ``family`` is whose names the file uses: ``peft``, ``diffusers`` or ``kohya``.
    """

    family: str
    unet: Mapping[str, Delta]
    text_encoder: Mapping[str, Delta]
    text_encoder_2: Mapping[str, Delta] = field(default_factory=dict)

    def of(self, network: str) -> Mapping[str, Delta]:
        """What it does to one of ``NETWORKS``."""
        return {"unet": self.unet, "text_encoder": self.text_encoder, "text_encoder_2": self.text_encoder_2}[network]

    @property
    def deltas(self) -> tuple[Delta, ...]:
        return tuple(delta for network in NETWORKS for delta in self.of(network).values())

    @property
    def ranks(self) -> tuple[int, ...]:
        """The different ranks of its low-rank layers, smallest first."""
        return tuple(sorted({delta.rank for delta in map(_direction, self.deltas) if isinstance(delta, LowRank)}))

    @property
    def methods(self) -> tuple[str, ...]:
        """Which methods made it, such as ``LoRA`` or ``DoRA``."""
        found = {"DoRA" if isinstance(delta, Decomposed) else METHODS[type(delta)] for delta in self.deltas}
        return tuple(sorted(found))

    @property
    def is_low_rank(self) -> bool:
        """Whether every layer is plain low rank: ``LowRank.factors`` then says it all."""
        return all(isinstance(delta, LowRank) for delta in self.deltas)


@dataclass(frozen=True, slots=True, kw_only=True)
class Matching:
    """How a file's names meet the served layers: how many in each network, and which names meet none."""

    matched: Mapping[str, int]
    unmatched: tuple[str, ...]
    text_widths: tuple[int, ...]


def match(tensors: Mapping[str, StoredTensor], served: Served) -> Matching:
    """What can be said of a file before it is read: nothing is checked but the names."""
    strangers = {key for key in tensors if split(key) is None}
    parts = _by_layer({key: tensors[key] for key in tensors.keys() - strangers}) if tensors.keys() - strangers else []
    names = _names(served)
    layers = [names.get(part.written) for part in parts]
    widths = {part.width() for part in parts if attends_to_text(part.written)}
    return Matching(
        matched={
            network: sum(layer is not None and layer.network == network for layer in layers)
            for network in served.layers
        },
        unmatched=(*sorted(part.written for part in parts if part.written not in names), *sorted(strangers)),
        text_widths=tuple(sorted(width for width in widths if width is not None)),
    )


def needs_config(keys: Iterable[str]) -> bool:
    """Whether the strength of these tensors is said in an ``adapter_config.json`` and nowhere else."""
    return family(keys) == "peft"


def read_lora(tensors: Mapping[str, StoredTensor], scalings: Mapping[str, PeftScaling], served: Served) -> Lora:
    """The style in ``tensors``; ``scalings`` by network come from peft, without them alphas beside the tensors count.

    Raises:
        LoraIncompatible: a tensor fits no layer, is missing, misshapen or not finite, or the base model is another;
            the sentence names the key.
    """
    parts = _by_layer(tensors)
    _check_base(parts, served)
    if not served.layers:
        raise LoraIncompatible(
            f"the UNet of {served.name} takes no style: its models were built without a list of layers"
        )
    names = _names(served)
    found: dict[str, dict[str, Delta]] = {network: {} for network in NETWORKS}
    for part in parts:
        layer = _layer(part, names, served)
        if layer.name in found[layer.network]:
            raise LoraIncompatible(f"{_any_key(part)} names layer {layer.name} a second time, in another spelling")
        found[layer.network][layer.name] = _delta(part, layer, scalings, served)
    return Lora(family=family(tensors), **found)


def _by_layer(tensors: Mapping[str, StoredTensor]) -> list[Parts]:
    """The tensors put together that belong to one layer, as its name is written."""
    if not tensors:
        raise LoraIncompatible("the file holds no tensors; a style has some for every layer it changes")
    if len(tensors) > MAX_TENSORS:
        raise LoraIncompatible(f"the file holds {len(tensors)} tensors; up to {MAX_TENSORS} are read")
    by_layer: dict[str, dict[str, str]] = {}
    for key in tensors:
        found = split(key)
        if found is None:
            raise LoraIncompatible(
                f"{shown(key)} is no tensor of a LoRA, LoHa, LoKr or DoRA; keys like "
                "LAYER.lora_A.weight, LAYER.lora.down.weight or LAYER.lora_down.weight are expected"
            )
        written, role = found
        if role in by_layer.setdefault(written, {}):
            raise LoraIncompatible(f"{shown(key)} and {shown(by_layer[written][role])} are the same tensor twice")
        by_layer[written][role] = key
    return [
        Parts(written, {role: tensors[key] for role, key in keys.items()}, keys) for written, keys in by_layer.items()
    ]


def _check_base(parts: Iterable[Parts], served: Served) -> None:
    """A style of another base model would mostly miss; its layers that read the prompt tell it best."""
    for part in parts:
        width = part.width() if attends_to_text(part.written) else None
        if width is not None and width != served.cross_attention_dim:
            raise LoraIncompatible(
                f"{_any_key(part)} reads text of width {width}, as {BASE_MODELS.get(width, 'another base model')} has; "
                f"{served.name} serves styles of width {served.cross_attention_dim}"
            )


def _names(served: Served) -> Mapping[str, Layer]:
    return _spellings(tuple((network, tuple(layers)) for network, layers in served.layers.items()))


@lru_cache(maxsize=8)
def _spellings(layers: tuple[tuple[str, tuple[str, ...]], ...]) -> Mapping[str, Layer]:
    return spellings(dict(layers))


def _layer(part: Parts, names: Mapping[str, Layer], served: Served) -> Layer:
    layer = names.get(part.written)
    if layer is None:
        raise LoraIncompatible(
            f"{_any_key(part)} names no layer of {served.name}; names like "
            "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q or "
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q are expected"
        )
    return layer


def _delta(part: Parts, layer: Layer, scalings: Mapping[str, PeftScaling], served: Served) -> Delta:
    shape = tuple(served.layers[layer.network][layer.name])
    scaling = scalings.get(layer.network)
    if scaling is None:
        # LyCORIS writes the dimension that was asked for beside a LoKr of whole sides, often 1e8: infinite in F16.
        return delta_of(part, shape, lambda rank: 1.0 if rank is None else alpha_scale(part.alpha(), rank))
    if "alpha" in part.tensors:
        raise LoraIncompatible(f"{shown(part.keys['alpha'])} comes with {scaling.source}; one of them says the scale")
    if scaling.use_dora:
        part.require(["magnitude"])
    peft_name = part.written.removeprefix(f"{layer.network}.")
    return delta_of(part, shape, lambda rank: scaling.scale_of(peft_name, rank))


def _direction(delta: Delta) -> Delta:
    return delta.direction if isinstance(delta, Decomposed) else delta


def _any_key(part: Parts) -> str:
    return shown(min(part.keys.values()))
