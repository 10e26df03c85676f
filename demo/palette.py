"""The demo world's colours, and the canvas that scenes are painted on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

Rgb = tuple[int, int, int]
Point = tuple[float, float]

SUPERSAMPLING = 2
HORIZON = 0.6

SKIES: dict[str, tuple[Rgb, Rgb]] = {
    "day": ((70, 152, 226), (196, 228, 246)),
    "dawn": ((150, 160, 222), (255, 208, 192)),
    "dusk": ((92, 62, 132), (250, 152, 88)),
    "night": ((14, 20, 54), (46, 60, 114)),
}
CLOUDY_SKY: dict[str, Rgb] = {
    "day": (176, 190, 204),
    "dawn": (200, 184, 192),
    "dusk": (150, 112, 122),
    "night": (34, 40, 60),
}
SKY_GREYING = {"clear": 0.0, "cloudy": 0.3, "rain": 0.75, "snow": 0.45, "fog": 0.7}
CLOUDS: dict[str, Rgb] = {
    "day": (252, 252, 253),
    "dawn": (250, 226, 224),
    "dusk": (214, 150, 140),
    "night": (84, 94, 130),
}
RAIN_CLOUDS: dict[str, Rgb] = {
    "day": (126, 138, 154),
    "dawn": (146, 138, 156),
    "dusk": (104, 82, 102),
    "night": (58, 64, 86),
}
AMBIENT: dict[str, tuple[float, float, float]] = {
    "day": (1.0, 1.0, 1.0),
    "dawn": (1.0, 0.93, 0.92),
    "dusk": (0.88, 0.74, 0.76),
    "night": (0.40, 0.46, 0.66),
}
OBJECT_AMBIENT: dict[str, tuple[float, float, float]] = {
    "day": (1.0, 1.0, 1.0),
    "dawn": (1.0, 0.98, 0.97),
    "dusk": (0.97, 0.92, 0.92),
    "night": (0.82, 0.83, 0.9),
}
GROUNDS: dict[str, tuple[Rgb, Rgb]] = {
    "sea": ((56, 142, 178), (22, 92, 142)),
    "hills": ((150, 196, 110), (104, 166, 84)),
    "desert": ((240, 208, 150), (224, 180, 114)),
    "snowfield": ((226, 234, 246), (244, 247, 252)),
}
PAINTS: dict[str, Rgb] = {
    "red": (214, 36, 40),
    "orange": (242, 126, 22),
    "yellow": (250, 210, 36),
    "green": (22, 128, 58),
    "blue": (36, 72, 212),
    "purple": (126, 48, 168),
    "pink": (246, 112, 176),
    "white": (248, 248, 246),
    "black": (30, 30, 36),
}
SUN: dict[str, Rgb] = {"day": (255, 226, 84), "dawn": (255, 176, 96), "dusk": (255, 208, 96), "night": (255, 226, 84)}
MOON: Rgb = (246, 242, 216)
MIST: dict[str, Rgb] = {
    "day": (226, 230, 233),
    "dawn": (236, 218, 218),
    "dusk": (196, 164, 166),
    "night": (86, 94, 122),
}
SAND: Rgb = (228, 204, 150)
SAIL: Rgb = (250, 246, 236)
WOOD: Rgb = (112, 72, 44)
ROOF: Rgb = (92, 62, 60)
PANE: Rgb = (255, 236, 150)
AMBIENT_DROP: dict[str, Rgb] = {
    "day": (150, 180, 214),
    "dawn": (190, 190, 216),
    "dusk": (170, 150, 180),
    "night": (120, 134, 176),
}


def mix(a: Rgb, b: Rgb, share: float) -> Rgb:
    """Colour `a` with `share` (0 to 1) of `b` in it."""
    return (
        round(a[0] + (b[0] - a[0]) * share),
        round(a[1] + (b[1] - a[1]) * share),
        round(a[2] + (b[2] - a[2]) * share),
    )


def lit(colour: Rgb, light: tuple[float, float, float]) -> Rgb:
    """`colour` under a coloured light (factors 0 to 1 for red, green, blue)."""
    return (round(colour[0] * light[0]), round(colour[1] * light[1]), round(colour[2] * light[2]))


@dataclass
class Canvas:
    """A supersampled picture under work; lengths are in `unit`s of the picture's shorter side."""

    image: Image.Image
    pen: ImageDraw.ImageDraw
    width: int
    height: int
    unit: float
    rng: random.Random

    def polygon(self, points: Sequence[Point], colour: Rgb) -> None:
        """A filled polygon; points in pixels of the canvas."""
        self.pen.polygon(list(points), fill=colour)

    def disc(self, x: float, y: float, radius: float, colour: Rgb, squash: float = 1.0) -> None:
        """A filled circle, or a flat ellipse for `squash` below 1."""
        self.pen.ellipse((x - radius, y - radius * squash, x + radius, y + radius * squash), fill=colour)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Rgb) -> None:
        """A filled upright rectangle."""
        self.pen.rectangle((left, top, right, bottom), fill=colour)

    def wobble(self, spread: float) -> float:
        """A small number between -spread and +spread, always the same for the same scene."""
        return self.rng.uniform(-spread, spread)
