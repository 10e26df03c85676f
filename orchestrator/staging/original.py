"""A stranger's photograph to pixels: judged by its header, decoded to its end, upright, sRGB, without metadata."""

import io
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps
from PIL.ExifTags import Base

from orchestrator.errors import InvalidInput
from orchestrator.imaging.decoding import BROKEN
from orchestrator.staging.scans import START, check_scans
from orchestrator.staging.sizes import Size, working_size

FORMATS: Final = ("JPEG", "PNG", "WEBP")
LEAST_SIDE_PX: Final = 256
# Beyond 4:1 a picture is a banner or a strip of a panorama, not a room that furniture fits into.
MOST_ASPECT: Final = 4.0
_SRGB: Final = ImageCms.createProfile("sRGB")
_COLOUR_MODES: Final = frozenset({"RGB", "L", "RGBA", "LA", "CMYK", "1"})
_JPEG: Final = ("JPEG", "MPO")


@dataclass(frozen=True, slots=True, kw_only=True)
class PhotoLimits:
    """What is accepted, and the size it is worked on: longest side and grid in pixels."""

    max_bytes: int = 25 << 20
    max_pixels: int = 50_000_000
    longest_px: int = 1024
    step_px: int = 64


@dataclass(frozen=True, slots=True, eq=False)
class Working:
    """The photograph as it is staged: uint8 [h,w,3] in sRGB; ``original`` is its size before.

    ``full`` is all of its pixels, upright and in sRGB, where they were asked for.
    """

    pixels: NDArray[np.uint8]
    original: Size
    warnings: tuple[str, ...] = ()
    full: NDArray[np.uint8] | None = None


def read_photo(data: bytes, limits: PhotoLimits, *, keep_full: bool = False) -> Working:
    """The working image of a JPEG, PNG or WebP; raises :class:`InvalidInput`, mostly before anything is decoded."""
    image = _opened(data, "the original", limits)
    original = _upright_size(image, "the original")
    size = working_size(original, longest_px=limits.longest_px, step_px=limits.step_px)
    if not keep_full:
        # JPEG gives a half, a quarter or an eighth of its size for a fraction of the work; never less than is needed.
        image.draft(None, (max(size.width_px, size.height_px),) * 2)
    upright, warnings = _decoded(image, "the original")
    scaled = upright.resize((size.width_px, size.height_px), Image.Resampling.LANCZOS)
    full = np.array(upright, dtype=np.uint8) if keep_full else None
    return Working(np.array(scaled, dtype=np.uint8), original, warnings, full)


def read_picture(data: bytes, what: str, limits: PhotoLimits) -> NDArray[np.uint8]:
    """All pixels of a JPEG, PNG or WebP, uint8 [h,w,3], upright and in sRGB; raises :class:`InvalidInput`."""
    image = _opened(data, what, limits)
    upright, _ = _decoded(image, what)
    return np.array(upright.convert("RGB"), dtype=np.uint8)


def read_mask(data: bytes, working: Working, limits: PhotoLimits) -> NDArray[np.bool_]:
    """Where ``working`` may be changed, bool [h,w]: white may, black may not. Its size or its aspect is expected."""
    image = _opened(data, "the mask", limits)
    size, height_px, width_px = _upright_size(image, "the mask"), *working.pixels.shape[:2]
    off = size.width_px / size.height_px / (working.original.width_px / working.original.height_px)
    # The working size may be further off than that: a mask drawn on an earlier answer has it exactly.
    if not 0.98 <= off <= 1.02 and size != Size(width_px, height_px):
        photo = f"{working.original.width_px}x{working.original.height_px} px"
        raise InvalidInput(
            f"the mask is {size.width_px}x{size.height_px} px; the photograph's aspect is that of {photo}"
        )
    upright, _ = _decoded(image, "the mask")
    grey = upright.convert("L").resize((width_px, height_px), Image.Resampling.NEAREST)
    mask = np.asarray(grey) >= 128
    if not mask.any():
        raise InvalidInput("the mask is black everywhere; white is where furniture may stand")
    return mask


