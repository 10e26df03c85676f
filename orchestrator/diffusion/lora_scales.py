"""How strongly a file says its factors count: an alpha beside each layer, or a configuration of peft."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from orchestrator.diffusion.layer_patterns import LayerPattern, layer_pattern
from orchestrator.diffusion.lora_names import NETWORKS
from orchestrator.errors import LoraIncompatible

ADAPTER_METADATA: Final = "lora_adapter_metadata"
_TYPES: Final = ("LORA", "LOHA", "LOKR")
# These change the base model's own weights before training: the file alone does not make the picture.
_OTHER_BASES: Final = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Of all expressions in one configuration; hundreds of layers are matched in seconds then, whatever was written there.
MAX_EFFORT: Final = 10_000
_UNSERVED: Final = ("use_qalora", "use_bdlora", "layer_replication", "alora_invocation_tokens", "target_parameters")


@dataclass(frozen=True, slots=True, kw_only=True)
class PeftScaling:
    """Rank and alpha of every layer as peft resolves them; the first pattern that fits a layer counts."""

    rank: int
    alpha: float
    rank_pattern: tuple[tuple[LayerPattern, float], ...] = ()
    alpha_pattern: tuple[tuple[LayerPattern, float], ...] = ()
    root: bool = False
    use_dora: bool = False
    source: str = field(default="adapter_config.json")

    def rank_of(self, layer: str) -> int:
        return int(_first(self.rank_pattern, layer, self.rank))

    def scale_of(self, layer: str, rank: int | None) -> float:
        """``alpha / rank``, with rsLoRA (Kalajdzievski 2023) ``alpha / sqrt(rank)``; ``rank`` is the tensors'."""
        expected = self.rank_of(layer)
        if rank is not None and rank != expected:
            raise LoraIncompatible(f"layer {layer} has rank {rank}; {self.source} says {expected}")
        return _first(self.alpha_pattern, layer, self.alpha) / (math.sqrt(expected) if self.root else expected)


def alpha_scale(alpha: float | None, rank: int) -> float:
    """What kohya's trainers mean: ``alpha / rank``, and 1 without an alpha."""
    return 1.0 if alpha is None else alpha / rank


def config_of(data: bytes) -> PeftScaling:
    """The scaling in the bytes of an ``adapter_config.json``.

    Raises:
        LoraIncompatible: it is no configuration of a LoRA, LoHa or LoKr, or of one that more than its weights decides.
    """
    try:
        config = json.loads(data)
    except (ValueError, RecursionError):
        raise LoraIncompatible("adapter_config.json is not JSON; peft's configuration is expected there") from None
    if not isinstance(config, dict):
        raise LoraIncompatible("adapter_config.json is no JSON object; peft's configuration is expected there")
    return _scaling(config, "adapter_config.json")


def metadata_of(metadata: Mapping[str, str]) -> dict[str, PeftScaling]:
    """The scalings by network that newer diffusers write into a file's metadata; none where they did not."""
    if ADAPTER_METADATA not in metadata:
        return {}
    source = f"the metadata field {ADAPTER_METADATA}"
    try:
        config = json.loads(metadata[ADAPTER_METADATA])
    except (ValueError, RecursionError):
        raise LoraIncompatible(f"{source} is not JSON") from None
    if not isinstance(config, dict):
        raise LoraIncompatible(f"{source} is no JSON object")
    found = {}
    for network in NETWORKS:
        own = {k.removeprefix(f"{network}."): v for k, v in config.items() if k.startswith(f"{network}.")}
        if own:
            found[network] = _scaling(own, source)
    # A UNet saved by itself has no prefix.
    return found or {"unet": _scaling(config, source)}


def _scaling(config: Mapping[str, Any], source: str) -> PeftScaling:
    kind = config.get("peft_type", "LORA")
    if kind not in _TYPES:
        raise LoraIncompatible(f"peft_type in {source} is {str(kind)[:40]!r}; {', '.join(_TYPES)} are read")
    for name in _UNSERVED:
        if config.get(name):
            raise LoraIncompatible(f"{name} is set in {source}; it is not served")
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(_OTHER_BASES):
        raise LoraIncompatible(
            f"init_lora_weights in {source} is {start[:40]!r}, which changes the base model; convert it to plain LoRA"
        )
    alpha = "lora_alpha" if kind == "LORA" else "alpha"
    rank = _number(config, "r", source)
    if not (rank.is_integer() and rank >= 1):
        raise LoraIncompatible(f"r in {source} is {rank:g}; a rank of 1 or more is expected")
    return PeftScaling(
        rank=int(rank),
        alpha=_number(config, alpha, source),
        rank_pattern=_patterns(config, "rank_pattern", source),
        alpha_pattern=_patterns(config, "alpha_pattern", source),
        root=bool(config.get("use_rslora")),
        use_dora=bool(config.get("use_dora")),
        source=source,
    )


def _patterns(config: Mapping[str, Any], name: str, source: str) -> tuple[tuple[LayerPattern, float], ...]:
    found = config.get(name) or {}
    if not isinstance(found, dict):
        raise LoraIncompatible(f"{name} in {source} is no JSON object; layer names with numbers are expected")
    entries = tuple((layer_pattern(key), _number(found, key, f"{name} of {source}")) for key in found)
    if sum(pattern.effort for pattern, _ in entries) > MAX_EFFORT:
        raise LoraIncompatible(f"{name} in {source} holds too many expressions; name the layers in it")
    if name == "rank_pattern" and any(value < 1 for _, value in entries):
        raise LoraIncompatible(f"{name} in {source} holds a rank below 1")
    return entries


def _number(values: Mapping[str, Any], name: str, source: str) -> float:
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:
        raise LoraIncompatible(f"{name[:80]} in {source} is {str(value)[:40]}; a number is expected")
    return float(value)


def _first(patterns: tuple[tuple[LayerPattern, float], ...], layer: str, default: float) -> float:
    return next((value for pattern, value in patterns if pattern.fits(layer)), default)
