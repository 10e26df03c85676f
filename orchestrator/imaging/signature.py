"""Stamps the artist's mark onto a picture; the mark comes from an untrusted image or from the artist's name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from orchestrator.errors import InvalidInput, SignatureInvalid
from orchestrator.imaging.decoding import decode
from orchestrator.imaging.lettering import write
from orchestrator.job import SignatureRef, SignatureSize

MARGIN_PX: Final = 10
WIDTH_PERCENT: Final[Mapping[SignatureSize, int]] = {"small": 15, "medium": 25, "large": 35}
FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF")

# Four times the width of the largest signature on a 1024 px picture; ten jobs with photographs would hold gigabytes.
_KEPT_PX: Final = 1536


@dataclass(frozen=True, slots=True, eq=False)
class Mark:
    """A signature ready to be stamped.

    ``pixels`` is uint8 [h, w, 4], RGB premultiplied by alpha; ``width_px`` and ``height_px`` are the image's own,
    so that its aspect stays exact where a large one was made smaller.
    """

    pixels: NDArray[np.uint8]
    width_px: int
    height_px: int


@dataclass(frozen=True, slots=True)
class Box:
    """Where on the picture a mark lies."""

    left_px: int
    top_px: int
    width_px: int
    height_px: int


def load_signature(data: bytes) -> Mark:
    """Gives the mark in an image file of any mode; what cannot be a visible mark raises :class:`SignatureInvalid`.

    An image without an alpha channel is stamped as the rectangle it is.
    """
    image = decode(data, "signature", FORMATS, SignatureInvalid)
    mark = Mark(_premultiplied(image), image.width, image.height)
    if not mark.pixels[..., 3].any():
        raise SignatureInvalid("signature is wholly transparent; at least one visible pixel is needed")
    return mark


def text_signature(name: str) -> Mark:
    """Gives the artist's name in handwriting, light with a dark rim so that it shows on any picture."""
    pixels = write(name)
    return Mark(pixels, pixels.shape[1], pixels.shape[0])


def box(picture_px: tuple[int, int], mark_px: tuple[int, int], ref: SignatureRef) -> Box:
    """Gives the box of a mark of ``mark_px`` on a picture of ``picture_px``, both (width, height).

    The width is the size's share of the picture's; a mark too tall for the picture is made smaller, its aspect kept.
    Pictures under 21 px get a smaller margin.
    """
    picture_width, picture_height = picture_px
    mark_width, mark_height = mark_px
    margin = min(MARGIN_PX, (min(picture_px) - 1) // 2)
    width = min(_rounded(picture_width * WIDTH_PERCENT[ref.size], 100), picture_width - 2 * margin)
    height = _rounded(width * mark_height, mark_width)
    tallest = picture_height - 2 * margin
    if height > tallest:
        width, height = _rounded(tallest * mark_width, mark_height), tallest
    vertical, horizontal = ref.position.split("-")
    left = {"left": margin, "center": (picture_width - width) // 2, "right": picture_width - margin - width}
    top = {"top": margin, "bottom": picture_height - margin - height}
    return Box(left[horizontal], top[vertical], width, height)


def stamp(picture: NDArray[np.uint8], mark: Mark, ref: SignatureRef) -> NDArray[np.uint8]:
    """Gives a copy of ``picture``, uint8 [H, W, 3], with the mark on it; no pixel outside its box differs."""
    if not 0.0 <= ref.opacity <= 1.0:
        raise InvalidInput(f"signature opacity is {ref.opacity}; it is 0.0 to 1.0")
    place = box((picture.shape[1], picture.shape[0]), (mark.width_px, mark.height_px), ref)
    resized = _resized(mark, place).astype(np.float32)
    colour, alpha = resized[..., :3], resized[..., 3:]
    stamped = picture.copy()
    window = stamped[place.top_px : place.top_px + place.height_px, place.left_px : place.left_px + place.width_px]
    # Lanczos may overshoot colour above its alpha by a level or two; unlimited, white on white would wrap to black.
    ink = ref.opacity * np.minimum(colour, alpha)
    window[:] = np.rint(window * (1.0 - ref.opacity * alpha / 255.0) + ink).astype(np.uint8)
    return stamped


def _rounded(numerator: int, denominator: int) -> int:
    """Gives the quotient to the nearest whole number of pixels, halves up, and never 0."""
    return max(1, (2 * numerator + denominator) // (2 * denominator))


def _resized(mark: Mark, place: Box) -> NDArray[np.uint8]:
    """Gives the mark at its box's size; premultiplied, so that colour under transparent pixels makes no halo."""
    height, width = mark.pixels.shape[:2]
    image = Image.frombytes("RGBa", (width, height), mark.pixels.tobytes())
    return np.asarray(image.resize((place.width_px, place.height_px), Image.Resampling.LANCZOS))


def _premultiplied(image: Image.Image) -> NDArray[np.uint8]:
    """Gives uint8 [h, w, 4] for any of Pillow's modes, at most ``_KEPT_PX`` a side."""
    if image.mode.startswith("I"):
        image = _eight_bit(image)
    elif image.mode not in {"1", "L", "LA", "P", "PA", "RGB", "RGBA"}:
        image = image.convert("RGB")
    premultiplied = image.convert("RGBA").convert("RGBa")
    scale = min(1.0, _KEPT_PX / max(image.size))
    kept = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return np.asarray(premultiplied.resize(kept, Image.Resampling.LANCZOS) if scale < 1.0 else premultiplied)


def _eight_bit(image: Image.Image) -> Image.Image:
    """Gives a 16-bit grey image in 8 bits; Pillow's own conversion clips at 255 and turns all but black to white."""
    samples = np.asarray(image).astype(np.int64)
    grey = ((samples * 255 + 32767) // 65535).astype(np.uint8)
    clear = image.info.get("transparency")
    alpha = np.where(samples == clear, 0, 255).astype(np.uint8) if isinstance(clear, int) else np.full_like(grey, 255)
    return Image.fromarray(np.stack([grey, alpha], axis=-1))
