"""Writes an artist's name by hand, with the fonts that lie beside this file (SIL Open Font License)."""

import unicodedata
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from orchestrator.errors import SignatureInvalid

# The first has all 11172 Hangul syllables and Latin without accents; the second the accents of Western Europe.
FONTS: Final = ("NanumPen.ttf", "DancingScript-Regular.otf")
MAX_CHARACTERS: Final = 60

_SIZE_PX: Final = 160
_PADDING_PX: Final = 16
_RIM_PX: Final = 6
_INK: Final = np.array([252, 250, 244], np.float32)
_RIM: Final = np.array([18, 18, 22], np.float32)
_RIM_ALPHA: Final = 0.85
# No font may map this code point, so its picture is the one a font draws for every character it lacks.
_NO_CHARACTER: Final = "\uffff"


def write(name: str) -> NDArray[np.uint8]:
    """Gives ``name`` on one line, uint8 [h, w, 4], RGB premultiplied by alpha, cut to what is drawn.

    A name that is empty, over-long or has a character no bundled font draws raises :class:`SignatureInvalid`.
    """
    line = " ".join(unicodedata.normalize("NFC", name).split())
    if not line:
        raise SignatureInvalid("artist_name is empty; a signature needs at least one character")
    if len(line) > MAX_CHARACTERS:
        raise SignatureInvalid(f"artist_name has {len(line)} characters; a signature holds at most {MAX_CHARACTERS}")
    return _drawn(line, _font_for(line))


def _font_for(line: str) -> ImageFont.FreeTypeFont:
    """Gives the first font that draws the whole line, so that no name changes hands in its middle.

    Loaded anew for each name (2 ms): FreeType faces may not be shared between threads.
    """
    missing = ""
    for file_name in FONTS:
        path = Path(__file__).parent / "fonts" / file_name
        font = ImageFont.truetype(path, _SIZE_PX, layout_engine=ImageFont.Layout.BASIC)
        lacking = _first_missing(line, font)
        if lacking is None:
            return font
        missing = missing or lacking
    described = f"'{missing}' (U+{ord(missing):04X})" if missing.isprintable() else f"U+{ord(missing):04X}"
    raise SignatureInvalid(f"artist_name has the character {described}; the signature fonts hold Hangul and Latin")


def _first_missing(line: str, font: ImageFont.FreeTypeFont) -> str | None:
    """Gives the first character that the font would draw as its box for the unknown, or not at all."""
    unknown = bytes(font.getmask(_NO_CHARACTER))
    for character in line:
        mask = font.getmask(character)
        if character != " " and (bytes(mask) == unknown or mask.getbbox() is None):
            return character
    return None


def _drawn(line: str, font: ImageFont.FreeTypeFont) -> NDArray[np.uint8]:
    left, top, right, bottom = font.getbbox(line, stroke_width=_RIM_PX)
    size = (round(right - left) + 2 * _PADDING_PX, round(bottom - top) + 2 * _PADDING_PX)
    origin = (_PADDING_PX - left, _PADDING_PX - top)
    ink, rim = Image.new("L", size), Image.new("L", size)
    ImageDraw.Draw(ink).text(origin, line, fill=255, font=font)
    ImageDraw.Draw(rim).text(origin, line, fill=255, font=font, stroke_width=_RIM_PX)
    covered = np.asarray(ink, np.float32)[..., None] / 255
    around = np.asarray(rim.filter(ImageFilter.GaussianBlur(_RIM_PX / 2)), np.float32)[..., None] / 255
    shade = _RIM_ALPHA * around * (1 - covered)
    colour = covered * _INK + shade * _RIM
    pixels: NDArray[np.uint8] = np.rint(np.concatenate([colour, 255 * (covered + shade)], axis=-1)).astype(np.uint8)
    rows, columns = np.nonzero(pixels[..., 3])
    return pixels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
