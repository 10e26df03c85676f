"""Trains the demo's UNet on latents of drawn scenes: `python -m demo.train_unet --minutes 75 --latents DIR ...`.

v-prediction (Salimans & Ho, 2022) on SD 1.x's noise levels, loss weighted by min-SNR (Hang et al., 2023). The first
part of the time sees small pictures, the rest full ones; the latents come from `demo.paint_latents`, whose
new shards are picked up while the training runs.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed as ranks
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from demo.captions import caption
from demo.latents import RAW_SPREAD, SCALED_SPREAD
from demo.paint_latents import scene_numbers, scene_of
from demo.scenes import Scene
from demo.train_text_encoder import WIDTH

MIN_SNR = 5.0
LEAST_WEIGHT = 0.2
"""Added to every weight: min-SNR alone all but ignores the noisiest steps, where the scene is decided."""
OFFSET = 0.1
"""Share of noise that is equal over the whole picture (and, again, over sixteenths of it): what shines through the
last noise level would otherwise tell the model the picture's brightness, and sampling starts without that hint."""
WRONG_CAPTIONS = 0.25
"""Share of wrong captions among the noisiest steps. It makes a caption weigh about a quarter less there, so that the
usual guidance scale of 7.5 acts as about 5 does otherwise: at full weight it drives flat colours out of gamut."""
SMALL_SHARE = 0.45
"""Share of the time given to small pictures alone."""
SYNC_STEPS = 4
"""The processes average their weights every so many steps."""
AVERAGING = 0.998
"""Decay per step of the weights' running mean, which is what the checkpoint holds."""


def new_unet() -> UNet2DConditionModel:
    """An untrained UNet with the block types of SD 1.x, but no attention at its widest level (4096 positions)."""
    return UNet2DConditionModel(
        sample_size=64,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64, 128, 192),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=(1, 2, 4, 6),
        norm_num_groups=16,
    )


def alphas_cumprod() -> Tensor:
    """Share of signal power at each of the 1000 timesteps, SD 1.x's scaled-linear betas."""
    return torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)


@dataclass
class Pool:
    """The latents painted so far, by shape (rows, columns), and their scenes."""

    folder: Path
    latents: dict[tuple[int, int], list[NDArray[np.float16]]] = field(default_factory=dict)
    scenes: dict[tuple[int, int], list[Scene]] = field(default_factory=dict)
    seen: set[Path] = field(default_factory=set)

    def refresh(self) -> None:
        """Takes in shards that were painted since."""
        for path in sorted(self.folder.glob("*x*-*.npy")):
            if path not in self.seen:
                self.seen.add(path)
                shard = np.load(path)
                shape = (shard.shape[2], shard.shape[3])
                self.latents.setdefault(shape, []).extend(shard)
                self.scenes.setdefault(shape, []).extend(map(scene_of, scene_numbers(path, len(shard))))

    def batch(self, shape: tuple[int, int], size: int, rng: random.Random) -> tuple[Tensor, list[str]]:
        """Scaled latents [size, 4, rows, columns] with a fresh caption each."""
        chosen = [rng.randrange(len(self.scenes[shape])) for _ in range(size)]
        latents = torch.from_numpy(np.stack([self.latents[shape][index] for index in chosen])).float()
        return latents * (SCALED_SPREAD / RAW_SPREAD), [caption(self.scenes[shape][index], rng) for index in chosen]


def choose_shape(pool: Pool, spent: float, rng: random.Random) -> tuple[tuple[int, int], int]:
    """Shape and size of the next batch: small pictures first, full ones later, one in eight wide or tall."""
    small = spent < SMALL_SHARE or rng.random() < 0.08
    side, size = (32, 16) if small else (64, 6)
    shape = (side, side)
    if rng.random() < 0.12:
        shape, size = rng.choice(((side, 2 * side), (2 * side, side))), size // 2
    return (shape, size) if shape in pool.scenes else ((32, 32), 16)


def noise_like(latents: Tensor) -> Tensor:
    """Noise with a little too much power in its slowest waves."""
    noise = torch.randn_like(latents)
    coarse = torch.randn(*latents.shape[:2], 4, 4)
    return (
        noise
        + OFFSET * torch.randn(*latents.shape[:2], 1, 1)
        + OFFSET * functional.interpolate(coarse, latents.shape[2:], mode="bilinear")
    )


def mistake_captions(
    texts: list[str], timesteps: Tensor, rng: random.Random, most: float = WRONG_CAPTIONS
) -> list[str]:
    """The captions, some replaced by a neighbour's: none below timestep 400, a share of ``most`` from 750 on."""
    share = ((timesteps - 400) / 350).clamp(0, 1) * most
    return [texts[index - 1] if rng.random() < share[index] else text for index, text in enumerate(texts)]


def velocity_loss(
    unet: UNet2DConditionModel, latents: Tensor, timesteps: Tensor, text: Tensor, alphas: Tensor
) -> Tensor:
    """Mean square error of v = sqrt(a) eps - sqrt(1-a) x, weighted by min(SNR, 5) / (SNR + 1) and a little more."""
    a = alphas[timesteps][:, None, None, None]
    noise = noise_like(latents)
    noisy = a.sqrt() * latents + (1 - a).sqrt() * noise
    wanted = a.sqrt() * noise - (1 - a).sqrt() * latents
    with torch.autocast("cpu", torch.bfloat16):
        made = unet(noisy, timesteps, text).sample
    snr = (a / (1 - a)).flatten() * SCALED_SPREAD**2
    weight = snr.clamp(max=MIN_SNR) / (snr + 1)
    loss: Tensor = ((made.float() - wanted).square().mean(dim=(1, 2, 3)) * (weight + LEAST_WEIGHT)).mean()
    return loss


