"""What the orchestrator must know of a checkpoint besides its networks: ``remarque.json`` and the tokenizer's files."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from export import specs
from export.binding import Part
from export.checkpoint import Checkpoint
from export.errors import ExportError
from export.folders import read_json

FORMAT: Final = 1
DESCRIPTION_FILE: Final = "remarque.json"
PARTS_FILE: Final = "weights.json"
BOS_TOKEN: Final = "<|startoftext|>"
EOS_TOKEN: Final = "<|endoftext|>"
_PREVIEW_LATENTS: Final = (8, 4, 16, 16)
_PREVIEW_SEED: Final = 7

Decode = Callable[[NDArray[np.float32]], NDArray[np.uint8]]
"""Latents [n,4,h,w] -> pictures uint8 [n,8h,8w,3]."""


def describe(checkpoint: Checkpoint, graphs: Sequence[specs.Graph], name: str, decode: Decode) -> dict[str, Any]:
    """The content of ``remarque.json``; ``decode`` is the built VAE decoder."""
    architecture = checkpoint.architecture
    return {
        "format": FORMAT,
        "name": name,
        "family": checkpoint.family,
        "weights_sha256": checkpoint.weights_sha256,
        "models": {graph.name: checkpoint.digest_of(graph) for graph in graphs},
        "scheduler": _schedule(checkpoint.configs["scheduler"]),
        "latent_channels": architecture.latent_channels,
        "vae_scale_factor": architecture.vae_scale_factor,
        "cross_attention_dim": architecture.text_width,
        "max_tokens": specs.MAX_TOKENS,
        "max_chunks": specs.MAX_CHUNKS,
        "min_size_px": architecture.family.edges_px[0],
        "max_size_px": architecture.family.edges_px[1],
        **_native_size(checkpoint),
        "size_step_px": architecture.latent_multiple * architecture.vae_scale_factor,
        "layers": layers_of(checkpoint),
        **styles_of(graphs),
        **({"pad_ids": padding} if (padding := pad_ids_of(checkpoint)) else {}),
        **_second_encoder(checkpoint),
        **({"controls": list(architecture.controls)} if architecture.controls else {}),
        **({"inpainting": True} if architecture.is_inpainting else {}),
        **({"depth": {"size_px": architecture.depth_size_px}} if architecture.depth_size_px else {}),
        **({"upscaler": {"factor": architecture.upscale_factor}} if architecture.upscale_factor else {}),
        "preview": fit_preview(decode, architecture.latent_channels),
    }


def _native_size(checkpoint: Checkpoint) -> dict[str, int]:
    """The edge that the UNet was trained at, where its config says one."""
    edge = checkpoint.configs["unet"].get("sample_size")
    return {"native_size_px": edge * checkpoint.architecture.vae_scale_factor} if isinstance(edge, int) else {}


def layers_of(checkpoint: Checkpoint) -> dict[str, dict[str, list[int]]]:
    """The weight's shape of every linear and convolutional layer that a style can change, by network and name."""
    return {
        component: {
            name.removesuffix(".weight"): list(weight.shape)
            for name, weight in checkpoint.weights(component).items()
            # Normalisations have one dimension; a token's embedding has two, and is no layer.
            if name.endswith(".weight") and weight.ndim in (2, 4) and not name.startswith("embeddings.")
        }
        for component in checkpoint.components
        if component == "unet" or component.startswith("text_encoder")
    }


def describe_parts(parts: Mapping[str, Sequence[Part]]) -> dict[str, Any]:
    """The content of a model's ``weights.json``: in which files each layer's weight lies, and in which form."""
    layers = {tensor.removesuffix(".weight"): [asdict(part) for part in forms] for tensor, forms in parts.items()}
    return {"format": FORMAT, "layers": layers}


def styles_of(graphs: Sequence[specs.Graph]) -> dict[str, Any]:
    """How the UNet's input ``style`` is laid out, if it has one; the layers' shapes are among all layers' own."""
    style = next((graph.style for graph in graphs if graph.style is not None), None)
    if style is None:
        return {}
    return {"style": {"rank": style.rank, "layers": [projection.layer for projection in style.layers]}}


