"""Style files read for a merge before serving: plain low-rank styles by peft, diffusers and kohya's trainers.

The orchestrator reads more (DoRA, LoHa, LoKr, Tucker cores) and merges while it serves; engines cannot change then, so
this small reader lets their styles be built in. What it does not know it refuses. Needs no torch.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from export.errors import ExportError
from export.stability import stability_names
from export.weights import Weights, read_metadata

_FILES: Final = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
_CONFIG: Final = "adapter_config.json"
_PEFT_PREFIX: Final = "base_model.model."
_METADATA: Final = "lora_adapter_metadata"
_TENSOR: Final = re.compile(
    r"(.+?)(?:\.lora|_lora|\.lora_linear_layer)?"
    r"\.(?:(?P<down>(?:lora_A|lora_down|down)\.weight)|(?P<up>(?:lora_B|lora_up|up)\.weight)|(?P<alpha>alpha))"
)
# These change the base model before training, or add more than factors: the tensors alone make another picture.
_OTHER_BASES: Final = ("pissa", "olora", "corda", "loftq", "lora_ga")
_UNSERVED: Final = ("use_qalora", "use_bdlora", "layer_replication", "alora_invocation_tokens", "target_parameters")
_Patterns = tuple[tuple[re.Pattern[str], float], ...]
_PREFIXES: Final = {
    "unet.": "unet",
    "lora_unet_": "unet",
    "text_encoder.": "text_encoder",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "lora_te2_": "text_encoder_2",
}
# Projections as older diffusers writes them.
_OLD_NAMES: Final = ((r"\.to_out$", ".to_out.0"),)
_OLD_TEXT_NAMES: Final = ((r"\.to_(q|k|v)$", r".\1_proj"), (r"\.to_out(\.0)?$", ".out_proj"))


@dataclass(frozen=True)
class StyleFile:
    """One style of a merged model and how strongly it counts."""

    path: Path
    """The weights; where peft wrote them, its configuration lies beside them."""
    weight: float = 1.0

    @property
    def identity(self) -> str:
        """SHA-256 of the weights; together with that of peft's configuration where the strength stands in there."""
        weights = hashlib.sha256(self.path.read_bytes()).hexdigest()
        if not self.has_config:
            return weights
        config = hashlib.sha256(self.path.with_name(_CONFIG).read_bytes()).hexdigest()
        return hashlib.sha256(f"{weights}:{config}".encode()).hexdigest()

    @property
    def has_config(self) -> bool:
        """Whether the names are peft's, whose factors say nothing of their scale."""
        return any(name.startswith(_PEFT_PREFIX) for name in Weights([self.path]))


@dataclass(frozen=True)
class _Scaling:
    """peft's configuration as far as it decides how strongly a layer's factors count."""

    path: Path
    rank: float
    alpha: float
    ranks: _Patterns
    alphas: _Patterns
    root: bool

    def of(self, layer: str, rank: int) -> float:
        expected = _first(self.ranks, layer, self.rank)
        if rank != expected:
            raise ExportError(f"{self.path}: layer {layer} has rank {rank}; its configuration says {expected:g}")
        return _first(self.alphas, layer, self.alpha) / (math.sqrt(rank) if self.root else rank)


def open_style(said: str) -> StyleFile:
    """The style of an option ``PATH`` or ``PATH=WEIGHT``; a folder is searched for the files that trainers leave."""
    path, _, number = said.rpartition("=")
    weight = _number(number) if path else None
    place = Path(said if weight is None else path)
    if place.is_dir():
        place = next((place / name for name in _FILES if (place / name).is_file()), place / _FILES[0])
    if not place.is_file():
        raise ExportError(f"--style {said}: {place} does not exist; a .safetensors file or a trainer's folder is read")
    return StyleFile(place, 1.0 if weight is None else weight)


