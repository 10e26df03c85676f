"""Draws held-out prompts in every style and judges them: `python -m demo.evaluate_styles --out DIR`.

Prints for each style how often `demo.style_score` names it, and the share of the prompts' claims that is kept once the
style's change of colours is undone (`demo.filters.unfiltered`). The pictures stay in DIR.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel

from demo.evaluate import HERE, draw_prompt, load_pipeline
from demo.filters import STYLES
from demo.style_score import NONE, kept_claims, style_of


def styled_pipeline(checkpoint: Path, style: Path | None) -> Any:
    """The checkpoint as diffusers loads it, with a style merged into its UNet."""
    pipeline = load_pipeline(checkpoint)
    if style is not None:
        pipeline.unet = PeftModel.from_pretrained(pipeline.unet, style).merge_and_unload().to(torch.bfloat16)
    return pipeline


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=HERE / "checkpoint")
    parser.add_argument("--folder", type=Path, default=HERE / "styles", help="a folder of PEFT folders")
    parser.add_argument("--styles", nargs="+", choices=(NONE, *STYLES), default=[NONE, *STYLES])
    parser.add_argument("--first", type=int, default=65)
    parser.add_argument("--count", type=int, default=25)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    prompts = json.loads((HERE / "prompts_heldout.json").read_text(encoding="utf-8"))
    entries = prompts[args.first : args.first + args.count]
    for style in args.styles:
        pipeline = styled_pipeline(args.checkpoint, None if style == NONE else args.folder / style)
        named, kept = Counter[str](), []
        for entry in entries:
            picture = draw_prompt(pipeline, entry["prompt"], entry["seed"], args.steps, args.guidance)
            picture.save(args.out / f"{style}-{entry['seed']}.png")
            named[style_of(picture)] += 1
            kept.append(kept_claims(picture, style, entry["claims"]))
        print(f"{style:12} named {dict(named)}  claims kept {np.mean(kept):.1%}", flush=True)


if __name__ == "__main__":
    main()
