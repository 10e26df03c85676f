"""Writes an SD 1.x checkpoint of random weights: SD 1.5's published shape, or a tiny one for tests.

    python export/random_checkpoint.py --shape sd15 --out /tmp/sd15-random

Such a checkpoint draws noise, but exports, loads and runs exactly as the trained one of the same shape.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

_SCHEDULER: Final[Mapping[str, Any]] = {
    "_class_name": "PNDMScheduler",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
SHAPES: Final[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
    "sd15": {
        "text_encoder": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "vocab_size": 49408,
            # As published; the pooled output then reads the largest id, which is the end of the text.
            "bos_token_id": 0,
            "eos_token_id": 2,
            "pad_token_id": 1,
        },
        "unet": {
            "sample_size": 64,
            "block_out_channels": (320, 640, 1280, 1280),
            "layers_per_block": 2,
            "attention_head_dim": 8,
            "cross_attention_dim": 768,
        },
        "vae": {"sample_size": 512, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2},
    },
    "tiny": {
        "text_encoder": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "vocab_size": 514,
        },
        "unet": {
            "sample_size": 32,
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "attention_head_dim": 2,
            "cross_attention_dim": 32,
            "norm_num_groups": 8,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        },
        "vae": {
            "sample_size": 64,
            "block_out_channels": (16, 16, 32, 32),
            "layers_per_block": 1,
            "norm_num_groups": 8,
        },
    },
}


def write(folder: Path, shape: str, seed: int = 0) -> None:
    """Writes a folder that ``StableDiffusionPipeline.from_pretrained`` loads: fp16 safetensors, drawn from ``seed``."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    configs = SHAPES[shape]
    torch.manual_seed(seed)
    vocabulary = _vocabulary(configs["text_encoder"]["vocab_size"])
    first, last = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    ends = {"bos_token_id": first, "eos_token_id": last, "pad_token_id": last}
    text_config = CLIPTextConfig(**{**ends, **configs["text_encoder"]})
    blocks = len(configs["vae"]["block_out_channels"])
    vae_blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * blocks,
        "up_block_types": ("UpDecoderBlock2D",) * blocks,
        "latent_channels": 4,
    }
    networks: dict[str, Any] = {
        "text_encoder": lambda: CLIPTextModel(text_config),
        "unet": lambda: UNet2DConditionModel(**configs["unet"]),
        "vae": lambda: AutoencoderKL(**configs["vae"], **vae_blocks),
    }
    for component, make in networks.items():
        make().half().save_pretrained(folder / component)
    _write_json(folder / "scheduler" / "scheduler_config.json", _SCHEDULER)
    _write_json(folder / "model_index.json", _INDEX)
    _write_tokenizer(folder / "tokenizer", vocabulary)


_INDEX: Final[Mapping[str, Any]] = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def _vocabulary(size: int) -> dict[str, int]:
    """CLIP's byte alphabet without merges: every text tokenizes, one token a byte; the two ends are the last ids."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    tokens = letters + [f"{letter}</w>" for letter in letters]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return vocabulary | {"<|startoftext|>": size - 2, "<|endoftext|>": size - 1}


def _write_tokenizer(folder: Path, vocabulary: Mapping[str, int]) -> None:
    _write_json(folder / "vocab.json", vocabulary)
    (folder / "merges.txt").write_text("#version: 0.2\n", "utf-8")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    _write_json(folder / "tokenizer_config.json", config)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="tiny")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write(arguments.out, arguments.shape, arguments.seed)
    print(f"{arguments.out}: {arguments.shape}, seed {arguments.seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