def _opened(data: bytes, what: str, limits: PhotoLimits) -> Image.Image:
    """The file with nothing but its header read, which already refuses what is too large, too small or animated."""
    if len(data) > limits.max_bytes:
        raise InvalidInput(f"{what} is {len(data)} bytes; up to {limits.max_bytes} are read")
    if data.startswith(START):
        check_scans(data, what)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width_px, height_px, frames = image.width, image.height, getattr(image, "n_frames", 1)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InvalidInput(f"{what} has more than {limits.max_pixels} pixels; at most that many are decoded") from None
    except BROKEN:
        raise InvalidInput(f"{what} of {len(data)} bytes is not an image; JPEG, PNG and WebP are read") from None
    shown = f"{what} is {width_px}x{height_px} px"
    if width_px * height_px > limits.max_pixels:
        raise InvalidInput(f"{shown}; at most {limits.max_pixels} pixels are decoded")
    if min(width_px, height_px) < LEAST_SIDE_PX:
        raise InvalidInput(f"{shown}; both sides of {LEAST_SIDE_PX} px or more are served")
    if max(width_px, height_px) > MOST_ASPECT * min(width_px, height_px):
        raise InvalidInput(f"{shown}; up to {MOST_ASPECT:g}:1 is served")
    if frames > 1 and image.format != "MPO":
        raise InvalidInput(f"{what} is an animated {image.format} of {frames} frames; a still picture is needed")
    if image.mode not in _COLOUR_MODES:
        raise InvalidInput(f"{what} has the colour mode {image.mode}; 8-bit RGB, grey and CMYK with a profile are read")
    return image


def _upright_size(image: Image.Image, what: str) -> Size:
    """The size after the EXIF orientation is applied."""
    if image.format not in _JPEG:
        _load(image, what)  # their EXIF may stand behind the pixels
    try:
        turned = image.getexif().get(Base.Orientation) in (5, 6, 7, 8)
    except BROKEN:
        raise InvalidInput(f"{what} has a broken EXIF block; nobody can say which way is up") from None
    return Size(image.height, image.width) if turned else Size(image.width, image.height)


def _decoded(image: Image.Image, what: str) -> tuple[Image.Image, tuple[str, ...]]:
    """All pixels as upright sRGB, in an image that holds nothing else."""
    _load(image, what)
    try:
        upright = ImageOps.exif_transpose(image)
    except BROKEN:
        raise InvalidInput(f"{what} has a broken EXIF block; nobody can say which way is up") from None
    if "A" in upright.mode:
        if upright.getchannel("A").getextrema()[0] != 255:
            raise InvalidInput(f"{what} has transparent pixels; a photograph without them is needed")
        upright = upright.convert("RGB" if upright.mode == "RGBA" else "L")
    return _in_srgb(upright, image.info.get("icc_profile"), what)


def _load(image: Image.Image, what: str) -> None:
    try:
        image.load()
    except BROKEN:
        raise InvalidInput(f"{what} is a broken {image.format} file; it cannot be decoded to its end") from None


def _in_srgb(image: Image.Image, profile: object, what: str) -> tuple[Image.Image, tuple[str, ...]]:
    if not isinstance(profile, bytes) or not profile:
        if image.mode == "CMYK":
            raise InvalidInput(f"{what} is CMYK without a colour profile; its colours mean nothing, sRGB is expected")
        return image.convert("RGB"), ()
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(image, given, _SRGB, outputMode="RGB")
    except (ImageCms.PyCMSError, *BROKEN):
        if image.mode == "CMYK":
            raise InvalidInput(f"{what} is CMYK with a colour profile that cannot be read; sRGB is expected") from None
        return image.convert("RGB"), (f"the colour profile of {what} cannot be read; it was taken for sRGB",)
    assert converted is not None, "profileToProfile returns a picture unless it is told to work in place"
    return converted, ()
