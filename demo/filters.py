"""The demo's styles as filters: what a drawn scene looks like in each, and how its colours are read again.

A style must show in what the UNet's attention can change (it sits at squares of 16 px and larger) and in what the
autoencoder keeps (mean colour and spread of lightness of 8 px squares). So a style here is a change of all colours
together with marks of 16 px and more: outlines, blotches, borders. `unfiltered` undoes the change of colours
alone, pixel by pixel, since the demo's score asks for colours by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Pixels = NDArray[np.float32]
"""Red, green and blue from 0 to 1: float32 [height, width, 3]."""


@dataclass(frozen=True)
class Tone:
    """A change of all colours: saturation, then lightness by factor, then a share of one colour mixed in."""

    saturation: float
    light: float
    tint: tuple[float, float, float]
    share: float

    def __call__(self, pixels: Pixels) -> Pixels:
        """The changed colours."""
        grey = pixels.mean(axis=-1, keepdims=True)
        vivid = (grey + (pixels - grey) * self.saturation) * self.light
        return np.asarray(vivid * (1 - self.share) + np.array(self.tint, np.float32) * self.share, np.float32)

    def undone(self, pixels: Pixels) -> Pixels:
        """The colours before the change, 0 to 1."""
        vivid = (pixels - np.array(self.tint, np.float32) * self.share) / (1 - self.share) / self.light
        grey = vivid.mean(axis=-1, keepdims=True)
        return np.asarray(np.clip(grey + (vivid - grey) / self.saturation, 0, 1), np.float32)


@dataclass(frozen=True)
class Style:
    """A change of colours and the marks that are made on top of it."""

    tone: Tone
    marks: Callable[[Pixels, Pixels, np.random.Generator], Pixels]


def filtered(name: str, picture: Image.Image, seed: int) -> Image.Image:
    """The picture in the style of this name; `seed` places the marks that lie by chance."""
    style, plain = STYLES[name], _pixels(picture)
    toned = style.tone(plain)
    return _image(style.marks(plain, toned, np.random.default_rng(seed)))


def unfiltered(name: str, picture: Image.Image) -> Image.Image:
    """The picture with the style's change of colours undone; its marks stay."""
    return _image(STYLES[name].tone.undone(_pixels(picture)))


def _pixels(picture: Image.Image) -> Pixels:
    return np.asarray(np.asarray(picture.convert("RGB"), np.float32) / 255, np.float32)


def _image(pixels: Pixels) -> Image.Image:
    return Image.fromarray(np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8))


def _blurred(pixels: Pixels, radius: float) -> Pixels:
    blurred = _image(pixels).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(np.asarray(blurred, np.float32) / 255, np.float32)


def _edges(plain: Pixels, width: float) -> Pixels:
    """How strongly a border between two colours runs here, 0 to 1 [height, width, 1], in a band so many pixels wide.

    Small marks (birds, rain, panes) are blurred away first, since outlines would cover them.
    """
    height, broad = plain.shape[:2]
    small = _image(plain).resize((broad // 2, height // 2), Image.Resampling.BOX).filter(ImageFilter.MedianFilter(5))
    span = _pixels(small.filter(ImageFilter.MaxFilter(3))) - _pixels(small.filter(ImageFilter.MinFilter(3)))
    hard = np.clip((span.max(axis=-1) - 0.06) / 0.06, 0, 1).astype(np.float32)
    soft = _image(np.clip(_blurred(hard, width / 7) * width / 6.5, 0, 1))
    band = np.asarray(soft.resize((broad, height), Image.Resampling.BICUBIC), np.float32) / 255
    return np.asarray(band[..., None], np.float32)


def _blotches(shape: tuple[int, ...], size: float, rng: np.random.Generator) -> Pixels:
    """Smooth chance, mean 0 and standard deviation 1 [height, width], in blotches of so many pixels."""
    rows, columns = (int(side / size) + 3 for side in shape[:2])
    coarse = Image.fromarray(rng.standard_normal((rows, columns)).astype(np.float32))
    smooth = np.asarray(coarse.resize((int(columns * size), int(rows * size)), Image.Resampling.BICUBIC), np.float32)
    cut = smooth[: shape[0], : shape[1]]
    return np.asarray(cut / cut.std(), np.float32)


def _border_distance(shape: tuple[int, ...]) -> Pixels:
    """Pixels to the nearest side of the picture [height, width]."""
    down, across = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    nearest = np.minimum(np.minimum(down, shape[0] - 1 - down), np.minimum(across, shape[1] - 1 - across))
    return np.asarray(nearest, np.float32)


def _ink(plain: Pixels, toned: Pixels, rng: np.random.Generator) -> Pixels:
    """Dark outlines on tinted paper."""
    line = _edges(plain, 8.0)
    return np.asarray(toned * (1 - line) + np.array((0.06, 0.06, 0.1), np.float32) * line, np.float32)


def _watercolour(plain: Pixels, toned: Pixels, rng: np.random.Generator) -> Pixels:
    """Soft shapes with darker rims, uneven pigment, bare paper all around."""
    wet = _blurred(toned, 5)
    pigment = 0.11 * _blotches(plain.shape, 48, rng) + 0.05 * _blotches(plain.shape, 20, rng)
    bare = np.clip((44 + 14 * _blotches(plain.shape, 64, rng) - _border_distance(plain.shape)) / 16, 0, 1)[..., None]
    washed = PAPER - (PAPER - wet) * (1 + pigment[..., None] + 0.25 * _edges(plain, 12.0))
    return np.asarray(washed * (1 - bare) + PAPER * bare, np.float32)


def _glass(plain: Pixels, toned: Pixels, rng: np.random.Generator) -> Pixels:
    """Glowing panes of uneven glass, held by black lead."""
    lead = _edges(plain, 9.0)
    uneven = 1 + 0.14 * _blotches(plain.shape, 40, rng)[..., None]
    return np.asarray(toned * uneven * (1 - lead), np.float32)


def _batik(plain: Pixels, toned: Pixels, rng: np.random.Generator) -> Pixels:
    """Deep dyes, and pale lines where wax lay."""
    line = _edges(plain, 8.0)
    return np.asarray(toned * (1 - line) + PAPER * line, np.float32)


PAPER = np.array((0.99, 0.98, 0.95), np.float32)
STYLES: Mapping[str, Style] = {
    "ink": Style(Tone(0.85, 1.0, (0.98, 0.96, 0.9), 0.22), _ink),
    "watercolour": Style(Tone(0.9, 1.0, (0.99, 0.98, 0.95), 0.2), _watercolour),
    "glass": Style(Tone(1.45, 1.0, (0.5, 0.5, 0.5), 0.0), _glass),
    "batik": Style(Tone(1.2, 0.9, (0.2, 0.1, 0.3), 0.05), _batik),
}
