"""Draws the held-out prompts with a checkpoint and scores them: `python -m demo.evaluate --out DIR`.

Prints the mean share of claims kept, and the same for pictures held against the next prompt's claims. The pictures
stay in DIR, so that a person can look where the numbers come from.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from demo.captions import Claims
from demo.score import claims_from_json, fraction, score

HERE = Path(__file__).parent


def load_pipeline(checkpoint: Path) -> Any:
    """The checkpoint as diffusers loads it, in bfloat16 and silent."""
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint, torch_dtype=torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw_prompt(pipeline: Any, prompt: str, seed: int, steps: int, guidance: float, negative: str = "") -> Image.Image:
    """One 512 x 512 picture."""
    noise = torch.Generator().manual_seed(seed)
    made = pipeline(
        prompt, negative_prompt=negative, num_inference_steps=steps, guidance_scale=guidance, generator=noise
    )
    picture: Image.Image = made.images[0]
    return picture


def report(pictures: list[Image.Image], claims: list[Claims]) -> dict[str, float]:
    """Mean scores: "own", "shuffled" and one per kind of check."""
    checks: dict[str, list[float]] = defaultdict(list)
    for picture, said in zip(pictures, claims, strict=True):
        checks["own"].append(fraction(score(picture, said)))
        kept = score(picture, said, strict=True)
        checks["own, strict"].append(fraction(kept))
        for name, value in kept.items():
            checks[name].append(value)
    for picture, said in zip(pictures, claims[1:] + claims[:1], strict=True):
        checks["shuffled"].append(fraction(score(picture, said)))
    return {name: round(float(np.mean(values)), 3) for name, values in checks.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=HERE / "checkpoint")
    parser.add_argument("--prompts", type=Path, default=HERE / "prompts_heldout.json")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--score-only", action="store_true", help="score the pictures that DIR already holds")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    entries = json.loads(args.prompts.read_text(encoding="utf-8"))[args.first : args.first + args.count]
    if not args.score_only:
        pipeline = load_pipeline(args.checkpoint)
        for entry in entries:
            picture = draw_prompt(pipeline, entry["prompt"], entry["seed"], args.steps, args.guidance)
            picture.save(args.out / f"{entry['seed']}.png")
    pictures: list[Image.Image] = [Image.open(args.out / f"{entry['seed']}.png") for entry in entries]
    print(json.dumps(report(pictures, [claims_from_json(entry["claims"]) for entry in entries]), indent=1))


if __name__ == "__main__":
    main()
