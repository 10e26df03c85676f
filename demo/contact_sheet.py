"""Draws the README's sheet of sixteen prompts: `python -m demo.contact_sheet --out demo/contact_sheet.png`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from demo.evaluate import HERE, draw_prompt, load_pipeline

PROMPTS = (
    "a red boat on a calm sea at dusk",
    "a blue house in green hills by day, clouds",
    "three orange sailboats, sea, night, full moon",
    "a pink tree in a meadow at dawn",
    "yellow hot-air balloon over the desert, sun",
    "a white lighthouse by the sea at sunset, birds",
    "purple house and a green tree in the snow",
    "black boat in the fog",
    "two red houses, mountains, rain",
    "an orange tree on the hills in the evening",
    "a green hot-air balloon above the ocean, morning",
    "red lighthouse at night, moon, stars",
    "two blue boats with clouds at noon",
    "a yellow cottage in falling snow at night",
    "sand dunes at sunset with a sun on the left",
    "a pink house on the left and a blue balloon, mountains",
)
SIDE_PX, LABEL_PX, COLUMNS = 320, 26, 4


def sheet(pictures: list[Image.Image]) -> Image.Image:
    """The pictures in rows of four, each over its prompt."""
    rows = -(-len(pictures) // COLUMNS)
    page = Image.new("RGB", (COLUMNS * SIDE_PX, rows * (SIDE_PX + LABEL_PX)), (255, 255, 255))
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for index, (picture, prompt) in enumerate(zip(pictures, PROMPTS, strict=True)):
        left, top = index % COLUMNS * SIDE_PX, index // COLUMNS * (SIDE_PX + LABEL_PX)
        page.paste(picture.resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS), (left, top))
        pen.text((left + 6, top + SIDE_PX + 5), prompt, fill=(40, 40, 46), font=font)
    return page


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=HERE / "checkpoint")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pipeline = load_pipeline(args.checkpoint)
    pictures = [draw_prompt(pipeline, prompt, args.seed, args.steps, args.guidance) for prompt in PROMPTS]
    sheet(pictures).quantize(255, dither=Image.Dither.NONE).save(args.out, optimize=True)


if __name__ == "__main__":
    main()