def learning_rate(spent: float, step: int, peak: float) -> float:
    """Warm-up over 40 steps, level until 65 % of the time, then half a cosine."""
    fall = max(0.0, (spent - 0.65) / 0.35)
    return peak * min(1, (step + 1) / 40) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * fall)))


@dataclass
class Readers:
    """Turns captions into text features with the frozen text encoder."""

    tokenizer: CLIPTokenizer
    encoder: CLIPTextModel

    def __call__(self, texts: list[str]) -> Tensor:
        """Features [n, 77, width]."""
        ids = self.tokenizer(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
        with torch.no_grad():
            features: Tensor = self.encoder(input_ids=ids).last_hidden_state
        return features


def load_readers(args: argparse.Namespace) -> Readers:
    """The tokenizer and the text encoder as their folders hold them now."""
    return Readers(
        CLIPTokenizer.from_pretrained(args.tokenizer), CLIPTextModel.from_pretrained(args.text_encoder).eval()
    )


def share_weights(networks: nn.Module, spent: float) -> float:
    """Averages the weights of all processes (local SGD, Stich 2018); returns the largest share of time spent."""
    with torch.no_grad():
        flat = torch.cat([weights.flatten() for weights in networks.parameters()] + [torch.tensor([spent])])
        ranks.all_reduce(flat)
        flat /= ranks.get_world_size()
        begin = 0
        for weights in networks.parameters():
            weights.copy_(flat[begin : begin + weights.numel()].view_as(weights))
            begin += weights.numel()
    return float(flat[-1])


def take_step(unet: UNet2DConditionModel, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One update of the weights."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
    optimizer.step()


def train(unet: UNet2DConditionModel, pool: Pool, args: argparse.Namespace) -> None:
    """Trains for so many minutes on the clock; averaged weights go to `args.out` every four."""
    rank = ranks.get_rank()
    torch.manual_seed(args.seed + 1000 * rank)
    rng, shape_rng = random.Random(args.seed + 1000 * rank), random.Random(args.seed)
    average = new_unet()
    average.load_state_dict(unet.state_dict())
    optimizer = torch.optim.AdamW(unet.parameters(), lr=args.lr, weight_decay=0.01, betas=(0.9, 0.99))
    alphas = alphas_cumprod()
    begin = saved = time.monotonic()
    step, recent, spent = 0, 0.0, args.spent
    counts: dict[str, int] = {}
    while spent < 1:
        if step % 100 == 0:
            pool.refresh()
            read = load_readers(args)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(spent, step, args.lr)
        shape, size = choose_shape(pool, spent, shape_rng)
        latents, texts = pool.batch(shape, size, rng)
        timesteps = torch.randint(0, 1000, (size,))
        text = read(mistake_captions(texts, timesteps, rng))
        loss = velocity_loss(unet, latents, timesteps, text, alphas)
        take_step(unet, optimizer, loss)
        step += 1
        counts[f"{shape[0]}x{shape[1]}"] = counts.get(f"{shape[0]}x{shape[1]}", 0) + size * ranks.get_world_size()
        recent = 0.98 * recent + 0.02 * loss.item() if step > 1 else loss.item()
        if step % SYNC_STEPS == 0:
            spent = args.spent + (1 - args.spent) * (time.monotonic() - begin) / (60 * args.minutes)
            spent = share_weights(unet, spent)
            decay = min(AVERAGING, step / (step + 30)) ** SYNC_STEPS
            with torch.no_grad():
                for kept, now in zip(average.parameters(), unet.parameters(), strict=True):
                    kept.lerp_(now, 1 - decay)
        if rank == 0 and step % 48 == 0:
            print(f"step {step} {time.monotonic() - begin:.0f} s loss {recent:.4f} {counts}", flush=True)
        if rank == 0 and time.monotonic() - saved > 180:
            average.save_pretrained(args.out)
            saved = time.monotonic()
    if rank == 0:
        average.save_pretrained(args.out)
        (args.out / "training.json").write_text(
            json.dumps({"steps": step, "pictures": counts, "minutes": args.minutes, "seed": args.seed})
        )


def run(rank: int, args: argparse.Namespace) -> None:
    """One of the processes that train together; each has one thread, which on two busy cores beats one with two."""
    torch.set_num_threads(1)
    ranks.init_process_group("gloo", init_method=f"file://{args.out}/meeting", rank=rank, world_size=args.processes)
    unet = UNet2DConditionModel.from_pretrained(args.resume) if args.resume else new_unet()
    unet.set_attn_processor(AttnProcessor())  # plain products: torch's fused attention trains a third slower here
    share_weights(unet, 0.0)
    train(unet, Pool(args.latents), args)
    ranks.destroy_process_group()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latents", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--text-encoder", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=75)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--resume", type=Path, help="go on from this folder's weights")
    parser.add_argument("--spent", type=float, default=0.0, help="with --resume: share of the schedule already behind")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "meeting").unlink(missing_ok=True)
    spawn(run, (args,), nprocs=args.processes)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
