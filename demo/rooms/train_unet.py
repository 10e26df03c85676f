"""Trains the staging UNet and its two ControlNets together: `python -m demo.rooms.train_unet --rooms DIR ...`.

As `demo.train_unet` (v-prediction, min-SNR weights, small pictures first), with these differences. The ControlNets see
the *empty* room's edges and depth, since that is what a photograph to be staged has. Most noise holds a trace of the
empty room, as much of it as is left where staging starts from there, and the furnished one is still what is wanted:
traces of a bare floor must not mean that it stays bare. And latents that furniture changes
weigh more than the walls around it, which staging keeps from the photograph anyway.

The UNet inpaints: besides the noise it sees a mask and the empty room's latents around it (nine channels). Without
them little tells it a wall's colour: at strength 0.8 the noise is 8.5 times as strong as the room under it, and forty
times as what tells one room's walls from another's.

Three quarters of a ControlNet's cost lie in the layers that bring its picture down to the latents' size. Here they are
random, of unit variance (Mishkin & Matas, 2016), and stay so: what they make of a room is computed once.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from demo.latents import BLOCK_PX, RAW_SPREAD, SCALED_SPREAD, block_latents
from demo.rooms.captions import empty_caption, furnished_caption, unwanted
from demo.rooms.paint import load
from demo.rooms.rooms import Room, room_of
from demo.rooms.train_text import POOLED, WIDTHS
from demo.train_unet import MIN_SNR, alphas_cumprod, mistake_captions, noise_like
from demo.training import Lesson, Teacher, parser_of, start, train

TIME_WIDTH = 16
CONTROLS = ("depth", "canny")
FURNITURE_WEIGHT = 4.0
CHANGED = 0.15
"""Scaled latents that furniture moves by more than this count as changed."""
FROM_EMPTY = 0.7
"""Share of the samples that are on their way from an empty room to the furnished one."""
STARTS = 600, 850
"""Timesteps that staging starts from."""
LEAST_WEIGHT = 0.6
"""As in `demo.train_unet`, but more: where staging starts, all of a room is decided within a few steps."""
WHOLE = 0.1
"""Share of masks that cover everything."""
TONE_WEIGHT, TONE_CELLS = 4.0, 4
"""Weight of the error that is the same over a quarter of the height: a wall whose tone is off is seen at once, and was
by estimate under a tenth of the loss."""
OUTSIDE = 0.2
"""What an error outside the mask weighs, where staging throws away whatever is made."""
WRONG_CAPTIONS = 0.1
NO_CAPTION = 0.1
EMPTY = 0.06
"""Share of rooms that stay empty, by their caption too."""
SMALL_SHARE = 0.85
STAGED, REFINED = 850, 600
"""Staging begins below the first timestep, and above it only one sample in eight is learned. Full-sized pictures are
learned below the second: staging composes at half the size, and refines from there."""
SMALL_BATCH = 8


def new_networks() -> nn.ModuleDict:
    """An untrained UNet with SDXL's inputs and the shape of the demo's other one, and a ControlNet for each control."""
    shared = {
        "block_out_channels": (32, 64, 128, 192),
        "layers_per_block": 1,
        "attention_head_dim": (1, 2, 4, 6),
        "cross_attention_dim": sum(WIDTHS),
        "norm_num_groups": 16,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": TIME_WIDTH,
        "projection_class_embeddings_input_dim": POOLED + 6 * TIME_WIDTH,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    }
    unet = UNet2DConditionModel(
        in_channels=9,
        sample_size=40,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        **shared,
    )
    controls = {
        name: ControlNetModel(conditioning_embedding_out_channels=(8, 16, 24, 32), **shared) for name in CONTROLS
    }
    return nn.ModuleDict({"unet": unet, **controls})


@torch.no_grad()
def start_from_scenes(networks: nn.ModuleDict, scenes: UNet2DConditionModel) -> None:
    """Gives all networks what the demo's other UNet has learned of noise and edges; words and sizes they learn anew."""
    known = scenes.state_dict()
    for network in networks.values():
        for name, weights in network.state_dict().items():
            learned = known.get(name)
            if learned is not None and learned.numel() == weights.numel():
                weights.copy_(learned.view_as(weights))  # a convolution of one pixel is a linear layer
            elif name == "conv_in.weight":
                weights[:, :4], weights[:, 4:] = known[name], 0.0  # of mask and masked room nothing is known yet


