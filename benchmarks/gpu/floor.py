"""The compute floor: floating point operations of a UNet's row over the card's measured matrix rate."""

import json
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

EDGE = {"cuda": 8192, "cpu": 1024}
REPEAT = 10


def device() -> torch.device:
    """The card, or the CPU that stands in for it."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name() -> str:
    """As it goes into a file's name."""
    return torch.cuda.get_device_name().replace(" ", "-").lower() if torch.cuda.is_available() else "cpu"


def synchronized_s() -> float:
    """The clock, once everything queued has run."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def matrix_tflops() -> float:
    """What one large matrix product reaches, fp16 on a card and fp32 on a CPU, random values; the mean of ten."""
    where = device()
    edge, dtype = EDGE[where.type], torch.float16 if where.type == "cuda" else torch.float32
    a, b = (torch.randn(edge, edge, device=where, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    begun_s = synchronized_s()
    for _ in range(REPEAT):
        a @ b
    return 2 * edge**3 * REPEAT / (synchronized_s() - begun_s) / 1e12


def tflop_per_row(checkpoint: Path, height: int, width: int) -> float:
    """Of one row of the UNet; counted on torch's meta device, so nothing is computed."""
    from diffusers import UNet2DConditionModel

    config = json.loads((checkpoint / "unet" / "config.json").read_text("utf-8"))
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
        text = torch.empty(1, 77, unet.config.cross_attention_dim)
        told = {}
        if unet.config.addition_embed_type == "text_time":
            pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
            told = {"text_embeds": torch.empty(1, pooled), "time_ids": torch.empty(1, 6)}
        with FlopCounterMode(display=False) as counter:
            unet(torch.empty(1, 4, height // 8, width // 8), torch.empty(1), text, added_cond_kwargs=told)
    return float(counter.get_total_flops()) / 1e12
