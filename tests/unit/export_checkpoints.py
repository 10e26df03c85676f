"""Checkpoint folders for unit tests: true configs, weights of a few numbers, written without torch."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from export.specs import Projection

CONFIGS: dict[str, dict[str, Any]] = {
    "text_encoder": {
        "architectures": ["CLIPTextModel"],
        "hidden_size": 32,
        "vocab_size": 514,
        "transformers_version": "4.0",
    },
    "unet": {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.1",
        "in_channels": 4,
        "cross_attention_dim": 32,
        "block_out_channels": [32, 64, 64, 64],
    },
    "vae": {
        "_class_name": "AutoencoderKL",
        "latent_channels": 4,
        "block_out_channels": [8, 8, 8, 8],
        "scaling_factor": 0.18215,
    },
}
TENSORS: dict[str, dict[str, Any]] = {
    "text_encoder": {"embeddings.token_embedding.weight": np.arange(6, dtype=np.float16).reshape(2, 3)},
    "unet": {
        "conv_in.weight": np.arange(8, dtype=np.float16).reshape(2, 4),
        "conv_out.bias": np.ones(4, np.float16),
        "conv_in.bias": np.zeros(2, np.float16),
    },
    "vae": {"decoder.mid_block.attentions.0.to_q.weight": np.ones((2, 2), np.float16)},
}
WEIGHT_FILES = {
    "text_encoder": "model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}


SD15_BLOCKS = (
    *((f"down_blocks.{block}.attentions.{i}", width) for block, width in enumerate((320, 640, 1280)) for i in (0, 1)),
    ("mid_block.attentions.0", 1280),
    *(
        (f"up_blocks.{block}.attentions.{i}", width)
        for block, width in ((1, 1280), (2, 640), (3, 320))
        for i in (0, 1, 2)
    ),
)
"""Where SD 1.5's UNet attends, as published, and how wide it is there."""


def projections(blocks: Sequence[tuple[str, int]], text_width: int) -> Iterator[Projection]:
    """The attention projections of a UNet that attends in ``blocks``."""
    for block, width in blocks:
        for attention, context in (("attn1", width), ("attn2", text_width)):
            for name, width_in in (("to_k", context), ("to_out.0", width), ("to_q", width), ("to_v", context)):
                yield Projection(f"{block}.transformer_blocks.0.{attention}.{name}", width, width_in)


def write_checkpoint(folder: Path) -> Path:
    """``folder`` as ``save_pretrained`` leaves it."""
    write_json(folder / "model_index.json", {"_class_name": "StableDiffusionPipeline"})
    scheduler = {"_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler | {"beta_schedule": "scaled_linear"})
    for component, config in CONFIGS.items():
        write_json(folder / component / "config.json", config)
        save_file(TENSORS[component], folder / component / WEIGHT_FILES[component])
    write_json(folder / "tokenizer" / "vocab.json", {"a</w>": 0, "<|startoftext|>": 1, "<|endoftext|>": 2})
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    return folder


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def change_config(folder: Path, component: str, **changes: Any) -> None:
    path = folder / component / "config.json"
    write_json(path, json.loads(path.read_text()) | changes)
