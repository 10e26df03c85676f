"""A diffusers-layout SD 1.x checkpoint: a folder, or a hub id that is downloaded once. Needs no torch, no diffusers."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

from export.config_defaults import complete, shape_key
from export.errors import ExportError
from export.specs import Architecture, Projection
from export.weights import Weights

PIPELINES: Final = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")
CLASSES: Final[Mapping[str, str]] = {
    "text_encoder": "CLIPTextModel",
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
}
COMPONENTS: Final = tuple(CLASSES)
_FILES: Final = ("diffusion_pytorch_model", "model")
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
"""A checkpoint may carry its name as ``_name_or_path``; one that was a path says nothing to others."""
_ATTENTION: Final = re.compile(r"(.+\.attn[12]\.to_(?:q|k|v|out\.0))\.weight")
# Inputs beyond (sample, timestep, text): a checkpoint that sets one of these is another kind of network.
_UNSERVED_UNET_KEYS: Final = ("addition_embed_type", "class_embed_type", "encoder_hid_dim", "time_cond_proj_dim")
_OLD_VAE_NAMES: Final[Mapping[str, str]] = {
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}


@dataclass(frozen=True)
class Checkpoint:
    """Configs are read, weights are opened when asked for."""

    folder: Path
    name: str
    configs: Mapping[str, Mapping[str, Any]]
    """Of text_encoder, unet, vae and scheduler; what the networks' own are silent about is filled in."""

    def weights(self, component: str) -> Weights:
        """Tensors of one component under the names that today's diffusers and transformers give them."""
        return _open_weights(self.folder / component)

    def digest(self, component: str) -> str:
        """What ``Weights.digest`` says of one component."""
        return _digest(self.folder / component)

    @property
    def weights_sha256(self) -> str:
        """SHA-256 over the lines ``component digest``, components sorted: one name for all weights together."""
        lines = "".join(f"{component} {self.digest(component)}\n" for component in sorted(COMPONENTS))
        return hashlib.sha256(lines.encode()).hexdigest()

    @property
    def architecture(self) -> Architecture:
        """What the tensor table needs."""
        text, unet, vae = (self.configs[component] for component in COMPONENTS)
        return Architecture(
            text_width=unet["cross_attention_dim"],
            text_pooled_width=text["hidden_size"],
            latent_channels=vae["latent_channels"],
            vae_scale_factor=2 ** (len(vae["block_out_channels"]) - 1),
            latent_multiple=2 ** (len(unet["block_out_channels"]) - 1),
            attention=tuple(_projections(self.weights("unet"))),
        )

    def shape_key(self, component: str) -> str:
        """What the traced graphs of one component depend on; weights are no part of it."""
        return shape_key(component, self.configs[component])


def open_checkpoint(path_or_id: str) -> Checkpoint:
    """The checkpoint in a folder, or of a hub id such as ``owner/name``.

    Raises ExportError for anything that is no complete SD 1.x checkpoint in diffusers layout.
    """
    path = Path(path_or_id)
    if path.is_file():
        raise ExportError(
            f"{path} is a file; a diffusers folder is served (convert it with diffusers' from_single_file)"
        )
    if path.is_dir():
        return _read_folder(path.resolve())
    if _HUB_ID.fullmatch(path_or_id):
        return replace(_read_folder(_download(path_or_id)), name=path_or_id)
    raise ExportError(f"{path_or_id} is neither a folder nor a hub id of the form owner/name")


def _read_folder(folder: Path) -> Checkpoint:
    index = folder / "model_index.json"
    if not index.is_file():
        raise ExportError(f"{folder} is not a diffusers checkpoint: it has no model_index.json")
    said = _read_json(index)
    pipeline = said.get("_class_name")
    if pipeline not in PIPELINES:
        raise ExportError(f"{folder} is a {pipeline}; {' and '.join(PIPELINES)} are served")
    configs = {
        component: complete(component, _read_json(folder / component / "config.json")) for component in COMPONENTS
    }
    configs["scheduler"] = _read_json(folder / "scheduler" / "scheduler_config.json")
    _check_classes(folder, configs)
    for component in COMPONENTS:
        _weight_files(folder / component)
    name = said.get("_name_or_path", "")
    return Checkpoint(folder, name if _NAME.fullmatch(name) else folder.name, configs)


