"""Draws a few prompts in every style: `python -m demo.style_sheet --out docs/images/styles.png`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from demo.evaluate import HERE, draw_prompt
from demo.evaluate_styles import styled_pipeline
from demo.filters import STYLES
from demo.style_score import NONE

PROMPTS = (
    "a red boat on a calm sea at dusk",
    "a blue house in green hills by day, clouds",
    "two green trees in the snow, mountains, dawn",
)
SIDE_PX, LABEL_PX = 220, 26


def sheet(rows: dict[str, list[Image.Image]], prompts: tuple[str, ...]) -> Image.Image:
    """A column for each style under its name, a row for each prompt over its words."""
    page = Image.new("RGB", (len(rows) * SIDE_PX, LABEL_PX + len(prompts) * (SIDE_PX + LABEL_PX)), (255, 255, 255))
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for column, (name, pictures) in enumerate(rows.items()):
        pen.text((column * SIDE_PX + 6, 6), "no style" if name == NONE else name, fill=(40, 40, 46), font=font)
        for row, picture in enumerate(pictures):
            top = LABEL_PX + row * (SIDE_PX + LABEL_PX)
            page.paste(picture.resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS), (column * SIDE_PX, top))
    for row, prompt in enumerate(prompts):
        pen.text((6, (row + 1) * (SIDE_PX + LABEL_PX) + 6), prompt, fill=(40, 40, 46), font=font)
    return page


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=HERE / "checkpoint")
    parser.add_argument("--folder", type=Path, default=HERE / "styles")
    parser.add_argument("--prompts", nargs="+", default=list(PROMPTS))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = {}
    for name in (NONE, *STYLES):
        pipeline = styled_pipeline(args.checkpoint, None if name == NONE else args.folder / name)
        rows[name] = [draw_prompt(pipeline, prompt, args.seed, args.steps, args.guidance) for prompt in args.prompts]
    sheet(rows, tuple(args.prompts)).quantize(255, dither=Image.Dither.NONE).save(args.out, optimize=True)


if __name__ == "__main__":
    main()
