"""Fifty hostile uploads: each answered with a 4xx problem, quickly, and none of them reaches a model."""

import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator

import pytest
from fakes.staging import Staging, encoded, room, staging
from PIL import Image, PngImagePlugin

MODEL_CALLS = 'remarque_staging_provider_calls_total{error_code="",outcome="succeeded",provider="mock"}'


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width_px: int, height_px: int, body: bytes, depth: int = 8, colour: int = 2, extra: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width_px, height_px, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")
    )


def jpeg() -> bytes:
    return encoded(room(), quality=90)


def animated(kind: str) -> bytes:
    return encoded(room(), kind, save_all=True, append_images=[room(960, 640).rotate(1)])


def with_exif(block: bytes) -> bytes:
    data = jpeg()
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]


def scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    data = encoded(room(), progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + b"\xff\xd9"


def transparent() -> bytes:
    picture = room().convert("RGBA")
    picture.putalpha(40)
    return encoded(picture, "PNG")


def sixteen_bit() -> bytes:
    return encoded(Image.new("I;16", (400, 400), 4000), "PNG")


def text_bomb() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("bomb", "x" * 50_000_000, zip=True)
    return encoded(room(), "PNG", pnginfo=info)


FILES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "one byte": lambda: b"\xff",
    "text": lambda: b"hello, I am a photograph",
    "html": lambda: b"<html><script>alert(1)</script></html>",
    "svg": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "svg with entities": lambda: b'<!DOCTYPE a [<!ENTITY b "bbbbbbbb">]><svg>&b;&b;</svg>',
    "pdf": lambda: b"%PDF-1.7\n" + bytes(2000),
    "zip": lambda: b"PK\x03\x04" + bytes(2000),
    "postscript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 400 400\nshowpage\n",
    "elf": lambda: b"\x7fELF" + bytes(2000),
    "random": lambda: os.urandom(100_000),
    "gif": lambda: encoded(room().convert("P"), "GIF"),
    "bmp": lambda: encoded(room(), "BMP"),
    "tiff": lambda: encoded(room(), "TIFF"),
    "ico": lambda: encoded(room(256, 256), "ICO"),
    "ppm": lambda: encoded(room(), "PPM"),
    "animated gif": lambda: animated("GIF"),
    "animated webp": lambda: animated("WEBP"),
    "animated png": lambda: animated("PNG"),
    "bomb of 15000x15000": lambda: png(15_000, 15_000, zlib.compress(bytes(1000))),
    "bomb of 65535x65535": lambda: png(65_535, 65_535, zlib.compress(bytes(10))),
    "bomb of 10000x10000": lambda: png(10_000, 10_000, zlib.compress(bytes(10))),
    "largest number": lambda: png(2**31 - 1, 2**31 - 1, b""),
    "no width": lambda: png(0, 400, zlib.compress(b"")),
    "one pixel": lambda: png(1, 1, zlib.compress(bytes(4))),
    "small": lambda: encoded(room(200, 200)),
    "strip": lambda: encoded(Image.new("RGB", (4000, 300))),
    "tower": lambda: encoded(Image.new("RGB", (300, 4000))),
    "less pixels than stated": lambda: png(600, 600, zlib.compress(bytes(100))),
    "broken deflate": lambda: png(600, 600, b"\x78\x9c" + b"\xaa" * 500),
    "wrong checksum": lambda: encoded(room(), "PNG").replace(b"IDAT", b"IDAX", 1),
    "bomb in a text chunk": text_bomb,
    "palette": lambda: encoded(room().convert("P"), "PNG"),
    "sixteen bits": sixteen_bit,
    "transparent": transparent,
    "cmyk without a profile": lambda: encoded(room().convert("CMYK")),
    "cmyk with a broken profile": lambda: encoded(room().convert("CMYK"), icc_profile=b"junk" * 50),
    "truncated jpeg": lambda: jpeg()[: len(jpeg()) // 2],
    "jpeg head": lambda: jpeg()[:400],
    "jpeg without its end, and noise": lambda: jpeg()[:5000] + os.urandom(3000),
    "truncated webp": lambda: encoded(room(), "WEBP")[:1000],
    "truncated png": lambda: encoded(room(), "PNG")[:1500],
    "jpeg of 500 scans": lambda: scans(500),
    "jpeg of many segments": lambda: jpeg()[:2] + b"\xff\xfe\x00\x02" * 400_000 + jpeg()[2:],
    "jpeg of filling bytes": lambda: jpeg()[:2] + b"\xff" * 1_900_000 + jpeg()[2:],
    "jpeg of stuffed bytes": lambda: jpeg()[:2] + b"\xff\x00" * 900_000 + jpeg()[2:],
    "exif whose offsets leave the block": lambda: with_exif(b"Exif\0\0MM\0*\xff\xff\xff\xf0" + bytes(40))[:3000],
    "over the limit": lambda: jpeg() + bytes(2 << 20),
}
KEYS = {
    "climbs": "uploads/../../results/x.png",
    "climbs encoded": "uploads/%2e%2e/%2e%2e/etc/passwd",
    "climbs encoded twice": "uploads/%252e%252e/secret.jpg",
    "absolute": "/etc/passwd",
    "file uri": "file:///etc/passwd",
    "other bucket": "s3://elsewhere/room.jpg",
    "http": "http://169.254.169.254/latest/meta-data",
    "backslash": "uploads\\..\\secret.jpg",
    "nul": "uploads/a\0.jpg",
    "link": "uploads/link.jpg",
    "folder": "uploads",
    "somebody else's": "private/u/p/room.jpg",
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Staging]:
    with staging(tmp_path_factory.mktemp("hostile"), STAGING_MAX_MB="2") as running:
        running.put("private/u/p/room.jpg", encoded(room()))
        (running.folder / "originals" / "uploads" / "link.jpg").symlink_to(running.folder / "clients.toml")
        assert running.infer(running.wish("warm")).status_code == 200
        yield running


def refused_quickly(served: Staging, name: str, wish: dict) -> None:
    """The quicker of two tries counts: the collector of garbage and what earlier tests left may be in the way of one."""
    before, quickest_s = served.metric(MODEL_CALLS), 1.0
    for _ in range(2):
        begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
        answer = served.infer(wish)
        wall_s, cpu_s = time.perf_counter() - begun_s, time.process_time() - begun_cpu_s
        assert 400 <= answer.status_code < 500, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["code"] in ("invalid_input", "not_found")
        told = f"{wall_s * 1000:.0f} ms, {cpu_s * 1000:.0f} ms of CPU: {answer.json()['detail']}"
        print(f"{name}: {answer.status_code} in {told}")
        quickest_s = min(quickest_s, cpu_s)
    # The time of this process, client and server together: what others do on the machine must not fail the test.
    assert quickest_s < 0.1
    assert served.metric(MODEL_CALLS) == before


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_refused_quickly_and_reaches_no_model(served: Staging, name: str):
    key = served.put(f"uploads/{name.replace(' ', '-')}.jpg", FILES[name]())
    refused_quickly(served, name, served.wish("h-" + name.replace(" ", "-").replace(",", ""), original_key=key))


@pytest.mark.parametrize("name", KEYS)
def test_a_hostile_key_is_refused_quickly_and_reaches_no_model(served: Staging, name: str):
    refused_quickly(served, name, served.wish("k-" + name.replace(" ", "-").replace("'", ""), original_key=KEYS[name]))


@pytest.mark.parametrize("name", ["empty", "gif", "bomb of 15000x15000", "palette", "truncated png", "truncated jpeg"])
def test_a_hostile_mask_is_refused_quickly_and_reaches_no_model(served: Staging, name: str):
    key = served.put(f"uploads/mask-{name.replace(' ', '-')}.png", FILES[name]())
    refused_quickly(served, name, served.wish("m-" + name.replace(" ", "-"), mask_key=key))


def test_there_are_fifty() -> None:
    assert len(FILES) + len(KEYS) >= 50
