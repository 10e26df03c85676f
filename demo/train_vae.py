"""Trains the demo's AutoencoderKL on crops of drawn scenes: `python -m demo.train_vae --minutes 18 --out DIR`."""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from demo.latents import RAW_SPREAD, SCALED_SPREAD, block_latents
from demo.painting import draw
from demo.scenes import training_scene
from demo.vae_start import hold_colours, start_from_colours

CROP_PX = 96
SCENE_PX = 512
NOISE = 0.3
ENCODER_EVERY = 4


def new_vae() -> AutoencoderKL:
    """An untrained autoencoder: f = 8, 4 latent channels, no attention: 1024 x 1024 decodes in little memory."""
    stages = 4
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * stages,
        up_block_types=("UpDecoderBlock2D",) * stages,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=SCENE_PX,
        scaling_factor=SCALED_SPREAD / RAW_SPREAD,
        mid_block_add_attention=False,
    )


def paint_one(seed: int) -> NDArray[np.uint8]:
    """The training scene of this seed, uint8 [512, 512, 3]."""
    return np.asarray(draw(training_scene(random.Random(seed)), SCENE_PX, SCENE_PX))


def paint_many(first_seed: int, count: int) -> NDArray[np.uint8]:
    """Training scenes of consecutive seeds, uint8 [count, 512, 512, 3]."""
    with ProcessPoolExecutor(2) as pool:
        return np.stack(list(pool.map(paint_one, range(first_seed, first_seed + count), chunksize=16)))


def crops(pictures: NDArray[np.uint8], count: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Random square crops, some mirrored, uint8 [count, 96, 96, 3]."""
    out = np.empty((count, CROP_PX, CROP_PX, 3), np.uint8)
    for index in range(count):
        top, left = rng.integers(0, SCENE_PX - CROP_PX + 1, 2)
        piece = pictures[rng.integers(len(pictures)), top : top + CROP_PX, left : left + CROP_PX]
        out[index] = piece[:, ::-1] if rng.random() < 0.5 else piece
    return out


def picture_loss(made: Tensor, wanted: Tensor) -> Tensor:
    """Mean absolute error of colours plus that of their differences to right and lower neighbours (crisp edges)."""
    error = made - wanted
    edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return error.abs().mean() + 0.5 * edges + functional.mse_loss(made, wanted)


def encoder_loss(vae: AutoencoderKL, pixels: Tensor, latents: Tensor) -> Tensor:
    """How far the encoder is from the latents written down in `demo.latents`."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(pixels).latent_dist
    return functional.smooth_l1_loss(posterior.mean.float(), latents, beta=0.2)


def decoder_loss(vae: AutoencoderKL, pixels: Tensor, latents: Tensor) -> Tensor:
    """How far the decoder is from undoing the latents, some of them slightly wrong as a UNet's are."""
    wrong = NOISE * torch.rand(len(latents), 1, 1, 1).square() * torch.randn_like(latents)
    with torch.autocast("cpu", torch.bfloat16):
        made = vae.decode(latents + wrong).sample
    return picture_loss(made.float(), pixels)


def train(
    vae: AutoencoderKL, minutes: float, seed: int, pictures: NDArray[np.uint8], out: Path, batch: int, peak_lr: float
) -> None:
    """Trains for so many minutes on the clock, saving the averaged weights to `out` every two."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    average = new_vae()
    average.load_state_dict(vae.state_dict())
    hold_colours(vae)
    vae.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=peak_lr, weight_decay=0, betas=(0.9, 0.99))
    begin = saved = time.monotonic()
    step = 0
    while (spent := (time.monotonic() - begin) / (60 * minutes)) < 1:
        rate = peak_lr * min(1, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * spent)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        cut = crops(pictures, batch, rng)
        latents = torch.from_numpy(block_latents(cut))
        pixels = torch.from_numpy(cut).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad(set_to_none=True)
        decoding = decoder_loss(vae, pixels, latents)
        decoding.backward()  # type: ignore[no-untyped-call]
        if step % ENCODER_EVERY == 0:
            encoding = encoder_loss(vae, pixels, latents)
            encoding.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        decay = min(0.995, step / (step + 20))
        with torch.no_grad():
            for kept, now in zip(average.parameters(), vae.parameters(), strict=True):
                kept.lerp_(now, 1 - decay)
        if step % 25 == 0:
            took = time.monotonic() - begin
            print(
                f"step {step} {took:.0f} s decoder {decoding.item():.4f} encoder {encoding.item():.4f} lr {rate:.1e}",
                flush=True,
            )
        if time.monotonic() - saved > 120 or spent > 0.995:
            average.save_pretrained(out)
            saved = time.monotonic()
    average.save_pretrained(out)
    (out / "training.json").write_text(
        json.dumps({"steps": step, "minutes": minutes, "seed": seed, "scenes": len(pictures)})
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=18)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scenes", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", type=Path, help="go on from this folder's weights")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pictures = paint_many(args.seed * 1_000_000, args.scenes)
    vae = AutoencoderKL.from_pretrained(args.resume) if args.resume else new_vae()
    if not args.resume:
        start_from_colours(vae)
    train(vae, args.minutes, args.seed, pictures, args.out, args.batch, args.lr)


if __name__ == "__main__":
    main()