def name_of(model: str, weights_sha256: str, styles: Sequence[StyleFile]) -> str:
    """The merged model's folder, which the orchestrator computes in the same way from a job's styles."""
    said = {"model": weights_sha256, "styles": [[style.identity, style.weight] for style in styles]}
    text = json.dumps(said, sort_keys=True, separators=(",", ":"))
    return f"{model}--{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def merge(
    networks: Mapping[str, Mapping[str, NDArray[Any]]], styles: Sequence[StyleFile]
) -> dict[str, dict[str, NDArray[np.float32]]]:
    """Every weight that the styles change, by network and name of the tensor; always from the networks' own weights."""
    known = _known(networks)
    changed: dict[str, dict[str, NDArray[np.float32]]] = {network: {} for network in networks}
    for style in styles:
        for (network, tensor), delta in _deltas(style, known).items():
            base = changed[network].get(tensor)
            weight = networks[network][tensor].astype(np.float32) if base is None else base
            if delta.shape != (len(weight), weight.size // len(weight)):
                raise ExportError(
                    f"{style.path}: {tensor} has the shape {weight.shape}; the style was made for another"
                )
            changed[network][tensor] = weight + delta.reshape(weight.shape)
    return {network: weights for network, weights in changed.items() if weights}


def _known(networks: Mapping[str, Mapping[str, NDArray[Any]]]) -> dict[tuple[str, str], str]:
    """Every layer's tensor, by network and the layer's name with underscores; a UNet's by Stability's names too."""
    known: dict[tuple[str, str], str] = {}
    for network, weights in networks.items():
        layers = [name.removesuffix(".weight") for name in weights if name.endswith(".weight")]
        other = stability_names(layers) if network == "unet" else {}
        for layer in layers:
            written = (layer, other.get(layer, layer))
            known |= {(network, name.replace(".", "_")): f"{layer}.weight" for name in written}
    return known


def _deltas(style: StyleFile, known: Mapping[tuple[str, str], str]) -> dict[tuple[str, str], NDArray[np.float32]]:
    """What the style adds to each tensor, by network and name, as ``[out, fan_in]``."""
    tensors, scalings = Weights([style.path]), _scalings(style)
    deltas: dict[tuple[str, str], NDArray[np.float32]] = {}
    for written, keys in _layers(style, tensors).items():
        place, first = _place(written, known), next(iter(keys.values()))
        if place is None:
            raise ExportError(f"{style.path}: {first} belongs to no layer of this checkpoint")
        if place in deltas:
            raise ExportError(f"{style.path}: {first} names {place[1]} a second time, in another spelling")
        if not {"down", "up"} <= keys.keys():
            raise ExportError(f"{style.path}: {first} has no partner; every layer has two factors")
        down, up = (tensors[keys[side]].astype(np.float32) for side in ("down", "up"))
        if down.ndim < 2 or up.shape[1:2] != down.shape[:1]:
            raise ExportError(f"{style.path}: {keys['up']} has the shape {up.shape}; its partner has {down.shape}")
        rank = len(down)
        scale = _scale(style, tensors, keys, scalings.get(place[0]), _bare(written)[1])
        with np.errstate(over="ignore", invalid="ignore"):
            deltas[place] = np.float32(scale * style.weight) * (up.reshape(-1, rank) @ down.reshape(rank, -1))
        if not np.isfinite(deltas[place]).all():
            raise ExportError(f"{style.path}: {keys['up']} and its partner hold NaN, infinity or numbers too large")
    return deltas


def _scale(style: StyleFile, tensors: Weights, keys: Mapping[str, str], scaling: _Scaling | None, layer: str) -> float:
    """The factor of a layer's delta: by the configuration, else by the alpha beside the tensors, else 1."""
    rank = len(tensors[keys["down"]])
    if "alpha" not in keys:
        return 1.0 if scaling is None else scaling.of(layer, rank)
    if scaling is not None:
        raise ExportError(f"{style.path}: {keys['alpha']} comes with a configuration; one of them says the scale")
    alpha = tensors[keys["alpha"]]
    if alpha.size != 1:
        raise ExportError(f"{style.path}: {keys['alpha']} has the shape {alpha.shape}; one number is expected")
    return float(alpha.reshape(-1)[0]) / rank


def _layers(style: StyleFile, tensors: Weights) -> dict[str, dict[str, str]]:
    """The names of each layer's tensors, by the layer as it is written and by what they are: down, up or alpha."""
    layers: dict[str, dict[str, str]] = {}
    for name in tensors:
        layer, role = _split(style, name)
        keys = layers.setdefault(layer, {})
        if role in keys:
            raise ExportError(f"{style.path}: {name} and {keys[role]} are the same tensor twice")
        keys[role] = name
    return layers


def _split(style: StyleFile, name: str) -> tuple[str, str]:
    """The layer as it is written, and what this tensor is to it."""
    found = _TENSOR.fullmatch(name.replace(".default.", "."))
    if found is None or found.lastgroup is None:
        raise ExportError(
            f"{style.path}: {name} is no factor of a plain low-rank style; DoRA, LoHa, LoKr and Tucker cores "
            "are merged by the orchestrator while it serves ONNX models"
        )
    return found[1].replace(".processor", ""), found.lastgroup


def _place(written: str, known: Mapping[tuple[str, str], str]) -> tuple[str, str] | None:
    """Network and tensor of a layer, whichever way its name is written: without a prefix the first that has it."""
    said, bare = _bare(written)
    bare = bare.removeprefix("text_model.").removeprefix("text_model_")
    for network in ("unet", "text_encoder", "text_encoder_2") if said is None else (said,):
        name = bare
        for old, new in _OLD_NAMES if network == "unet" else _OLD_TEXT_NAMES:
            name = re.sub(old, new, name)
        tensor = known.get((network, name.replace(".", "_"))) or known.get((network, bare.replace(".", "_")))
        if tensor is not None:
            return network, tensor
    return None


def _bare(written: str) -> tuple[str | None, str]:
    """The network that the prefix names, if there is one, and the layer as peft's patterns know it."""
    name = written.removeprefix(_PEFT_PREFIX)
    prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), "")
    return _PREFIXES.get(prefix), name.removeprefix(prefix)