def _projections(weights: Weights) -> Iterator[Projection]:
    for name in sorted(weights):
        if (found := _ATTENTION.fullmatch(name)) is not None:
            width_out, width_in = weights[name].shape
            yield Projection(found[1], width_out, width_in)


def _check_classes(folder: Path, configs: Mapping[str, Mapping[str, Any]]) -> None:
    text, unet, vae = (configs[component] for component in COMPONENTS)
    for component, expected in CLASSES.items():
        config = configs[component]
        found = config.get("_class_name") or (config.get("architectures") or ["nothing"])[0]
        if found != expected:
            raise ExportError(f"{folder / component} is a {found}; {expected} is served")
    for key in _UNSERVED_UNET_KEYS:
        if unet.get(key) is not None:
            raise ExportError(f"{folder / 'unet'} sets {key} to {unet[key]}; only plain SD 1.x UNets are served")
    if unet["in_channels"] != vae["latent_channels"]:
        raise ExportError(
            f"{folder / 'unet'} takes {unet['in_channels']} channels and the VAE makes {vae['latent_channels']}; "
            "inpainting and depth checkpoints are not served"
        )
    if unet["cross_attention_dim"] != text["hidden_size"]:
        raise ExportError(
            f"{folder} pairs a text encoder of width {text['hidden_size']} "
            f"with a UNet that expects {unet['cross_attention_dim']}"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ExportError(f"{path} is missing; a complete diffusers checkpoint has it") from None
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ExportError(f"{path} does not hold a JSON object")
    return value


def _weight_files(folder: Path) -> list[Path]:
    for stem in _FILES:
        for suffix in ("", ".fp16"):
            if (folder / f"{stem}{suffix}.safetensors").is_file():
                return [folder / f"{stem}{suffix}.safetensors"]
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            return sorted({folder / shard for shard in _read_json(index)["weight_map"].values()})
    if any(folder.glob("*.bin")) or any(folder.glob("*.ckpt")):
        raise ExportError(f"{folder} holds pickled weights only; safetensors are read (save_pretrained writes them)")
    raise ExportError(f"{folder} holds no weights (expected {' or '.join(f'{stem}.safetensors' for stem in _FILES)})")


@cache
def _open_weights(folder: Path) -> Weights:
    return Weights(_weight_files(folder), _todays_name)


@cache
def _digest(folder: Path) -> str:
    return _open_weights(folder).digest()


def _todays_name(stored: str) -> str | None:
    """SD 1.5 as first published names the VAE's attention and the text encoder's tensors as older libraries did."""
    name = stored.removeprefix("text_model.")
    if name == "embeddings.position_ids":
        return None
    if ".attentions." in name:
        for old, new in _OLD_VAE_NAMES.items():
            name = name.replace(old, new)
    return name


def _download(hub_id: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise ExportError(
            f"{hub_id} is no folder here, and downloading it needs: pip install huggingface-hub"
        ) from None
    patterns = ["model_index.json", "scheduler/*.json", "tokenizer/*"]
    patterns += [f"{c}/{name}" for c in COMPONENTS for name in ("*.json", *(f"{stem}*.safetensors" for stem in _FILES))]
    ignored = ["*non_ema*", "*.fp16.safetensors"]
    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns, ignore_patterns=ignored))
    except LocalEntryNotFoundError:
        raise ExportError(
            f"{hub_id} is no folder here, was not downloaded before, and the hub is out of reach"
        ) from None
    except (HfHubHTTPError, OSError) as error:
        raise ExportError(f"{hub_id} cannot be downloaded: {str(error).splitlines()[0]}") from error
