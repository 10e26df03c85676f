"""An SD 1.x or SDXL checkpoint in diffusers layout: a folder, or a hub id. Needs no torch, no diffusers."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from export.config_defaults import complete, shape_key
from export.errors import ExportError
from export.folders import WEIGHT_FILES, digest_of, download, is_hub_id, open_weights, read_json, weight_files
from export.specs import FAMILIES, Architecture, Graph, Projection, TextEncoder, control_component
from export.weights import Joined, Weights

PIPELINES: Final[Mapping[str, str]] = {
    "StableDiffusionPipeline": "sd1",
    "StableDiffusionImg2ImgPipeline": "sd1",
    "StableDiffusionInpaintPipeline": "sd1",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusionXLInpaintPipeline": "sdxl",
}
"""The family of each kind of pipeline that is served."""
COMPONENTS: Final = ("text_encoder", "unet", "vae")
CLASSES: Final[Mapping[str, Mapping[str, str]]] = {
    "sd1": {"text_encoder": "CLIPTextModel", "unet": "UNet2DConditionModel", "vae": "AutoencoderKL"},
    "sdxl": {
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
    },
}
_PATTERNS: Final = (
    *("model_index.json", "scheduler/*.json", "tokenizer/*", "tokenizer_2/*"),
    *(
        f"{component}/{name}"
        for component in dict.fromkeys(component for classes in CLASSES.values() for component in classes)
        for name in ("*.json", *(f"{stem}*.safetensors" for stem in WEIGHT_FILES))
    ),
)
"""What is downloaded of a hub id."""
_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
"""A checkpoint may carry its name as ``_name_or_path``; one that was a path says nothing to others."""
_ATTENTION: Final = re.compile(r"(.+\.attn[12]\.to_(?:q|k|v|out\.0))\.weight")
# What the UNet is told besides (sample, timestep, text): a checkpoint that sets another is another kind of network.
_ADDED: Final[Mapping[str, str | None]] = {"sd1": None, "sdxl": "text_time"}
_PLAIN: Final = {"sd1": "a plain SD 1.x UNet", "sdxl": "SDXL's base UNet"}
_UNSERVED_UNET_KEYS: Final = ("class_embed_type", "encoder_hid_dim", "time_cond_proj_dim")
_CONTROL_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,30}")
# A ControlNet is half a copy of the UNet that it belongs to.
_SHARED_WITH_UNET: Final = ("cross_attention_dim", "block_out_channels", "addition_embed_type")


@dataclass(frozen=True)
class Checkpoint:
    """Configs are read, weights are opened when asked for."""

    folder: Path
    name: str
    configs: Mapping[str, Mapping[str, Any]]
    """Of every network, the scheduler and the pipeline; what the networks' own are silent about is filled in."""
    family: str = "sd1"
    controlnets: Mapping[str, Path] = field(default_factory=dict)
    """Folders of the ControlNets to be fused with the UNet, by the name that jobs use."""
    companions: Mapping[str, Path] = field(default_factory=dict)
    """Folders of the networks served beside the checkpoint and no part of it, by their model's name."""

    @property
    def components(self) -> tuple[str, ...]:
        """Every network: those of the checkpoint, then the ControlNets."""
        return (*CLASSES[self.family], *map(control_component, self.controlnets))

    def folder_of(self, component: str) -> Path:
        """Where a network's config and weights lie."""
        controlnets = {control_component(name): folder for name, folder in self.controlnets.items()}
        return {**controlnets, **self.companions}.get(component, self.folder / component)

    def weights(self, component: str) -> Weights:
        """Tensors of one component under the names that today's diffusers and transformers give them."""
        return open_weights(self.folder_of(component))

    def weights_of(self, graph: Graph) -> Mapping[str, NDArray[Any]]:
        """All tensors that a graph holds; those of fused ControlNets have their component's name and a dot in front."""
        if not graph.controls:
            return self.weights(graph.component)
        return Joined(
            {"": self.weights(graph.component), **{f"{name}.": self.weights(name) for name in graph.controls}}
        )

    def digest(self, component: str) -> str:
        """What ``Weights.digest`` says of one component."""
        return digest_of(self.folder_of(component))

    def digest_of(self, graph: Graph) -> str:
        """What a graph's weights are called: its component's digest, or one of all its components' together."""
        return self.digest(graph.component) if not graph.controls else self._digest_together(graph.components)

    @property
    def weights_sha256(self) -> str:
        """One name for all weights together."""
        return self._digest_together(self.components)

    def _digest_together(self, components: Iterable[str]) -> str:
        """SHA-256 over the lines ``component digest``, components sorted."""
        lines = "".join(f"{component} {self.digest(component)}\n" for component in sorted(components))
        return hashlib.sha256(lines.encode()).hexdigest()

    @property
    def architecture(self) -> Architecture:
        """What the tensor table needs."""
        unet, vae = self.configs["unet"], self.configs["vae"]
        return Architecture(
            family=FAMILIES[self.family],
            encoders=tuple(
                _text_encoder(name, self.configs[name]) for name in CLASSES[self.family] if name.startswith("text_")
            ),
            latent_channels=vae["latent_channels"],
            vae_scale_factor=2 ** (len(vae["block_out_channels"]) - 1),
            latent_multiple=2 ** (len(unet["block_out_channels"]) - 1),
            attention=tuple(_projections(self.weights("unet"))),
            controls=tuple(self.controlnets),
            depth_size_px=self.configs["depth"]["size_px"] if "depth" in self.companions else None,
            upscale_factor=self.configs["upscaler"]["upscale"] if "upscaler" in self.companions else None,
            is_inpainting=unet["in_channels"] > vae["latent_channels"],
        )

    def shape_key(self, component: str) -> str:
        """What the traced graphs of one component depend on; weights are no part of it."""
        return shape_key(component, self.configs[component])