@dataclass(frozen=True, eq=False)
class Sample:
    """One room to learn from; arrays as in `demo.rooms.paint.Shard`, without the first axis."""

    room: Room
    furnished: NDArray[np.float16]
    empty: NDArray[np.float16]
    edges: NDArray[np.uint8]
    depth: NDArray[np.uint8]
    seen: dict[str, Tensor] = field(default_factory=dict)
    """What the fixed layers of a ControlNet made of it, float16 [32,h,w], by the ControlNet's name."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Scaled latents [n,4,h,w], captions, and by ControlNet what it sees.

    ``mask`` and what of it furniture changed are [n,1,h,w]; outside the mask the room stays empty.
    """

    wanted: Tensor
    empty: Tensor
    mask: Tensor
    changed: Tensor
    texts: list[str]
    controls: dict[str, Tensor]


@dataclass
class Pool:
    """The rooms painted so far, by latent rows and columns."""

    folder: Path
    samples: dict[tuple[int, int], list[Sample]] = field(default_factory=dict)
    seen: set[Path] = field(default_factory=set)
    embeddings: dict[str, Any] = field(default_factory=dict)

    def refresh(self) -> None:
        """Takes in shards that were painted since."""
        for path in sorted(self.folder.glob("*x*-*.npz")):
            if path in self.seen:
                continue
            self.seen.add(path)
            shard = load(path)
            rows, columns = shard.furnished.shape[2:]
            rooms = range(shard.first, shard.first + len(shard.furnished))
            arrays = zip(map(room_of, rooms), shard.furnished, shard.empty, shard.edges, shard.depth, strict=True)
            self.samples.setdefault((rows, columns), []).extend(Sample(*one) for one in arrays)

    def shape(self, spent: float, rng: random.Random) -> tuple[tuple[int, int], int]:
        """Latent size of the next batch, and how many rooms are in it: small ones first, full ones later."""
        small = spent < SMALL_SHARE or rng.random() < 0.06
        sizes = [size for size in self.samples if (max(size) < 64) == small] or list(self.samples)
        size = rng.choices(sizes, [len(self.samples[one]) for one in sizes])[0]
        return size, max(3, round(SMALL_BATCH * 32 * 48 / (size[0] * size[1])))

    def batch(self, size: tuple[int, int], count: int, names: tuple[str, ...], rng: random.Random) -> Batch:
        """So many rooms of this size, with fresh captions."""
        chosen = [rng.choice(self.samples[size]) for _ in range(count)]
        scale = SCALED_SPREAD / RAW_SPREAD
        furnished = torch.from_numpy(np.stack([one.furnished for one in chosen])).float() * scale
        empty = torch.from_numpy(np.stack([one.empty for one in chosen])).float() * scale
        bare = torch.tensor([rng.random() < EMPTY for _ in chosen])[:, None, None, None]
        texts = [
            empty_caption(one.room, rng) if still else furnished_caption(one.room, rng)
            for one, still in zip(chosen, bare.flatten().tolist(), strict=True)
        ]
        texts = [unwanted(rng) if rng.random() < NO_CAPTION else text for text in texts]
        mask = torch.stack([random_mask(*size, rng) for _ in chosen])
        wanted = torch.where(bare | (mask == 0), empty, furnished)
        changed = ((wanted - empty).abs().amax(1, keepdim=True) > CHANGED).float()
        made = {name: torch.stack([self._seen(name, one) for one in chosen]).float() for name in names}
        return Batch(wanted, empty, mask, changed, texts, made)

    @torch.no_grad()
    def _seen(self, name: str, one: Sample) -> Tensor:
        if name not in one.seen:
            one.seen[name] = fixed_layers(self.embeddings[name], control_picture(name, one)[None])[0].half()
        return one.seen[name]


def random_mask(rows: int, columns: int, rng: random.Random) -> Tensor:
    """Much like the masks that staging finds, [1,rows,columns]: the floor and some wall, openings left out."""
    mask = torch.zeros(1, rows, columns)
    if rng.random() < WHOLE:
        return mask + 1
    top, margin = round(rows * rng.uniform(0.15, 0.5)), rng.choice((0, 1, 1, 2))
    mask[:, top : rows - margin, margin : columns - margin] = 1
    for _ in range(rng.choice((0, 0, 1, 2))):
        left, wide = rng.randrange(columns), round(columns * rng.uniform(0.08, 0.25))
        mask[:, : round(rows * rng.uniform(0.3, 0.75)), left : left + wide] = 0
    return mask


def grey(scale: float) -> Tensor:
    """Scaled latents [4,1,1] of what covers a masked picture."""
    return torch.from_numpy(block_latents(np.full((1, BLOCK_PX, BLOCK_PX, 3), 128, np.uint8))[0]) * scale


