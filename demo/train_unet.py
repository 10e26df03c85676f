"""Trains the demo's UNet on latents of drawn scenes: `python -m demo.train_unet --minutes 75 --latents DIR ...`.

v-prediction (Salimans & Ho, 2022) on SD 1.x's noise levels, loss weighted by min-SNR (Hang et al., 2023). The first
part of the time sees small pictures, the rest full ones; the latents come from `demo.paint_latents`, whose
new shards are picked up while the training runs.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from demo.captions import caption
from demo.latents import RAW_SPREAD, SCALED_SPREAD
from demo.paint_latents import scene_numbers, scene_of
from demo.scenes import Scene
from demo.train_text_encoder import WIDTH
from demo.training import Lesson, Teacher, parser_of, start, train

MIN_SNR = 5.0
LEAST_WEIGHT = 0.2
"""Added to every weight: min-SNR alone all but ignores the noisiest steps, where the scene is decided."""
OFFSET = 0.1
"""Share of noise that is equal over the whole picture (and, again, over sixteenths of it): what shines through the
last noise level would otherwise tell the model the picture's brightness, and sampling starts without that hint."""
WRONG_CAPTIONS = 0.25
"""Share of wrong captions among the noisiest steps. It makes a caption weigh about a quarter less there, so that the
usual guidance scale of 7.5 acts as about 5 does otherwise: at full weight it drives flat colours out of gamut."""
NOISIER = 0.5
"""Share of the timesteps that are drawn from the noisier half alone, where the scene is decided."""
SMALL_SHARE = 0.45
"""Share of the time given to small pictures alone."""


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


def draw_timesteps(size: int) -> Tensor:
    """Timesteps [size]: all alike, with `NOISIER` more of those from 500 on."""
    low = 500 * (torch.rand(size) < NOISIER).long()
    return low + (torch.rand(size) * (1000 - low)).long()


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


class Scenes(Teacher):
    """Draws batches of painted scenes for a UNet."""

    def __init__(self, unet: UNet2DConditionModel, pool: Pool, read: Readers, seed: int) -> None:
        super().__init__(seed)
        self.unet, self.pool, self.read, self.alphas = unet, pool, read, alphas_cumprod()

    def refresh(self) -> None:
        self.pool.refresh()

    def lesson(self, spent: float) -> Lesson:
        shape, size = choose_shape(self.pool, spent, self.shared)
        latents, texts = self.pool.batch(shape, size, self.own)
        timesteps = draw_timesteps(size)
        text = self.read(mistake_captions(texts, timesteps, self.own))
        return Lesson(velocity_loss(self.unet, latents, timesteps, text, self.alphas), shape, size)


def run(args: argparse.Namespace) -> None:
    """One of the processes that train together."""
    unet = UNet2DConditionModel.from_pretrained(args.resume) if args.resume else new_unet()
    unet.set_attn_processor(AttnProcessor())  # plain products: torch's fused attention trains a third slower here
    encoder = CLIPTextModel.from_pretrained(args.text_encoder).float().eval()
    read = Readers(CLIPTokenizer.from_pretrained(args.tokenizer), encoder)
    train(unet, new_unet(), Scenes(unet, Pool(args.latents), read, args.seed), save, args)


def save(unet: Any, out: Path) -> None:
    """Writes the UNet's folder."""
    unet.save_pretrained(out)


def main() -> None:
    """Command line."""
    parser = parser_of(__doc__, minutes=75, seed=4)
    parser.add_argument("--latents", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--text-encoder", type=Path, required=True)
    start(run, parser.parse_args())


if __name__ == "__main__":
    main()
