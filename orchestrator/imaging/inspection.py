"""Reads back what a picture says about its making, and whether that is to be believed."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from PIL import Image

from orchestrator.errors import InvalidInput
from orchestrator.imaging.credentials import Credentials, State, verify
from orchestrator.imaging.decoding import BROKEN, decode
from orchestrator.imaging.exif import exif_identity, exif_tags
from orchestrator.imaging.provenance import clean
from orchestrator.imaging.xmp import xmp_fields

FORMATS: Final = ("PNG", "JPEG", "WEBP")
# Staged rooms are as large as their photographs, 50 megapixels; from 89.5 on Pillow itself warns.
MAX_PIXELS: Final = 89_000_000

_VERDICTS: Final[Mapping[State, str]] = {
    "trusted": "valid, and the signer is trusted",
    "untrusted": "valid, but the signer is on no trust list given here",
    "expired": "unchanged, but the signer's certificate ran out, and nothing tells when it signed",
    "tampered": "BROKEN: the picture or its manifest was changed after it was signed",
    "absent": "none: nothing proves what the metadata says",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What was found in a file. All but ``credentials`` is unproven text that anybody may have written."""

    picture_format: str
    width_px: int
    height_px: int
    parameters: str
    exif: Mapping[str, str]
    identity: Mapping[str, object]
    xmp: Mapping[str, str]
    credentials: Credentials

    @property
    def is_broken(self) -> bool:
        """Whether a manifest is there and does not validate."""
        return self.credentials.state == "tampered"


def read(data: bytes, trust_anchors: bytes | None = None) -> Inspection:
    """Reads any PNG, JPEG or WebP; a file that cannot be decoded to its end is :class:`InvalidInput`.

    ``trust_anchors`` are root certificates in PEM; without them no signer is trusted.
    """
    image = decode(data, "picture", FORMATS, InvalidInput, most_pixels=MAX_PIXELS)
    picture_format = "JPEG" if image.format == "MPO" else str(image.format)
    exif = _exif(image)
    text = image.info.get("parameters")
    packet = image.info.get("xmp")
    return Inspection(
        picture_format=picture_format.lower(),
        width_px=image.width,
        height_px=image.height,
        parameters=text if isinstance(text, str) else exif.get("UserComment", ""),
        exif=exif,
        identity=exif_identity(exif),
        xmp=xmp_fields(packet) if isinstance(packet, bytes) else {},
        credentials=verify(data, f"image/{picture_format.lower()}", trust_anchors),
    )


def describe(inspection: Inspection) -> str:
    """Gives an inspection as a page of text, safe for a terminal whatever the picture holds."""
    return "\n".join(clean(line).rstrip() for line in _page(inspection)) + "\n"


def _page(inspection: Inspection) -> Iterator[str]:
    yield f"Picture      {inspection.picture_format}, {inspection.width_px}x{inspection.height_px} px"
    yield f"Credentials  {_VERDICTS[inspection.credentials.state]}"
    yield from _section("Content Credentials (C2PA)", _credential_fields(inspection.credentials))
    shown_below = {"ImageHistory"} if inspection.identity else set()
    if inspection.exif.get("UserComment") == inspection.parameters:
        shown_below.add("UserComment")
    yield from _section("EXIF", {name: value for name, value in inspection.exif.items() if name not in shown_below})
    yield from _section("Identity (EXIF ImageHistory)", inspection.identity)
    yield from _section("XMP", inspection.xmp)
    yield from _section("Generation parameters", {"": inspection.parameters} if inspection.parameters else {})


def _credential_fields(credentials: Credentials) -> Mapping[str, object]:
    problems = {f"problem {number}": problem for number, problem in enumerate(credentials.problems, start=1)}
    if credentials.state == "absent":
        return problems
    return {
        "signer": f"{credentials.signer} ({credentials.issuer}), {credentials.algorithm}",
        **problems,
        "actions": ", ".join(credentials.actions),
        "digital source type": credentials.digital_source_type,
        **credentials.record,
    }


def _section(title: str, fields: Mapping[str, object]) -> Iterator[str]:
    """Gives a heading and one line per field, long texts indented below it; a section without fields says so."""
    yield ""
    yield title if fields else f"{title}: none"
    # A name that a stranger chose must not begin a line of its own, which could repeat any verdict.
    named = [(" ".join(clean(name).split()), value) for name, value in fields.items()]
    width = max((len(name) + 2 for name, _ in named if name), default=0)
    for name, value in named:
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        first, *rest = clean(shown).split("\n")
        yield f"  {name:<{width}}{first}"
        yield from (f"  {'':<{width}}{line}" for line in rest)


def _exif(image: Image.Image) -> dict[str, str]:
    """Gives the EXIF text tags; a block that is damaged beyond reading counts as none, the verdict tells of it."""
    try:
        return exif_tags(image)
    except BROKEN:
        return {}
