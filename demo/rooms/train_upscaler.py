"""Trains the demo's upscaler on crops of drawn rooms: `python -m demo.rooms.train_upscaler --minutes 6 --out DIR`."""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from demo.rooms.rooms import HELD_OUT_FROM, room_of
from demo.rooms.view import render
from export.compact_upscaler import CLASS_NAME, CompactUpscaler, Shape

SHAPE = Shape(num_feat=24, num_conv=6, upscale=2)
CROP_PX = 96
ROOM_PX = (512, 384)
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"


def new_network() -> CompactUpscaler:
    """An untrained upscaler: every layer hands the three colours on as they are, and the last adds nothing yet.

    So it begins as nearest neighbour, and its last layer learns from the pixels themselves from the first step on.
    """
    network = CompactUpscaler(SHAPE)
    *inner, last = (layer for layer in network.body if isinstance(layer, nn.Conv2d))
    with torch.no_grad():
        for layer in inner:
            layer.weight[:3] = 0.0
            layer.bias[:3] = 0.0  # type: ignore[index]
            for colour in range(3):
                layer.weight[colour, colour, 1, 1] = 1.0
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
    return network


def draw(first: int, count: int) -> NDArray[np.uint8]:
    """Rooms of consecutive numbers, every other one furnished: uint8 [count,384,512,3]."""
    width, height = ROOM_PX
    views = (render(room_of(first + index), width, height, furnished=index % 2 == 0) for index in range(count))
    return np.stack([view.picture for view in views])


def crops(pictures: NDArray[np.uint8], count: int, rng: np.random.Generator) -> Tensor:
    """Random square crops, some mirrored, [count,3,96,96] from 0 to 1."""
    out = np.empty((count, CROP_PX, CROP_PX, 3), np.uint8)
    for index in range(count):
        top, left = (rng.integers(0, side - CROP_PX + 1) for side in pictures.shape[1:3])
        piece = pictures[rng.integers(len(pictures)), top : top + CROP_PX, left : left + CROP_PX]
        out[index] = piece[:, ::-1] if rng.random() < 0.5 else piece
    return torch.from_numpy(out).permute(0, 3, 1, 2).float() / 255


def reduced(pictures: Tensor) -> Tensor:
    """Half as wide, each pixel the mean of four, in the 255 levels that a picture has."""
    return (functional.avg_pool2d(pictures, SHAPE.upscale) * 255).round() / 255


def train(network: CompactUpscaler, pictures: NDArray[np.uint8], options: argparse.Namespace) -> int:
    """Trains for so many minutes of the processor; says how many steps that were."""
    rng = np.random.default_rng(options.seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.lr, weight_decay=0, betas=(0.9, 0.99))
    begin = time.process_time()
    step = 0
    while (spent := (time.process_time() - begin) / (60 * options.minutes)) < 1:
        rate = options.lr * min(1, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * spent)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        wanted = crops(pictures, options.batch, rng)
        optimizer.zero_grad(set_to_none=True)
        loss = functional.mse_loss(network(reduced(wanted)), wanted)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 0:
            print(f"step {step} {time.process_time() - begin:.0f} s loss {loss.item():.5f} lr {rate:.1e}", flush=True)
    return step


def psnr_db(network: CompactUpscaler, pictures: NDArray[np.uint8]) -> tuple[float, float]:
    """How near enlarged pictures come to the ones they were reduced from: the network's, and bicubic ones."""
    ours: list[float] = []
    theirs: list[float] = []
    with torch.no_grad():
        for picture in pictures:
            wanted = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
            small = reduced(wanted)
            bicubic = functional.interpolate(small, scale_factor=float(SHAPE.upscale), mode="bicubic")
            for made, found in ((network(small), ours), (bicubic, theirs)):
                error = functional.mse_loss((made.clamp(0, 1) * 255).round() / 255, wanted).item()
                found.append(-10 * math.log10(max(error, 1e-10)))
    return float(np.mean(ours)), float(np.mean(theirs))


def save(network: CompactUpscaler, out: Path) -> None:
    """Writes the folder that `export/build_engines.py --upscaler` reads, in fp16."""
    out.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half().contiguous() for name, value in network.state_dict().items()}, out / WEIGHTS_FILE)
    (out / "config.json").write_text(json.dumps({"_class_name": CLASS_NAME, **asdict(SHAPE)}, indent=2) + "\n", "utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=6, help="of the processor, however busy the machine is")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rooms", type=int, default=120)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", type=Path, help="go on from this folder's weights")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    network = new_network()
    if options.resume is not None:
        network.load_state_dict(load_file(options.resume / WEIGHTS_FILE))
    steps = train(network, draw(options.seed * 20_000, options.rooms), options)
    ours, theirs = psnr_db(network, draw(HELD_OUT_FROM, 20))
    save(network, options.out)
    print(f"{steps} steps; 20 held-out rooms at twice their size: {ours:.2f} dB, bicubic {theirs:.2f} dB")


if __name__ == "__main__":
    main()
