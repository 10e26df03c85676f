"""Networks that are served beside a checkpoint and see pictures alone: one that tells depth, one that enlarges."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from export.checkpoint import Checkpoint
from export.errors import ExportError
from export.folders import WEIGHT_FILES, download, is_hub_id, open_weights, read_json, weight_files

DEPTH: Final = "depth"
UPSCALER: Final = "upscaler"
# Whether a network says how far a point is (in metres, larger is farther) or the inverse of it; None: its config says.
_IS_METRIC: Final[Mapping[str, bool | None]] = {
    "depth_anything": None,
    "depth_pro": False,
    "dpt": False,
    "glpn": True,
    "prompt_depth_anything": None,
    "zoedepth": True,
}
_PATTERNS: Final = ("config.json", "preprocessor_config.json", *(f"{stem}*.safetensors*" for stem in WEIGHT_FILES))
# What says who wrote a config, or names classes that a depth network has none of.
_TRIVIA: Final = ("_name_or_path", "dtype", "torch_dtype", "transformers_version", "id2label", "label2id")
_UPSCALER_CLASS: Final = "SRVGGNetCompact"
_UPSCALER_SHAPE: Final = ("num_feat", "num_conv", "upscale")
_ACTIVATIONS: Final = ("prelu", "relu", "leakyrelu")
_LARGEST_FACTOR: Final = 8


def with_depth(checkpoint: Checkpoint, path_or_id: str, size_px: int | None = None) -> Checkpoint:
    """``checkpoint`` with the depth network in a folder, or of a hub id, that transformers wrote.

    It sees squares of ``size_px``, or of the edge that its ``preprocessor_config.json`` names.
    """
    folder = Path(path_or_id).resolve()
    if not folder.is_dir():
        if not is_hub_id(path_or_id):
            raise ExportError(f"--depth is {path_or_id}, which is neither a folder nor a hub id of the form owner/name")
        folder = download(path_or_id, _PATTERNS)
    network = {key: value for key, value in read_json(folder / "config.json").items() if key not in _TRIVIA}
    is_metric = _says_metres(folder, network)
    seen = _seen(folder)
    edge_px = _edge_px(folder, seen) if size_px is None else size_px
    step_px = _step_px(network, seen)
    if edge_px < step_px or edge_px % step_px:
        raise ExportError(f"--depth-size is {edge_px} px; {folder.name} sees edges in steps of {step_px} px")
    weight_files(folder)
    normalises = seen.get("do_normalize", "image_mean" in seen)
    told = {
        "network": network,
        "is_metric": is_metric,
        "size_px": edge_px,
        "scale": float(seen.get("rescale_factor", 1 / 255)) if seen.get("do_rescale", True) else 1.0,
        "mean": list(seen["image_mean"]) if normalises else [0.0] * 3,
        "std": list(seen["image_std"]) if normalises else [1.0] * 3,
    }
    return _beside(checkpoint, DEPTH, folder, told)


def with_upscaler(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """``checkpoint`` with the upscaler in ``folder``: Real-ESRGAN's compact architecture, weights in safetensors."""
    folder = folder.resolve()
    config = read_json(folder / "config.json")
    if config.get("_class_name") != _UPSCALER_CLASS:
        raise ExportError(f"{folder} is a {config.get('_class_name')}; {_UPSCALER_CLASS} is served")
    for key in _UPSCALER_SHAPE:
        if not isinstance(config.get(key), int) or config[key] < 1:
            raise ExportError(f"{folder}/config.json says {key} {config.get(key)}; a whole number above 0 is served")
    if not 2 <= config["upscale"] <= _LARGEST_FACTOR:
        raise ExportError(f"{folder} enlarges {config['upscale']} times; 2 to {_LARGEST_FACTOR} times are served")
    if config.get("act_type", _ACTIVATIONS[0]) not in _ACTIVATIONS:
        raise ExportError(f"{folder} has act_type {config['act_type']}; {', '.join(_ACTIVATIONS)} are served")
    if (config.get("num_in_ch", 3), config.get("num_out_ch", 3)) != (3, 3):
        raise ExportError(f"{folder} turns no picture of three channels into one of three; only such are served")
    last = f"body.{2 * config['num_conv'] + 2}.weight"
    if last not in open_weights(folder):
        raise ExportError(f"{folder} lacks {last}, which num_conv {config['num_conv']} asks for")
    return _beside(checkpoint, UPSCALER, folder, config)


def _beside(checkpoint: Checkpoint, name: str, folder: Path, config: Mapping[str, Any]) -> Checkpoint:
    return replace(
        checkpoint,
        configs={**checkpoint.configs, name: config},
        companions={**checkpoint.companions, name: folder},
    )


def _says_metres(folder: Path, network: Mapping[str, Any]) -> bool:
    kind = str(network.get("model_type"))
    if kind not in _IS_METRIC:
        raise ExportError(f"{folder} is a {kind}; {', '.join(_IS_METRIC)} are served as depth networks")
    says_metres = _IS_METRIC[kind]
    return network.get("depth_estimation_type") == "metric" if says_metres is None else says_metres


def _seen(folder: Path) -> Mapping[str, Any]:
    """How the network wants its pictures; without a word of it, from 0 to 1 and no more."""
    path = folder / "preprocessor_config.json"
    return read_json(path) if path.is_file() else {}


def _edge_px(folder: Path, seen: Mapping[str, Any]) -> int:
    size = seen.get("size")
    edges = {size.get("height"), size.get("width")} if isinstance(size, Mapping) else {size}
    edge_px = edges.pop()
    if edges or not isinstance(edge_px, int):
        raise ExportError(f"{folder}/preprocessor_config.json names size {size}; --depth-size gives a square's edge")
    return edge_px


def _step_px(network: Mapping[str, Any], seen: Mapping[str, Any]) -> int:
    """What edges must be a multiple of: patches, or however often the network halves them."""
    backbone = network.get("backbone_config")
    patch_px = network.get("patch_size") or (backbone.get("patch_size") if isinstance(backbone, Mapping) else None)
    said = [seen.get("size_divisor"), seen.get("ensure_multiple_of"), patch_px]
    steps = [step for step in said if isinstance(step, int)]
    return max(steps, default=32 if network.get("model_type") == "glpn" else 1)
