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
_FACTOR: Final = re.compile(
    r"(.+?)(?:\.lora|_lora|\.lora_linear_layer)?\.(?:(lora_A|lora_down|down)|lora_B|lora_up|up)\.weight"
)
_PREFIXES: Final = {
    "unet.": "unet",
    "lora_unet_": "unet",
    "text_encoder.": "text_encoder",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "lora_te2_": "text_encoder_2",
}
# Attention processors of older diffusers, and how it writes a text encoder's projections.
_OLD_NAMES: Final = ((".processor", ""), (r"\.to_out$", ".to_out.0"))
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

    alpha: float
    alphas: Mapping[str, float]
    root: bool

    def of(self, layer: str, rank: int) -> float:
        found = (value for pattern, value in self.alphas.items() if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", layer))
        return next(found, self.alpha) / (math.sqrt(rank) if self.root else rank)


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
            if weight.size != delta.size:
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
    tensors = Weights([style.path])
    scalings = _scalings(style)
    pairs: dict[str, dict[str, str]] = {}
    alphas = {name.removesuffix(".alpha"): name for name in tensors if name.endswith(".alpha")}
    for name in tensors:
        if name not in alphas.values():
            layer, side = _split(style, name)
            pairs.setdefault(layer, {})[side] = name
    deltas = {}
    for written, sides in pairs.items():
        place = _place(written, known)
        if place is None:
            raise ExportError(f"{style.path}: {next(iter(sides.values()))} belongs to no layer of this checkpoint")
        if len(sides) != 2:
            raise ExportError(f"{style.path}: {next(iter(sides.values()))} has no partner; every layer has two factors")
        down, up = (tensors[sides[side]].astype(np.float32) for side in ("down", "up"))
        rank = len(down)
        if up.shape[1] != rank:
            raise ExportError(f"{style.path}: {sides['up']} has the shape {up.shape}; its partner has rank {rank}")
        alpha_name = alphas.pop(written, None)
        alpha = float(rank) if alpha_name is None else float(tensors[alpha_name].reshape(-1)[0])
        scaling = scalings.get(place[0])
        scale = alpha / rank if scaling is None else scaling.of(_bare(written)[1], rank)
        deltas[place] = np.float32(scale * style.weight) * (up.reshape(-1, rank) @ down.reshape(rank, -1))
    if alphas:
        raise ExportError(f"{style.path}: {next(iter(alphas.values()))} belongs to no layer of this checkpoint")
    return deltas


def _split(style: StyleFile, name: str) -> tuple[str, str]:
    """The layer as it is written, and which factor this is."""
    found = _FACTOR.fullmatch(name.replace(".default.", "."))
    if found is None:
        raise ExportError(
            f"{style.path}: {name} is no factor of a plain low-rank style; DoRA, LoHa, LoKr and Tucker cores "
            "are merged by the orchestrator while it serves ONNX models"
        )
    return found[1], "up" if found[2] is None else "down"


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
    try:
        return _Scaling(float(config["lora_alpha"]), config.get("alpha_pattern") or {}, bool(config.get("use_rslora")))
    except (KeyError, TypeError, ValueError) as error:
        raise ExportError(f"{style.path}: its configuration says no lora_alpha") from error


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
