"""A picture of how much a style changes each block, drawn with Pillow alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from orchestrator.diffusion.lora_strength import KINDS, BlockStrength

# Okabe and Ito's colours: told apart by everybody, and in grey.
COLOURS: Final = dict(zip(KINDS, ("#0072b2", "#e69f00", "#009e73", "#b0b0b0"), strict=True))
WIDTH_PX: Final = 960
ROW_PX: Final = 34
_BAR_PX: Final = 20
_LEFT_PX, _RIGHT_PX, _TOP_PX, _BOTTOM_PX = 150, 90, 112, 40
_INK: Final = "#222222"
_PALE: Final = "#777777"
_LINE: Final = "#e4e4e4"
# Drawn so much larger and made smaller again: Pillow's lines and bars have no smooth edges of their own.
_FINE: Final = 2


@dataclass(frozen=True, slots=True)
class _Canvas:
    """Draws in pixels of the finished picture."""

    draw: "ImageDraw.ImageDraw"

    def text(self, at: tuple[float, float], words: str, size_px: int, colour: str = _INK, anchor: str = "lm") -> float:
        """Writes and gives the width."""
        font = ImageFont.load_default(size=size_px * _FINE)
        self.draw.text((at[0] * _FINE, at[1] * _FINE), words, colour, font, anchor)
        return float(font.getlength(words)) / _FINE

    def box(self, left: float, top: float, right: float, bottom: float, colour: str) -> None:
        if (right - left) * _FINE >= 1:
            self.draw.rectangle((left * _FINE, top * _FINE, right * _FINE - 1, bottom * _FINE - 1), colour)


def draw_strengths(blocks: Sequence[BlockStrength], title: str, subtitle: str) -> Image.Image:
    """A bar for each block as long as its norm; the colours share it out by what they add to its square."""
    height_px = _TOP_PX + ROW_PX * len(blocks) + _BOTTOM_PX
    image = Image.new("RGB", (WIDTH_PX * _FINE, height_px * _FINE), "white")
    canvas = _Canvas(ImageDraw.Draw(image))
    canvas.text((24, 30), title, 22)
    canvas.text((24, 56), subtitle, 14, _PALE)
    _legend(canvas, blocks)
    largest = max((block.norm for block in blocks), default=0.0) or 1.0
    room_px = WIDTH_PX - _LEFT_PX - _RIGHT_PX
    step = _round_step(largest)
    for i in range(int(largest / step) + 1):
        x = _LEFT_PX + room_px * i * step / largest
        canvas.box(x, _TOP_PX - 6, x + 1, height_px - _BOTTOM_PX, _LINE)
        canvas.text((x, height_px - _BOTTOM_PX + 14), f"{i * step:.4g}", 13, _PALE, "mm")
    for i, block in enumerate(blocks):
        _bar(canvas, block, _TOP_PX + ROW_PX * i, room_px / largest)
    return image.reduce(_FINE)


def _legend(canvas: _Canvas, blocks: Sequence[BlockStrength]) -> None:
    x = 24.0
    for kind, colour in COLOURS.items():
        if any(kind in block.by_kind for block in blocks):
            canvas.box(x, 78, x + 12, 90, colour)
            x += 20 + canvas.text((x + 18, 84), kind, 14) + 22


def _bar(canvas: _Canvas, block: BlockStrength, top_px: float, px_per_norm: float) -> None:
    middle_px = top_px + ROW_PX / 2
    canvas.text((_LEFT_PX - 12, middle_px), block.name, 15, anchor="rm")
    x, whole = float(_LEFT_PX), block.norm**2 or 1.0
    for kind in KINDS:
        if kind in block.by_kind:
            length_px = block.norm * px_per_norm * block.by_kind[kind] ** 2 / whole
            canvas.box(x, middle_px - _BAR_PX / 2, x + length_px, middle_px + _BAR_PX / 2, COLOURS[kind])
            x += length_px
    canvas.text((x + 8, middle_px), f"{block.norm:.3g}", 14, _PALE)


def _round_step(largest: float) -> float:
    """1, 2 or 5 times a power of ten, so that four to eight lines fit below ``largest``."""
    power: float = 10.0 ** math.floor(math.log10(largest))
    return next(factor * power for factor in (0.2, 0.5, 1.0, 2.0) if largest / (factor * power) < 8)