def _scalings(style: StyleFile) -> dict[str, _Scaling]:
    """By network; of one that is missing each layer's own alpha counts."""
    if style.has_config:
        config = _json(style, style.path.with_name(_CONFIG).read_text("utf-8"))
        return dict.fromkeys(_PREFIXES.values(), _scaling(style, config))
    said = read_metadata(style.path).get(_METADATA)
    if said is None:
        return {}
    config = _json(style, said)
    own = {
        network: {k.removeprefix(f"{network}."): v for k, v in config.items() if k.startswith(f"{network}.")}
        for network in dict.fromkeys(_PREFIXES.values())
    }
    return {network: _scaling(style, values) for network, values in own.items() if values} or {
        "unet": _scaling(style, config)
    }


def _scaling(style: StyleFile, config: Mapping[str, Any]) -> _Scaling:
    if config.get("peft_type", "LORA") != "LORA" or config.get("use_dora"):
        raise ExportError(f"{style.path} is no plain LoRA; engines are built with plain low-rank styles")
    start = str(config.get("init_lora_weights")).lower()
    if start.startswith(_OTHER_BASES):
        raise ExportError(f"{style.path}: its init_lora_weights is {start!r}, which changes the base model")
    for name in _UNSERVED:
        if config.get(name):
            raise ExportError(f"{style.path}: its configuration sets {name}; engines are not built with it")
    try:
        rank, alpha = float(config["r"]), float(config["lora_alpha"])
        ranks, alphas = (_patterns(config.get(name) or {}) for name in ("rank_pattern", "alpha_pattern"))
    except (KeyError, TypeError, ValueError, AttributeError, re.error) as error:
        raise ExportError(f"{style.path}: its configuration lacks r or lora_alpha or holds a broken pattern") from error
    return _Scaling(style.path, rank, alpha, ranks, alphas, bool(config.get("use_rslora")))


def _patterns(said: Mapping[str, Any]) -> _Patterns:
    return tuple((re.compile(rf"(?:.*\.)?(?:{pattern})"), float(value)) for pattern, value in said.items())


def _first(patterns: _Patterns, layer: str, default: float) -> float:
    return next((value for pattern, value in patterns if pattern.fullmatch(layer)), default)


def _json(style: StyleFile, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ExportError(f"{style.path}: its configuration is no JSON object")
    return value


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
