"""Opens image files that strangers wrote: an allow-list of formats, a pixel limit before any decoding, one error."""

import io
import struct
import zlib
from collections.abc import Sequence

from PIL import Image, ImageOps

from orchestrator.errors import Refused

# A 24-megapixel photograph of a signature on paper passes; its RGBA takes 100 MB while the job runs.
MAX_PIXELS = 25_000_000

# What Pillow's decoders raise for files that were cut, flipped or invented; found by fuzzing, none of them is ours.
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    ArithmeticError,
    LookupError,
    TypeError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    zlib.error,
    Warning,  # raised, not printed, where warnings are errors
)
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)


def decode(
    data: bytes, what: str, formats: Sequence[str], refusal: type[Refused], *, most_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Gives the decoded first frame, upright; every refusal is a ``refusal`` whose sentence begins with ``what``.

    Only the named Pillow ``formats`` are tried. Size is judged from the header, so a 27 kB file of 15000x15000 pixels
    costs nothing.
    """
    named = " or ".join(", ".join(formats).rsplit(", ", 1))
    try:
        image = Image.open(io.BytesIO(data), formats=tuple(formats))
    except _BOMB as error:
        raise refusal(f"{what} has more than {most_pixels} pixels; at most that many are decoded") from error
    except BROKEN as error:
        raise refusal(f"{what} of {len(data)} bytes is not an image; {named} are read") from error
    if image.width * image.height > most_pixels:
        size = f"{image.width}x{image.height} px"
        raise refusal(f"{what} is {size}; at most {most_pixels} pixels are decoded")
    try:
        if _is_animated(image):
            raise refusal(f"{what} is an animated {image.format}; a still image is needed")
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    except BROKEN as error:
        raise refusal(f"{what} is a broken {image.format} file; it cannot be decoded to its end") from error
    return image


def _is_animated(image: Image.Image) -> bool:
    """Tells animations from phones' JPEGs, which carry a second picture (MPO) and are as still as any other."""
    return image.format != "MPO" and bool(getattr(image, "is_animated", False))
