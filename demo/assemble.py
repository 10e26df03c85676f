"""Puts trained parts together as a diffusers folder: `python -m demo.assemble --unet DIR ... --out demo/checkpoint`."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

NAME = "remarque-demo"


def scheduler() -> DPMSolverMultistepScheduler:
    """DPM-Solver++ 2M on SD 1.x's noise levels, for a network that predicts v."""
    return DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        algorithm_type="dpmsolver++",
        solver_order=2,
        steps_offset=1,
    )


def assemble(unet: Path, vae: Path, text_encoder: Path, tokenizer: Path, out: Path) -> None:
    """Writes `out` anew, weights in half precision, tokenizer files as they were trained."""
    networks = {
        "unet": UNet2DConditionModel.from_pretrained(unet),
        "vae": AutoencoderKL.from_pretrained(vae),
        "text_encoder": CLIPTextModel.from_pretrained(text_encoder),
    }
    pipeline = StableDiffusionPipeline(
        **networks,
        tokenizer=CLIPTokenizer.from_pretrained(tokenizer),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(out)
    for path in (out / "tokenizer").iterdir():
        path.unlink()
    for path in tokenizer.iterdir():
        shutil.copy(path, out / "tokenizer" / path.name)
    tidy(out, NAME)


def tidy(out: Path, name: str) -> None:
    """Takes this machine's paths out of the settings, names the checkpoint and makes every file readable."""
    for path in out.rglob("*.json"):
        if path.name == "config.json":
            settings = json.loads(path.read_text())
            settings.pop("_name_or_path", None)
            path.write_text(json.dumps(settings, indent=2) + "\n")
    index = out / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_name_or_path": name}, indent=2) + "\n")
    for path in out.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    for part in ("unet", "vae", "text-encoder", "tokenizer", "out"):
        parser.add_argument(f"--{part}", type=Path, required=True)
    args = parser.parse_args()
    assemble(args.unet, args.vae, args.text_encoder, args.tokenizer, args.out)


if __name__ == "__main__":
    main()
