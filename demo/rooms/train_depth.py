"""Trains the demo's depth network on drawn rooms: `python -m demo.rooms.train_depth --minutes 8 --out DIR`.

A small GLPN (Kim et al., arXiv 2201.07436) that says metres. It sees every room squeezed to a square, as it is served.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import GLPNConfig, GLPNForDepthEstimation

from demo.rooms.rooms import HELD_OUT_FROM, room_of
from demo.rooms.view import render

EDGE_PX = 256
SIZES_PX = ((256, 256), (256, 192), (256, 160), (192, 256))
"""Width and height that rooms are drawn at before they are squeezed."""
MAX_DEPTH_M = 10
SCALE_SHARE = 0.5
"""How much of a picture's common factor the loss forgives; 1 would forgive all of it."""
SMALL_SHARE = 0.6
"""Of the time: so long it sees rooms half as large, four times as many of them."""


@dataclass(frozen=True, eq=False)
class Rooms:
    """Pictures uint8 [n,256,256,3] and how far each pixel is, float16 [n,256,256] in metres."""

    pictures: NDArray[np.uint8]
    depth_m: NDArray[np.float16]


def new_network() -> Any:
    """An untrained network of a quarter of a million weights."""
    shape = GLPNConfig(
        hidden_sizes=[16, 32, 48, 64],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 3, 4],
        mlp_ratios=[2, 2, 2, 2],
        decoder_hidden_size=32,
        drop_path_rate=0.0,
        max_depth=MAX_DEPTH_M,
    )
    return GLPNForDepthEstimation(shape)


def draw(first: int, count: int) -> Rooms:
    """Rooms of consecutive numbers in every size, every other one furnished."""
    pictures, depths = [], []
    for index in range(count):
        width, height = SIZES_PX[index // 2 % len(SIZES_PX)]
        view = render(room_of(first + index), width, height, furnished=index % 2 == 0)
        pictures.append(np.asarray(Image.fromarray(view.picture).resize((EDGE_PX, EDGE_PX), Image.Resampling.BILINEAR)))
        rows, columns = (np.arange(EDGE_PX) * side // EDGE_PX for side in (height, width))
        depths.append((1 / np.maximum(view.inverse_depth[np.ix_(rows, columns)], 1 / MAX_DEPTH_M)).astype(np.float16))
    return Rooms(np.stack(pictures), np.stack(depths))


def batch_of(rooms: Rooms, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Random rooms, some mirrored, each in another light: pictures [count,3,256,256] from 0 to 1, and metres."""
    chosen = rng.integers(len(rooms.pictures), size=count)
    turn = slice(None, None, -1) if rng.random() < 0.5 else slice(None)
    pictures = rooms.pictures[chosen][:, :, turn].astype(np.float32) / 255
    light = rng.uniform(0.75, 1.2, (count, 1, 1, 1)) * rng.uniform(0.95, 1.05, (count, 1, 1, 3))
    lit = np.clip(pictures * light, 0, 1) ** rng.uniform(0.8, 1.25, (count, 1, 1, 1))
    values = torch.from_numpy(np.ascontiguousarray(lit.transpose(0, 3, 1, 2), np.float32))
    return values, torch.from_numpy(np.ascontiguousarray(rooms.depth_m[chosen][:, :, turn], np.float32))


def loss_of(made: Tensor, depth_m: Tensor) -> Tensor:
    """The scale-invariant error of log depth (Eigen et al., arXiv 1406.2283)."""
    error = made.float().clamp(min=1e-3).log() - depth_m.log()
    return (error.square().mean(dim=(1, 2)) - SCALE_SHARE * error.mean(dim=(1, 2)).square()).mean()


def train(network: Any, rooms: Rooms, minutes: float, seed: int, batch: int, peak_lr: float) -> int:
    """Trains for so many minutes of the processor; says how many steps that were."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network.train()
    network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=peak_lr, weight_decay=0.01)
    begin = time.process_time()
    step = 0
    while (spent := (time.process_time() - begin) / (60 * minutes)) < 1:
        rate = peak_lr * min(1, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * spent)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        pictures, depth_m = batch_of(rooms, batch, rng)
        if spent < SMALL_SHARE:
            pictures, depth_m = functional.avg_pool2d(pictures, 2), depth_m[:, ::2, ::2]
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            seen = pictures.contiguous(memory_format=torch.channels_last)
            made = network(pixel_values=seen).predicted_depth
        loss = loss_of(made, depth_m)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 25 == 0:
            print(f"step {step} {time.process_time() - begin:.0f} s loss {loss.item():.4f} lr {rate:.1e}", flush=True)
    return step


def error_of(network: Any, rooms: Rooms) -> tuple[float, float]:
    """Median over the pixels of the relative error of inverse depth, each room at its best scale: mean, worst room."""
    network.eval()
    errors = []
    for picture, depth_m in zip(rooms.pictures, rooms.depth_m, strict=True):
        values = torch.from_numpy(picture.astype(np.float32).transpose(2, 0, 1)[None] / 255)
        with torch.no_grad():
            made = network(pixel_values=values).predicted_depth[0].float().clamp(min=1e-3).numpy()
        share = depth_m.astype(np.float32) / made
        errors.append(float(np.median(np.abs(share / np.median(share) - 1))))
    return float(np.mean(errors)), max(errors)


def save(network: Any, out: Path) -> None:
    """Writes the folder that `export/build_engines.py --depth` reads, in fp16."""
    network.half().save_pretrained(out)
    seen = {"do_rescale": True, "rescale_factor": 1 / 255, "size": {"height": EDGE_PX, "width": EDGE_PX}}
    told = {"image_processor_type": "GLPNImageProcessor", "do_resize": True, "size_divisor": 32, **seen}
    (out / "preprocessor_config.json").write_text(json.dumps(told, indent=2) + "\n", "utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=8, help="of the processor, however busy the machine is")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rooms", type=int, default=600)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", type=Path, help="go on from this folder's weights")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    network = new_network() if args.resume is None else GLPNForDepthEstimation.from_pretrained(args.resume).float()
    rooms = draw(args.seed * 10_000, args.rooms)
    steps = train(network, rooms, args.minutes, args.seed, args.batch, args.lr)
    mean, worst = error_of(network, draw(HELD_OUT_FROM, 60))
    save(network, args.out)
    print(
        f"{steps} steps; 60 held-out rooms: relative error of inverse depth {mean:.1%}, in the worst room {worst:.1%}"
    )


if __name__ == "__main__":
    main()
