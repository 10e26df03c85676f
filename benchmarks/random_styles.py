"""Style files of random factors: as large and as laid out as trained ones, for the cost and not for the look."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from orchestrator.checkpoint import CheckpointInfo

RANK = 8
STRENGTH = 0.02
"""Of the up factor: a visible change that leaves the picture a picture."""


def write_styles(folder: Path, checkpoint: CheckpointInfo, count: int) -> list[Path]:
    """``count`` files in diffusers' layout for every layer that a style may change in the UNet's attention."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_write(folder / f"style-{index}.safetensors", checkpoint, index) for index in range(count)]


def _write(path: Path, checkpoint: CheckpointInfo, seed: int) -> Path:
    generator = np.random.default_rng(seed)
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, shape in sorted(checkpoint.layers["unet"].items()):
        if ".attn1.to_" not in name and ".attn2.to_" not in name:
            continue
        down = generator.standard_normal((RANK, shape[1]), np.float32) / np.float32(np.sqrt(shape[1]))
        up = generator.standard_normal((shape[0], RANK), np.float32) * np.float32(STRENGTH)
        tensors |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
    save_file(tensors, path)
    return path