def fit_preview(decode: Decode, channels: int) -> dict[str, Any]:
    """The matrix and bias of ``rgb = latents @ matrix + bias``, rgb from 0 to 1, nearest to what the VAE decodes.

    Least squares over smooth random latents (white noise is nothing a VAE has seen), each pixel's cell averaged.
    """
    rows, _, height, width = _PREVIEW_LATENTS
    latents = _smooth_latents((rows, channels, height, width))
    pictures = decode(latents).astype(np.float64) / 255.0
    cell = pictures.shape[1] // height
    colours = pictures.reshape(rows, height, cell, width, cell, 3).mean(axis=(2, 4)).reshape(-1, 3)
    values = latents.transpose(0, 2, 3, 1).reshape(-1, channels).astype(np.float64)
    design = np.concatenate([values, np.ones((len(values), 1))], axis=1)
    solution = np.linalg.lstsq(design, colours, rcond=None)[0]
    return {"matrix": solution[:channels].round(5).tolist(), "bias": solution[channels].round(5).tolist()}


def write_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    """``vocab.json`` and ``merges.txt``, also where the checkpoint holds only the newer ``tokenizer.json``."""
    source = checkpoint.folder / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    names = ("vocab.json", "merges.txt")
    try:
        if all((source / name).is_file() for name in names):
            for name in names:
                (folder / name).write_bytes((source / name).read_bytes())
            return
        model = json.loads((source / "tokenizer.json").read_text("utf-8"))["model"]
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), "utf-8")
        (folder / "merges.txt").write_text("\n".join(("#version: 0.2", *merges)) + "\n", "utf-8")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{source} holds no CLIP tokenizer (vocab.json and merges.txt, or tokenizer.json)") from error


def vocabulary_of(folder: Path) -> dict[str, int]:
    """The ids of a tokenizer's tokens."""
    if (folder / "vocab.json").is_file():
        return read_json(folder / "vocab.json")
    vocabulary: dict[str, int] = read_json(folder / "tokenizer.json").get("model", {}).get("vocab", {})
    return vocabulary


def pad_ids_of(checkpoint: Checkpoint) -> dict[str, int]:
    """What text encoders pad with other than the end token: "!" for SD 2.x's, and for the second of SDXL's."""
    pad_ids = {}
    for encoder in checkpoint.architecture.encoders:
        folder = checkpoint.folder / encoder.component.replace("text_encoder", "tokenizer")
        token, vocabulary = _pad_token(folder), vocabulary_of(folder)
        if token not in vocabulary:
            raise ExportError(f"{folder} pads with {token!r}, which its vocabulary has not")
        if token != EOS_TOKEN:
            pad_ids[encoder.component] = vocabulary[token]
    return pad_ids


def _pad_token(folder: Path) -> str:
    """As transformers reads it: a file of special tokens overrules the tokenizer's config."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        said = read_json(folder / name).get("pad_token") if (folder / name).is_file() else None
        if said is not None:
            return str(said["content"] if isinstance(said, dict) else said)
    return EOS_TOKEN


def _second_encoder(checkpoint: Checkpoint) -> dict[str, Any]:
    """What SDXL's second tokenizer may not differ in, and what its pipeline does without a negative prompt."""
    if "text_encoder_2" not in checkpoint.components:
        return {}
    first, second = (vocabulary_of(checkpoint.folder / name) for name in ("tokenizer", "tokenizer_2"))
    if first != second:
        raise ExportError(f"{checkpoint.folder} has two tokenizers of different vocabularies; one vocabulary is served")
    silent = checkpoint.configs["pipeline"].get("force_zeros_for_empty_prompt", True)
    return {"zeros_for_no_negative": bool(silent)}


def _schedule(config: Mapping[str, Any]) -> dict[str, Any]:
    """The scheduler's config as it lies there: what it leaves out is each sampler's own business, as in diffusers.

    Infinite numbers are left out too (``lambda_min_clipped``: "do not clip"), for JSON knows none.
    """
    if config.get("trained_betas") is not None:
        raise ExportError("the scheduler config lists trained_betas; a beta_schedule by name is served")
    infinite = {key for key, value in config.items() if isinstance(value, float) and not math.isfinite(value)}
    return {key: value for key, value in config.items() if key not in infinite and not key.startswith("_")}


def _smooth_latents(shape: tuple[int, int, int, int]) -> NDArray[np.float32]:
    """Noise of standard deviation 1 whose finest detail is four latents wide."""
    rows, channels, height, width = shape
    coarse = np.random.default_rng(_PREVIEW_SEED).standard_normal((rows, channels, height // 4, width // 4))
    smooth = coarse
    for axis, size in ((2, height), (3, width)):
        smooth = np.apply_along_axis(_stretch, axis, smooth, size)
    smooth /= smooth.std(axis=(0, 2, 3), keepdims=True)
    return smooth.astype(np.float32)


def _stretch(line: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    return np.interp(np.linspace(0, len(line) - 1, size), np.arange(len(line)), line)
