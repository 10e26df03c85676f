"""Puts the trained parts together as an SDXL folder: `python -m demo.rooms.assemble --unet DIR ... --out DIR`."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, ControlNetModel, StableDiffusionXLInpaintPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from demo.assemble import scheduler, tidy
from demo.rooms.train_unet import CONTROLS

NAME = "remarque-rooms"


def assemble(unet: Path, vae: Path, text: Path, out: Path) -> None:
    """Writes `out` anew, weights in half precision, each ControlNet beside the checkpoint's own folders."""
    tokenizer = CLIPTokenizer.from_pretrained(text / "tokenizer")
    pipeline = StableDiffusionXLInpaintPipeline(
        unet=UNet2DConditionModel.from_pretrained(unet / "unet"),
        vae=AutoencoderKL.from_pretrained(vae),
        text_encoder=CLIPTextModel.from_pretrained(text / "text_encoder"),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(text / "text_encoder_2"),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        scheduler=scheduler(),
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(out)
    for name in CONTROLS:
        control = ControlNetModel.from_pretrained(unet / f"controlnet_{name}")
        control.to(dtype=torch.float16).save_pretrained(out / f"controlnet_{name}")
    for folder in (out / "tokenizer", out / "tokenizer_2"):
        shutil.rmtree(folder)
        shutil.copytree(text / "tokenizer", folder)
    tidy(out, NAME)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    for part in ("unet", "vae", "text", "out"):
        parser.add_argument(f"--{part}", type=Path, required=True)
    args = parser.parse_args()
    assemble(args.unet, args.vae, args.text, args.out)


if __name__ == "__main__":
    main()
