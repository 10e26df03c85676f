import io
import struct
import zlib
from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from orchestrator.errors import InvalidInput, SignatureInvalid
from orchestrator.imaging.decoding import MAX_PIXELS
from orchestrator.imaging.signature import Mark, box, load_signature, stamp, text_signature
from orchestrator.job import Position, SignatureRef, SignatureSize

POSITIONS: tuple[Position, ...] = (
    "bottom-left",
    "bottom-center",
    "bottom-right",
    "top-left",
    "top-center",
    "top-right",
)
WIDTHS: dict[SignatureSize, int] = {"small": 77, "medium": 128, "large": 179}
INK = (200, 40, 90)
GROUND = (20, 120, 220)


def picture(width: int = 512, height: int = 512) -> np.ndarray:
    return np.full((height, width, 3), GROUND, np.uint8)


def file_of(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, **{"format": "PNG", **options})
    return file.getvalue()


@cache
def solid(width: int = 300, height: int = 100) -> Mark:
    return load_signature(file_of(Image.new("RGBA", (width, height), (*INK, 255))))


def stamped_box(before: np.ndarray, after: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what changed, in pixels; right and bottom are the first ones outside."""
    rows, columns = np.nonzero((before != after).any(axis=-1))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


# -- where and how large ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("position", "size"), list(product(POSITIONS, WIDTHS)))
@pytest.mark.parametrize(("width", "height"), [(512, 512), (1024, 512), (512, 1024)])
def test_signature_covers_exactly_its_box(position: Position, size: SignatureSize, width: int, height: int) -> None:
    mark_width = {512: WIDTHS, 1024: {"small": 154, "medium": 256, "large": 358}}[width][size]
    mark_height = round(mark_width / 3)
    left = {"left": 10, "center": (width - mark_width) // 2, "right": width - 10 - mark_width}[position.split("-")[1]]
    top = {"top": 10, "bottom": height - 10 - mark_height}[position.split("-")[0]]
    before = picture(width, height)
    after = stamp(before, solid(), SignatureRef(position=position, size=size, opacity=1.0))
    assert stamped_box(before, after) == (left, top, left + mark_width, top + mark_height)


def test_pixels_outside_the_box_stay_byte_for_byte() -> None:
    before = np.random.default_rng(1).integers(0, 256, (333, 517, 3), np.uint8)
    ref = SignatureRef(position="top-center", opacity=1.0)
    place = box((517, 333), (300, 100), ref)
    after = stamp(before, solid(), ref)
    rows = slice(place.top_px, place.top_px + place.height_px)
    columns = slice(place.left_px, place.left_px + place.width_px)
    after[rows, columns] = before[rows, columns]
    assert (after == before).all()


def test_picture_that_was_passed_in_is_not_changed() -> None:
    before = picture()
    stamp(before, solid(), SignatureRef(opacity=1.0))
    assert (before == GROUND).all()


def test_mark_taller_than_the_picture_is_made_smaller_with_its_aspect_kept() -> None:
    place = box((512, 256), (100, 1000), SignatureRef(size="large"))
    assert (place.width_px, place.height_px, place.top_px) == (24, 236, 10)


def test_aspect_of_a_large_image_is_exact() -> None:
    before = picture(1024, 1024)
    after = stamp(before, solid(5003, 701), SignatureRef(size="large", opacity=1.0))
    assert stamped_box(before, after) == (656, 964, 1014, 1014)


def test_mark_smaller_than_its_box_is_made_larger() -> None:
    before = picture()
    after = stamp(before, solid(3, 1), SignatureRef(size="medium", opacity=1.0))
    assert stamped_box(before, after) == (374, 459, 502, 502)


@given(
    picture_px=st.tuples(st.integers(1, 4096), st.integers(1, 4096)),
    mark_px=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    position=st.sampled_from(POSITIONS),
    size=st.sampled_from(list(WIDTHS)),
)
def test_box_lies_inside_the_picture_for_any_sizes(picture_px, mark_px, position, size) -> None:
    place = box(picture_px, mark_px, SignatureRef(position=position, size=size))
    assert 0 <= place.left_px < place.left_px + place.width_px <= picture_px[0]
    assert 0 <= place.top_px < place.top_px + place.height_px <= picture_px[1]


# -- opacity and colour -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opacity", "expected"), [(0.0, GROUND), (0.5, (110, 80, 155)), (1.0, INK), (0.7, (146, 64, 129))]
)
def test_opacity_mixes_ink_and_picture(opacity: float, expected: tuple[int, int, int]) -> None:
    after = stamp(picture(), solid(), SignatureRef(opacity=opacity))
    assert tuple(after[480, 440]) == expected


def test_opacity_multiplies_the_alpha_of_the_mark() -> None:
    half = load_signature(file_of(Image.new("RGBA", (300, 100), (255, 255, 255, 128))))
    after = stamp(np.zeros((512, 512, 3), np.uint8), half, SignatureRef(opacity=0.5))
    assert tuple(after[480, 440]) == (64, 64, 64)


@pytest.mark.parametrize("opacity", [-0.1, 1.1, float("nan")])
def test_opacity_out_of_range_is_refused(opacity: float) -> None:
    with pytest.raises(InvalidInput, match=r"signature opacity is .*; it is 0.0 to 1.0"):
        stamp(picture(), solid(), SignatureRef(opacity=opacity))


def test_colour_under_transparent_pixels_makes_no_halo() -> None:
    pixels = np.zeros((200, 600, 4), np.uint8)
    pixels[..., 1] = 255  # bright green, wholly transparent
    pixels[50:150, 100:500] = (0, 0, 0, 255)
    mark = load_signature(file_of(Image.fromarray(pixels)))
    after = stamp(np.full((512, 512, 3), 128, np.uint8), mark, SignatureRef(size="large", opacity=1.0))
    assert (after[..., 1] == after[..., 0]).all()
    assert after.max() == 128


def test_white_ink_on_a_white_picture_stays_white() -> None:
    pixels = np.zeros((90, 400, 4), np.uint8)
    pixels[20:70:7, :] = 255
    mark = load_signature(file_of(Image.fromarray(pixels)))
    after = stamp(np.full((512, 512, 3), 255, np.uint8), mark, SignatureRef())
    assert (after == 255).all()


# -- files --------------------------------------------------------------------------------------------------------------


def palette_with_transparency() -> bytes:
    image = Image.new("P", (300, 100), 1)
    image.putpalette([0, 0, 0, *INK])
    image.paste(0, (0, 0, 150, 100))
    return file_of(image, transparency=0)


def png_of(header: bytes, pixels: bytes) -> bytes:
    """A PNG put together by hand, for what Pillow would not write."""
    packed = b""
    for tag, body in ((b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")):
        packed += struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))
    return b"\x89PNG\r\n\x1a\n" + packed


def sixteen_bit_rgba() -> bytes:
    row = b"\0" + struct.pack(">4H", *(value * 257 for value in (*INK, 255))) * 300
    return png_of(struct.pack(">IIBBBBB", 300, 100, 16, 6, 0, 0, 0), row * 100)


FILES = {
    "RGBA": (file_of(Image.new("RGBA", (300, 100), (*INK, 255))), INK),
    "RGB": (file_of(Image.new("RGB", (300, 100), INK)), INK),
    "RGB with a transparent colour": (file_of(Image.new("RGB", (300, 100), INK), transparency=(1, 2, 3)), INK),
    "LA": (file_of(Image.new("LA", (300, 100), (77, 255))), (77, 77, 77)),
    "L": (file_of(Image.new("L", (300, 100), 77)), (77, 77, 77)),
    "1": (file_of(Image.new("1", (300, 100), 1)), (255, 255, 255)),
    "P with transparency": (palette_with_transparency(), INK),
    "16-bit grey": (file_of(Image.fromarray(np.full((100, 300), 77 * 257, np.uint16))), (77, 77, 77)),
    "16-bit RGBA": (sixteen_bit_rgba(), INK),
    "CMYK JPEG": (file_of(Image.new("CMYK", (300, 100), (0, 255, 255, 0)), format="JPEG", quality=95), (255, 0, 0)),
    "lossless WebP": (file_of(Image.new("RGBA", (300, 100), (*INK, 255)), format="WEBP", lossless=True), INK),
    "GIF": (file_of(Image.new("L", (300, 100), 77), format="GIF"), (77, 77, 77)),
}


@pytest.mark.parametrize("mode", FILES)
def test_any_mode_of_image_keeps_its_colour(mode: str) -> None:
    data, expected = FILES[mode]
    after = stamp(picture(), load_signature(data), SignatureRef(size="large", opacity=1.0))
    assert np.abs(after[472, 470].astype(int) - expected).max() <= (3 if "JPEG" in mode else 0)


def test_palette_transparency_lets_the_picture_through() -> None:
    after = stamp(picture(), load_signature(palette_with_transparency()), SignatureRef(size="large", opacity=1.0))
    assert tuple(after[472, 350]) == GROUND


def test_transparent_shade_of_a_16_bit_grey_image_lets_the_picture_through() -> None:
    samples = np.full((100, 300), 1000, np.uint16)
    samples[:, :150] = 40000
    mark = load_signature(file_of(Image.fromarray(samples), transparency=40000))
    after = stamp(picture(), mark, SignatureRef(size="large", opacity=1.0))
    assert tuple(after[472, 350]) == GROUND
    assert tuple(after[472, 470]) == (4, 4, 4)


def test_photograph_that_says_it_lies_on_its_side_is_stamped_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    mark = load_signature(file_of(Image.new("RGB", (100, 300), INK), format="JPEG", exif=exif))
    assert mark.pixels.shape == (100, 300, 4)


def bomb() -> bytes:
    """A PNG whose header says 15000x15000 and which holds one row: it must not come to decoding it."""
    return png_of(struct.pack(">IIBBBBB", 15000, 15000, 8, 6, 0, 0, 0), bytes(60001))


def animation() -> bytes:
    frames = [Image.new("RGB", (30, 10), (shade, 0, 0)) for shade in (10, 200)]
    return file_of(frames[0], format="GIF", save_all=True, append_images=frames[1:])


REFUSED = {
    "bomb": (bomb(), f"signature has more than {MAX_PIXELS} pixels"),
    "just over the limit": (
        file_of(Image.new("1", (5001, 5000))),
        f"signature is 5001x5000 px; at most {MAX_PIXELS} pixels are decoded",
    ),
    "cut short": (FILES["RGBA"][0][:200], "signature is a broken PNG file; it cannot be decoded to its end"),
    "empty": (b"", "signature of 0 bytes is not an image; PNG, JPEG, WEBP or GIF are read"),
    "text": (b"not an image at all", "signature of 19 bytes is not an image"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "is not an image"),
    "TIFF": (file_of(Image.new("RGB", (30, 10)), format="TIFF"), "is not an image; PNG, JPEG, WEBP or GIF are read"),
    "PDF": (b"%PDF-1.7\n", "is not an image"),
    "animated": (animation(), "signature is an animated GIF; a still image is needed"),
    "invisible": (file_of(Image.new("RGBA", (30, 10), (9, 9, 9, 0))), "signature is wholly transparent"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_stamped_is_refused_in_one_sentence(kind: str) -> None:
    data, sentence = REFUSED[kind]
    with pytest.raises(SignatureInvalid, match=sentence) as refusal:
        load_signature(data)
    assert "\n" not in str(refusal.value)


@given(
    mode=st.sampled_from(sorted(FILES)),
    flips=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=12),
    cut=st.integers(0, 3000),
)
def test_damaged_file_is_a_mark_or_a_refusal_and_nothing_else(mode, flips, cut) -> None:
    data = bytearray(FILES[mode][0][: max(cut, 8)])
    for place, value in flips:
        data[place % len(data)] = value
    try:
        mark = load_signature(bytes(data))
    except SignatureInvalid:
        return
    assert mark.pixels.ndim == 3


# -- names --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["김서연", "Seoyeon Kim", "José Núñez", "뷁", "바다 Łukasz", "A"])
def test_names_in_korean_and_latin_are_written(name: str) -> None:
    after = stamp(np.full((512, 512, 3), 128, np.uint8), text_signature(name), SignatureRef(opacity=1.0))
    assert after.max() > 220
    assert after.min() < 70


def test_different_names_look_different() -> None:
    assert text_signature("김서연").pixels.shape != text_signature("김서연 화가").pixels.shape


def test_decomposed_hangul_is_written_like_composed() -> None:
    composed, decomposed = text_signature("\ud55c"), text_signature("\u1112\u1161\u11ab")
    assert (composed.pixels == decomposed.pixels).all()


def test_ink_reaches_all_four_edges_of_a_written_name() -> None:
    alpha = text_signature("Seoyeon").pixels[..., 3]
    assert alpha[0].any()
    assert alpha[-1].any()
    assert alpha[:, 0].any()
    assert alpha[:, -1].any()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("  ", "artist_name is empty"),
        ("عمر", r"artist_name has the character 'ع' \(U\+0639\); the signature fonts hold Hangul and Latin"),
        ("Kim 😀", r"'😀' \(U\+1F600\)"),
        ("a\u202eb", r"the character U\+202E;"),
        ("a\u200bb", r"the character U\+200B;"),
        ("x" * 61, "artist_name has 61 characters; a signature holds at most 60"),
    ],
)
def test_name_that_cannot_be_written_is_refused_naming_the_character(name: str, sentence: str) -> None:
    with pytest.raises(SignatureInvalid, match=sentence):
        text_signature(name)
