"""Names the style of a picture by its colours, edges and texture, with numpy and Pillow alone.

    style_of(picture)                      # "ink", "watercolour", ... or "none"
    kept_claims(picture, style, claims)    # share of its prompt's claims that it keeps, read in that style's colours

Linear discriminants over the numbers of `features`, learned from drawn scenes and the same scenes filtered
(`python -m demo.style_score --learn`), never from a generated picture. What was learned is `style_score.json`.
"""

from __future__ import annotations

import argparse
import json
import random
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from demo.filters import STYLES, filtered, unfiltered
from demo.paint_latents import scene_of
from demo.painting import draw
from demo.score import claims_from_json, fraction, score

LEARNED = Path(__file__).parent / "style_score.json"
NONE = "none"
SIDE_PX = 128
SHRINKAGE = 0.1
"""Share of the features' own variances in their covariance: a generated picture is never quite like a filtered one."""

Numbers = NDArray[np.float64]


def style_of(picture: Image.Image) -> str:
    """The likeliest of the styles' names, or "none"."""
    likeness = style_likeness(picture)
    return max(likeness, key=lambda name: likeness[name])


def style_likeness(picture: Image.Image) -> dict[str, float]:
    """How near the picture is to each style and to none: larger is nearer, differences are log odds."""
    names, weights, offsets = _learned()
    return dict(zip(names, (weights @ features(picture) + offsets).tolist(), strict=True))


def kept_claims(picture: Image.Image, style: str, claims: dict[str, Any]) -> float:
    """Share of the claims that the picture keeps, its colours read as the style's own."""
    plain = picture if style == NONE else unfiltered(style, picture)
    return fraction(score(plain, claims_from_json(claims)))


def features(picture: Image.Image) -> Numbers:
    """What a style shows in: 22 numbers of a picture's colours, border, lines and blotches."""
    small = picture.convert("RGB").resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX)
    pixels = np.asarray(small, np.float64) / 255
    return np.array([*_colours(pixels), *_border(pixels), *_lines(small, pixels), *_blotches(pixels.mean(axis=-1))])


def _colours(pixels: Numbers) -> list[float]:
    """Spread of lightness and vividness, and how warm the picture is."""
    light, vivid = pixels.mean(axis=-1), pixels.max(axis=-1) - pixels.min(axis=-1)
    warm = float((pixels[..., 0] - pixels[..., 2]).mean())
    return [*np.percentile(light, (10, 50, 90)), *np.percentile(vivid, (25, 50, 90)), warm]


def _border(pixels: Numbers) -> list[float]:
    """How white and how dark the outermost pixels are, beside the rest."""
    edge = np.ones(pixels.shape[:2], bool)
    edge[5:-5, 5:-5] = False
    white, light = pixels.min(axis=-1), pixels.mean(axis=-1)
    return [
        float(white[edge].mean() - white[~edge].mean()),
        float((white[edge] > 0.75).mean()),
        float(light[edge].mean() - light[~edge].mean()),
    ]


def _lines(small: Image.Image, pixels: Numbers) -> list[float]:
    """Thin dark and thin light marks (closing and opening by 5 pixels): strength, share, colour and balance."""
    grey = small.convert("L")
    dark = _numbers(grey.filter(ImageFilter.MaxFilter(5)).filter(ImageFilter.MinFilter(5))) - _numbers(grey)
    pale = _numbers(grey) - _numbers(grey.filter(ImageFilter.MinFilter(5)).filter(ImageFilter.MaxFilter(5)))
    lowest, highest = pixels.min(axis=-1), pixels.max(axis=-1)
    return [
        float(np.log(dark.mean() + 2e-3)),
        float(np.log(pale.mean() + 2e-3)),
        float(np.log((dark.mean() + 2e-3) / (pale.mean() + 2e-3))),
        float(((dark > 0.15) & (highest < 0.4)).mean()),
        float(((pale > 0.15) & (lowest > 0.6)).mean()),
        float((dark * (1 - highest)).sum() / (dark.sum() + 0.5)),
        float((pale * lowest).sum() / (pale.sum() + 0.5)),
    ]


def _numbers(grey: Image.Image) -> Numbers:
    return np.asarray(grey, np.float64) / 255


def _blotches(light: Numbers) -> list[float]:
    """Unevenness where nothing has an outline, at three sizes, and how much of the picture that is."""
    numbers = []
    flat = np.hypot(*np.gradient(_smoothed(light, 1))) < 0.02
    for reach in (1, 3, 7):
        marks = np.abs(_smoothed(light, reach) - _smoothed(light, 2 * reach))
        numbers.append(float(np.log(marks[flat].mean() + 1e-3)) if flat.any() else 0.0)
    return [*numbers, float(flat.mean()), float(np.log(light.std()))]


def _smoothed(light: Numbers, reach: int) -> Numbers:
    """Means over squares of 2 reach + 1 pixels."""
    size = 2 * reach + 1
    wide = np.pad(light, reach, mode="edge")
    rows = np.lib.stride_tricks.sliding_window_view(wide, size, axis=0).mean(axis=-1)
    smooth: Numbers = np.lib.stride_tricks.sliding_window_view(rows, size, axis=1).mean(axis=-1)
    return smooth


@lru_cache(maxsize=1)
def _learned() -> tuple[list[str], Numbers, Numbers]:
    content = json.loads(LEARNED.read_text(encoding="utf-8"))
    return content["names"], np.array(content["weights"]), np.array(content["offsets"])


def learn(first: int, count: int) -> dict[str, list[object]]:
    """Discriminants (Fisher, 1936; shrunk covariance) from so many drawn scenes, plain and in every style.

    Each is seen sharp and softened, since generated pictures are softer than drawn ones.
    """
    seen: dict[str, list[Numbers]] = {name: [] for name in (NONE, *STYLES)}
    for number in range(first, first + count):
        plain = draw(scene_of(number), 512, 512)
        soft = ImageFilter.GaussianBlur(random.Random(number).uniform(1, 5))
        for name, rows in seen.items():
            picture = plain if name == NONE else filtered(name, plain, number)
            rows += [features(picture), features(picture.filter(soft))]
    means = {name: np.mean(rows, axis=0) for name, rows in seen.items()}
    rest = np.concatenate([np.array(rows) - means[name] for name, rows in seen.items()])
    covariance = rest.T @ rest / len(rest)
    own = np.diag(np.diag(covariance))
    inverse = np.linalg.inv((1 - SHRINKAGE) * covariance + SHRINKAGE * own)
    weights = {name: inverse @ mean for name, mean in means.items()}
    return {
        "names": list(weights),
        "weights": [[float(f"{number:.6g}") for number in row] for row in weights.values()],
        "offsets": [float(f"{-0.5 * means[name] @ row:.6g}") for name, row in weights.items()],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learn", action="store_true", help="learn anew and write style_score.json")
    parser.add_argument("--first", type=int, default=30_000, help="number of the first scene to learn from")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("pictures", type=Path, nargs="*")
    args = parser.parse_args()
    if args.learn:
        LEARNED.write_text(json.dumps(learn(args.first, args.count)) + "\n", encoding="utf-8")
    for path in args.pictures:
        print(path, style_of(Image.open(path)))


if __name__ == "__main__":
    main()
