"""Style files for the demo's networks, random and strong enough to show, in kohya's names."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from orchestrator.checkpoint import CheckpointInfo

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT = ("q_proj", "fc1")


def write_style(
    path: Path, checkpoint: CheckpointInfo, seed: int, unet: tuple[str, ...] = ATTENTION, text: tuple[str, ...] = ()
) -> Path:
    """A LoRA of rank 8 for the layers whose names end so."""
    draw = np.random.default_rng(seed)
    tensors = {}
    for network, prefix, ends in (("unet", "lora_unet_", unet), ("text_encoder", "lora_te_text_model_", text)):
        for name, (out, into, *kernel) in checkpoint.layers[network].items():
            if name.endswith(ends or ("nothing",)):
                written = prefix + name.replace(".", "_")
                tensors[f"{written}.lora_down.weight"] = (
                    draw.standard_normal((8, into, *kernel)).astype(np.float16) / 12
                )
                up = draw.standard_normal((out, 8, *[1] * len(kernel))).astype(np.float16) / 25
                tensors[f"{written}.lora_up.weight"] = up
                tensors[f"{written}.alpha"] = np.array(8.0, np.float16)
    save_file(tensors, path)
    return path