def control_picture(name: str, one: Sample) -> Tensor:
    """What a ControlNet is shown of an empty room, [3,8h,8w] from 0 to 1."""
    rows, columns = one.empty.shape[1:]
    if name == "canny":
        return torch.from_numpy(np.unpackbits(one.edges, axis=-1)).float().expand(3, -1, -1)
    small = torch.from_numpy(one.depth)[None, None].float() / 255
    return functional.interpolate(small, (rows * BLOCK_PX, columns * BLOCK_PX), mode="bilinear")[0].expand(3, -1, -1)


def fixed_layers(embedding: Any, pictures: Tensor) -> Tensor:
    """The layers of a ControlNet's embedding that do not learn: [n,3,8h,8w] to [n,32,h,w]."""
    seen = functional.silu(embedding.conv_in(pictures.contiguous(memory_format=torch.channels_last)))
    for block in embedding.blocks:
        seen = functional.silu(block(seen))
    return seen


@torch.no_grad()
def spread_evenly(embedding: Any, pictures: Tensor) -> None:
    """Gives every fixed layer an output of unit variance on these pictures, channel by channel."""
    seen = pictures
    for layer in (embedding.conv_in, *embedding.blocks):
        made = layer(seen)
        layer.weight /= made.std(dim=(0, 2, 3))[:, None, None, None] + 1e-4
        layer.bias.copy_(-layer(seen).mean(dim=(0, 2, 3)) + layer.bias)
        seen = functional.silu(layer(seen))


def fix_embeddings(networks: nn.ModuleDict, pool: Pool, fresh: bool) -> None:
    """From now on a ControlNet is given what its fixed layers made of a picture; ``fresh`` ones are spread first."""
    for name in CONTROLS:
        network: Any = networks[name]
        embedding = network.controlnet_cond_embedding
        if fresh:
            samples = next(iter(pool.samples.values()))[:24]
            spread_evenly(embedding, torch.stack([control_picture(name, one) for one in samples]))
        for layer in (embedding.conv_in, *embedding.blocks):
            layer.requires_grad_(requires_grad=False)
        pool.embeddings[name] = embedding
        embedding.forward = embedding.conv_out.forward


