"""EXIF: what a picture says to every other program, in tags whose meaning is documented.

========================  ========================================================================
Artist, Software          the artist's name; ``Remarque`` and its version
ImageDescription          the beginning of the prompt
DateTime, ...Original     when the picture was made, in UTC
UserComment               the generation parameters in A1111's form, where JPEG and WebP tools look
ImageHistory              :func:`~orchestrator.imaging.provenance.identity` as JSON in plain ASCII
ImageUniqueID             32 hexadecimal digits, the digest of that JSON
========================  ========================================================================

The JSON is ASCII because Pillow and others decode text tags as Latin-1 and write question marks back; escaped, a Korean
name survives any save that keeps EXIF at all.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from datetime import UTC
from typing import Final

from PIL import Image
from PIL.ExifTags import IFD, Base

from orchestrator.imaging.provenance import Provenance, clean, identity, parameters

DESCRIPTION_CHARACTERS: Final = 500
_UNICODE: Final = b"UNICODE\0"
_ASCII: Final = b"ASCII\0\0\0"
_ASCII_TYPE: Final = 2
_LONG_TYPE: Final = 4
_UNDEFINED_TYPE: Final = 7

_Entries = Mapping[int, tuple[int, bytes]]


def to_exif(provenance: Provenance) -> bytes:
    """Gives the block as JPEG embeds it: ``Exif\\0\\0`` and the TIFF file that PNG and WebP take alone."""
    history = json.dumps(identity(provenance), separators=(",", ":"), sort_keys=True)
    moment = f"{provenance.created.astimezone(UTC):%Y:%m:%d %H:%M:%S}"
    main = {
        Base.ImageDescription.value: _ascii(description(provenance)),
        Base.Software.value: _ascii(provenance.software),
        Base.DateTime.value: _ascii(moment),
        Base.ImageHistory.value: _ascii(history),
    }
    if provenance.artist_name:
        main[Base.Artist.value] = _ascii(provenance.artist_name)
    details = {
        Base.ExifVersion.value: (_UNDEFINED_TYPE, b"0232"),
        Base.DateTimeOriginal.value: _ascii(moment),
        Base.OffsetTimeOriginal.value: _ascii("+00:00"),
        Base.UserComment.value: (_UNDEFINED_TYPE, _UNICODE + parameters(provenance).encode("utf-16-be")),
        Base.ImageUniqueID.value: _ascii(hashlib.sha256(history.encode("ascii")).hexdigest()[:32]),
    }
    return b"Exif\0\0" + _tiff(main, details)


def description(provenance: Provenance) -> str:
    """Gives the prompt on one line, cut where a caption would be."""
    line = " ".join(clean(provenance.prompt).split())
    return line if len(line) <= DESCRIPTION_CHARACTERS else line[: DESCRIPTION_CHARACTERS - 1] + "…"


def exif_tags(image: Image.Image) -> dict[str, str]:
    """Gives the text tags of a decoded picture by name; raises what Pillow raises for a broken block."""
    exif = image.getexif()
    tags: dict[int, object] = dict(exif) | dict(exif.get_ifd(IFD.Exif))
    names = {tag.value: tag.name for tag in Base}
    named = {names[tag]: value for tag, value in tags.items() if tag in names}
    return {name: text for name, value in named.items() if (text := _text(value))}


def exif_identity(tags: Mapping[str, str]) -> dict[str, object]:
    """Gives the JSON of ``ImageHistory``, empty where there is none of ours."""
    try:
        found = json.loads(tags.get("ImageHistory", ""))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _ascii(text: str) -> tuple[int, bytes]:
    """Gives a text entry; UTF-8 under the type ASCII is what every other writer of non-English EXIF does."""
    return _ASCII_TYPE, clean(text).encode() + b"\0"


def _tiff(main: _Entries, details: _Entries) -> bytes:
    """Gives a big-endian TIFF file: header, ``main`` with a pointer to ``details``, ``details``, all their values.

    The first directory lies at 12, not at the usual 8: C2PA's box begins 8 bytes into its PNG chunk, and exiftool up to
    12.57 takes two directories of the same offset for a loop and shows no EXIF at all.
    """
    main_start = 12
    details_start = main_start + _directory_bytes(len(main) + 1)
    values_start = details_start + _directory_bytes(len(details))
    values = bytearray()
    pointer = {Base.ExifOffset.value: (_LONG_TYPE, struct.pack(">I", details_start))}
    directories = b""
    for entries in ({**main, **pointer}, details):
        directories += struct.pack(">H", len(entries))
        for tag, (kind, value) in sorted(entries.items()):
            field = value.ljust(4, b"\0")
            if len(field) > 4:
                field = struct.pack(">I", values_start + len(values))
                values += value + bytes(len(value) % 2)
            directories += struct.pack(">HHI", tag, kind, 1 if kind == _LONG_TYPE else len(value)) + field
        directories += bytes(4)
    return struct.pack(">2sHI4x", b"MM", 42, main_start) + directories + values


def _directory_bytes(entries: int) -> int:
    return 2 + 12 * entries + 4


def _text(value: object) -> str:
    """Gives a tag's value as text; numbers and pointers, which we do not write, give nothing."""
    if isinstance(value, str):
        # Pillow reads text tags as Latin-1; ours, like most programs', hold UTF-8.
        value = value.encode("latin-1", "replace")
    if not isinstance(value, bytes):
        return ""
    if value.startswith(_UNICODE):
        return _utf_16(value.removeprefix(_UNICODE))
    return value.removeprefix(_ASCII).decode("utf-8", "replace").rstrip("\0 ")


def _utf_16(comment: bytes) -> str:
    """Gives the text in whichever byte order has more of it in ASCII; EXIF does not say which one a comment is in.

    One letter does not tell: 가 is AC 00, which looks like the other order.
    """
    texts = [comment.decode(order, "replace") for order in ("utf-16-be", "utf-16-le")]
    return max(texts, key=lambda text: sum(letter.isascii() for letter in text)).removeprefix("\ufeff")
