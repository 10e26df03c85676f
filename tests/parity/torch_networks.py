"""The networks of a random checkpoint in torch, as the pipeline asks for them, and the checkpoint's description."""

import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection
from unit.small_checkpoint import small_checkpoint

from orchestrator.checkpoint import LAYOUTS, CheckpointInfo
from orchestrator.diffusion.schedule import NoiseSchedule
from orchestrator.diffusion.tokenizer import read_tokenizer

CLASSES = {
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
}


class TorchNetworks:
    """Fits the pipeline's ``Models``; ``networks`` are shared with diffusers' own pipelines."""

    def __init__(self, folder: Path, controls: tuple[str, ...]) -> None:
        with torch.random.fork_rng():
            kinds = CLASSES | {f"controlnet_{name}": ControlNetModel for name in controls}
            self.networks = {
                name: kind.from_pretrained(folder / name, dtype=torch.float32).eval()
                for name, kind in kinds.items()
                if (folder / name).is_dir()
            }
        self.controls = controls
        self.asked: list[str] = []

    @torch.no_grad()
    def encode_text(self, input_ids, model="text_encoder"):
        output = self.networks[model](torch.from_numpy(input_ids), output_hidden_states=True)
        if "text_encoder_2" not in self.networks:
            return output.last_hidden_state.numpy(), output.pooler_output.numpy()
        pooled = output.text_embeds if model == "text_encoder_2" else output.pooler_output
        return output.hidden_states[-2].numpy(), pooled.numpy()

    @contextmanager
    def conditioned(self, model, inputs):
        given = {name: torch.from_numpy(value) for name, value in inputs.items()}

        @torch.no_grad()
        def network(sample, timestep):
            self.asked.append(model)
            told = (torch.from_numpy(sample), torch.from_numpy(timestep[:, 0]), given["encoder_hidden_states"])
            added = {name: given[name] for name in ("text_embeds", "time_ids") if name in given}
            residuals = self._residuals(told, added, given) if model == "unet_controlnet" else {}
            seen = torch.cat((told[0], given["masked"]), dim=1) if "masked" in given else told[0]
            return self.networks["unet"](seen, *told[1:], added_cond_kwargs=added, **residuals).sample.numpy()

        yield network

    def _residuals(self, told, added, given):
        sums = None
        for index, name in enumerate(self.controls):
            seen = given[f"control_{name}"].permute(0, 3, 1, 2).float() / 255.0
            scale = given["control_scales"][:, index].reshape(-1, 1, 1, 1)
            network = self.networks[f"controlnet_{name}"]
            down, middle = network(*told, seen, conditioning_scale=scale, added_cond_kwargs=added, return_dict=False)
            residuals = [*down, middle]
            sums = residuals if sums is None else [a + b for a, b in zip(sums, residuals, strict=True)]
        return {"down_block_additional_residuals": tuple(sums[:-1]), "mid_block_additional_residual": sums[-1]}

    @torch.no_grad()
    def decode(self, latents):
        vae = self.networks["vae"]
        picture = vae.decode(torch.from_numpy(latents) / vae.config.scaling_factor).sample
        return ((picture / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()

    @torch.no_grad()
    def encode(self, picture):
        vae = self.networks["vae"]
        distribution = vae.encode(torch.from_numpy(picture).permute(0, 3, 1, 2).float() / 127.5 - 1.0).latent_dist
        return tuple((each * vae.config.scaling_factor).numpy() for each in (distribution.mean, distribution.std))


def describe(folder: Path, family: str, controls: tuple[str, ...] = ()) -> CheckpointInfo:
    """What ``remarque.json`` would say of a random checkpoint."""
    unet = json.loads((folder / "unet" / "config.json").read_text("utf-8"))
    tokenizer = read_tokenizer(folder / "tokenizer")
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text("utf-8"))
    return small_checkpoint(
        family=family,
        schedule=NoiseSchedule.from_config(scheduler),
        cross_attention_dim=unet["cross_attention_dim"],
        min_size_px=64,
        size_step_px=LAYOUTS[family].size_step_px,
        native_size_px=LAYOUTS[family].native_size_px,
        tokenizer=tokenizer,
        pad_ids={"text_encoder_2": tokenizer.vocab["!"]} if family == "sdxl" else {},
        zeros_for_no_negative=family == "sdxl",
        controls=controls,
        is_inpainting=unet["in_channels"] == 9,
    )


def picture(seed: int, width: int, height: int) -> np.ndarray:
    """Smooth coloured noise, [height,width,3] uint8."""
    coarse = np.random.default_rng(seed).uniform(0, 255, (height // 16, width // 16, 3))
    return np.clip(coarse.repeat(16, axis=0).repeat(16, axis=1), 0, 255).astype(np.uint8)


def mask(width: int, height: int) -> np.ndarray:
    """White where something may change: a block that does not lie on the grid of latents, and a soft edge."""
    made = np.zeros((height, width), np.uint8)
    made[height // 3 : height - 20, 21 : width // 2 + 5] = 255
    made[: height // 5, : width // 4] = 128
    made[height // 5 : height // 4, : width // 4] = 127
    return made