def open_checkpoint(path_or_id: str, controlnets: Mapping[str, Path] | None = None) -> Checkpoint:
    """The checkpoint in a folder, or of a hub id such as ``owner/name``, with the ControlNets in those folders.

    Raises ExportError for anything that is no complete SD 1.x or SDXL checkpoint in diffusers layout.
    """
    checkpoint = _open(path_or_id)
    for name, folder in (controlnets or {}).items():
        checkpoint = _with_controlnet(checkpoint, name, folder.resolve())
    return checkpoint


def _open(path_or_id: str) -> Checkpoint:
    path = Path(path_or_id)
    if path.is_file():
        raise ExportError(
            f"{path} is a file; a diffusers folder is served (convert it with diffusers' from_single_file)"
        )
    if path.is_dir():
        return _read_folder(path.resolve())
    if is_hub_id(path_or_id):
        return replace(_read_folder(download(path_or_id, _PATTERNS)), name=path_or_id)
    raise ExportError(f"{path_or_id} is neither a folder nor a hub id of the form owner/name")


def _read_folder(folder: Path) -> Checkpoint:
    index = folder / "model_index.json"
    if not index.is_file():
        raise ExportError(f"{folder} is not a diffusers checkpoint: it has no model_index.json")
    said = read_json(index)
    pipeline = str(said.get("_class_name"))
    if pipeline not in PIPELINES:
        raise ExportError(f"{folder} is a {pipeline}; {' and '.join(PIPELINES)} are served")
    family = PIPELINES[pipeline]
    configs = {
        component: complete(component, read_json(folder / component / "config.json")) for component in CLASSES[family]
    }
    configs["scheduler"] = read_json(folder / "scheduler" / "scheduler_config.json")
    configs["pipeline"] = said
    _check_classes(folder, family, configs)
    for component in CLASSES[family]:
        weight_files(folder / component)
    name = str(said.get("_name_or_path") or "")
    return Checkpoint(folder, name if _NAME.fullmatch(name) else folder.name, configs, family)


def _with_controlnet(checkpoint: Checkpoint, name: str, folder: Path) -> Checkpoint:
    if not _CONTROL_NAME.fullmatch(name):
        raise ExportError(f"--controlnet is {name}={folder}; a name of small letters, digits and _ is served")
    config = complete(control_component(name), read_json(folder / "config.json"))
    if config.get("_class_name") != "ControlNetModel":
        raise ExportError(f"{folder} is a {config.get('_class_name')}; ControlNetModel is served")
    for key in _SHARED_WITH_UNET:
        if config.get(key) != checkpoint.configs["unet"].get(key):
            raise ExportError(
                f"{folder} has {key} {config.get(key)}, which the UNet of {checkpoint.name} has not "
                f"({checkpoint.configs['unet'].get(key)}): they do not belong together"
            )
    if (config.get("conditioning_channels", 3), config.get("global_pool_conditions", False)) != (3, False):
        raise ExportError(f"{folder} sees no picture of three channels as it is; only such ControlNets are served")
    weight_files(folder)
    return replace(
        checkpoint,
        configs={**checkpoint.configs, control_component(name): config},
        controlnets={**checkpoint.controlnets, name: folder},
    )


def _text_encoder(component: str, config: Mapping[str, Any]) -> TextEncoder:
    pooled_width = config["projection_dim"] if component == "text_encoder_2" else config["hidden_size"]
    return TextEncoder(component, config["hidden_size"], pooled_width)


def _projections(weights: Weights) -> Iterator[Projection]:
    for name in sorted(weights):
        if (found := _ATTENTION.fullmatch(name)) is not None:
            width_out, width_in = weights[name].shape
            yield Projection(found[1], width_out, width_in)


def _check_classes(folder: Path, family: str, configs: Mapping[str, Mapping[str, Any]]) -> None:
    unet, vae = configs["unet"], configs["vae"]
    for component, expected in CLASSES[family].items():
        config = configs[component]
        found = config.get("_class_name") or (config.get("architectures") or ["nothing"])[0]
        if found != expected:
            raise ExportError(f"{folder / component} is a {found}; {expected} is served")
    for key in ("addition_embed_type", *_UNSERVED_UNET_KEYS):
        if unet.get(key) != (_ADDED[family] if key == "addition_embed_type" else None):
            raise ExportError(f"{folder / 'unet'} sets {key} to {unet.get(key)}; {_PLAIN[family]} is served")
    latents = vae["latent_channels"]
    if unet["in_channels"] not in (latents, 2 * latents + 1):
        raise ExportError(
            f"{folder / 'unet'} takes {unet['in_channels']} channels and the VAE makes {latents}; "
            f"{latents}, or {2 * latents + 1} for inpainting, are served"
        )
    widths = [configs[name]["hidden_size"] for name in CLASSES[family] if name.startswith("text_")]
    if unet["cross_attention_dim"] != sum(widths):
        raise ExportError(
            f"{folder} pairs a text encoder of width {' + '.join(map(str, widths))} "
            f"with a UNet that expects {unet['cross_attention_dim']}"
        )