@dataclass
class Reader:
    """Turns captions into what SDXL's UNet is told."""

    tokenizer: CLIPTokenizer
    first: CLIPTextModel
    second: CLIPTextModelWithProjection

    @staticmethod
    def load(folder: Path) -> Reader:
        """The frozen encoders in a folder of `demo.rooms.train_text`, or in a checkpoint's."""
        return Reader(
            CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            CLIPTextModel.from_pretrained(folder / "text_encoder").float().eval(),
            CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2").float().eval(),
        )

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """States before the last layer [n,77,160] and pooled text [n,64]."""
        ids = self.tokenizer(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
        made = [encoder(input_ids=ids, output_hidden_states=True) for encoder in (self.first, self.second)]
        return torch.cat([one.hidden_states[-2] for one in made], dim=-1), made[1].text_embeds


def velocity_loss(networks: nn.ModuleDict, batch: Batch, reader: Reader, alphas: Tensor, rng: random.Random) -> Tensor:
    """Weighted square error of v on the way from noise, or from an empty room under noise, to the wanted one."""
    count, _, rows, columns = batch.wanted.shape
    most = torch.where(torch.rand(count) < 0.125, 1000, STAGED) if max(rows, columns) < 64 else torch.tensor(REFINED)
    timesteps = (torch.rand(count) * most).long()
    a = alphas[timesteps][:, None, None, None]
    noise = noise_like(batch.wanted) + traces(timesteps, alphas) * (batch.empty - batch.wanted)
    noisy = a.sqrt() * batch.wanted + (1 - a).sqrt() * noise
    velocity = a.sqrt() * noise - (1 - a).sqrt() * batch.wanted
    states, pooled = reader(mistake_captions(batch.texts, timesteps, rng, WRONG_CAPTIONS))
    size = torch.tensor([[rows * BLOCK_PX, columns * BLOCK_PX, 0, 0, rows * BLOCK_PX, columns * BLOCK_PX]])
    told = {"text_embeds": pooled, "time_ids": size.float().expand(count, -1)}
    with torch.autocast("cpu", torch.bfloat16):
        covered = torch.where(batch.mask > 0, grey(SCALED_SPREAD / RAW_SPREAD), batch.empty)
        seen = torch.cat([noisy, batch.mask, covered], dim=1)
        made = _predicted(networks, seen, timesteps, states, told, batch.controls)
    snr = (a / (1 - a)) * SCALED_SPREAD**2
    weight = snr.clamp(max=MIN_SNR) / (snr + 1) + LEAST_WEIGHT
    focus = OUTSIDE + (1 - OUTSIDE) * batch.mask + (FURNITURE_WEIGHT - 1) * batch.changed
    error = (made.float() - velocity).square() * focus / focus.mean(dim=(2, 3), keepdim=True)
    tones = functional.avg_pool2d(made.float() - velocity, rows // TONE_CELLS).square() * (1 - a)
    loss: Tensor = (error * weight).mean() + TONE_WEIGHT * tones.mean()
    return loss


def traces(timesteps: Tensor, alphas: Tensor) -> Tensor:
    """How much of the empty room is in the noise at these timesteps, [n,1,1,1]; 0 where noise is nothing but that.

    Noise over an empty room at timestep s is noise over the furnished one that holds sqrt(a / (1 - a)) of what is
    missing, a the signal's share at s; a sampler that predicts rightly carries this noise down to 0.
    """
    starts = torch.randint(*STARTS, timesteps.shape)
    share = (alphas[starts] / (1 - alphas[starts])).sqrt()
    begun = (timesteps <= starts) & (torch.rand(timesteps.shape) < FROM_EMPTY)
    return (share * begun)[:, None, None, None]


def _predicted(
    networks: nn.ModuleDict,
    seen: Tensor,
    timesteps: Tensor,
    states: Tensor,
    told: dict[str, Tensor],
    controls: dict[str, Tensor],
) -> Tensor:
    """The UNet's v, with what the ControlNets add to it that are shown something; they see the noise alone."""
    down, middle, unet = None, None, networks["unet"]
    for name, picture in controls.items():
        downs, mid = networks[name](seen[:, :4], timesteps, states, picture, added_cond_kwargs=told, return_dict=False)
        down = downs if down is None else [one + other for one, other in zip(down, downs, strict=True)]
        middle = mid if middle is None else middle + mid
    made: Tensor = unet(
        seen,
        timesteps,
        states,
        added_cond_kwargs=told,
        down_block_additional_residuals=down,
        mid_block_additional_residual=middle,
    ).sample
    return made


def shown(rng: random.Random) -> tuple[str, ...]:
    """Which ControlNets see something in the next batch."""
    return rng.choices(((), ("depth",), ("canny",), CONTROLS), (0.15, 0.3, 0.15, 0.4))[0]


def save(networks: Any, out: Path) -> None:
    """Writes `unet`, `controlnet_depth` and `controlnet_canny`."""
    network: Any
    for name, network in networks.items():
        network.save_pretrained(out / ("unet" if name == "unet" else f"controlnet_{name}"))


def load_networks(folder: Path) -> nn.ModuleDict:
    """What :func:`save` wrote."""
    controls = {name: ControlNetModel.from_pretrained(folder / f"controlnet_{name}") for name in CONTROLS}
    return nn.ModuleDict({"unet": UNet2DConditionModel.from_pretrained(folder / "unet"), **controls})


class Rooms(Teacher):
    """Draws batches of painted rooms for the networks."""

    def __init__(self, networks: nn.ModuleDict, pool: Pool, reader: Reader, seed: int) -> None:
        super().__init__(seed)
        self.networks, self.pool, self.reader, self.alphas = networks, pool, reader, alphas_cumprod()

    def refresh(self) -> None:
        self.pool.refresh()

    def lesson(self, spent: float) -> Lesson:
        size, count = self.pool.shape(spent, self.shared)
        batch = self.pool.batch(size, count, shown(self.shared), self.own)
        return Lesson(velocity_loss(self.networks, batch, self.reader, self.alphas, self.own), size, count)


def run(args: argparse.Namespace) -> None:
    """One of the processes that train together."""
    networks = load_networks(args.resume) if args.resume else new_networks()
    if args.resume is None:
        start_from_scenes(networks, UNet2DConditionModel.from_pretrained(args.scenes))
    network: Any
    for network in networks.values():
        network.set_attn_processor(AttnProcessor())
        network.to(memory_format=torch.channels_last)
    pool = Pool(args.rooms)
    pool.refresh()
    fix_embeddings(networks, pool, fresh=args.resume is None)
    train(networks, new_networks(), Rooms(networks, pool, Reader.load(args.text), args.seed), save, args)


def main() -> None:
    """Command line."""
    parser = parser_of(__doc__, minutes=60, seed=22)
    parser.add_argument("--rooms", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--scenes", type=Path, default=Path("demo/checkpoint/unet"), help="the UNet to begin with")
    start(run, parser.parse_args())


if __name__ == "__main__":
    main()
