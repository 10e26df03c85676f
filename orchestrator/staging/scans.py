"""The work that a JPEG asks for, judged by its markers: nothing is decoded, and a loop of Python never sees a byte."""

import re
from typing import Final

from orchestrator.errors import InvalidInput

START: Final = b"\xff\xd8"
# Each scan of a progressive JPEG goes over all pixels again; cameras and editors write about ten.
MOST_SCANS: Final = 100
# Colour profiles and depth maps are cut into pieces of 64 KiB; a photograph of 25 MB can need some hundreds.
MOST_SEGMENTS: Final = 2000
MOST_FILLING_BYTES: Final = 1024
# Marks with a length. Behind the others, and behind the FF 00 of compressed data, nothing is to be skipped.
_MARK: Final = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
_SCAN, _END = b"\xff\xda", b"\xff\xd9"


def check_scans(data: bytes, what: str) -> None:
    """Raises InvalidInput for a JPEG that would keep a decoder busy.

    Only the first picture counts: behind its end, phones append a film or further pictures, which are not read.
    """
    at, scans = len(START), 0
    for _ in range(MOST_SEGMENTS):
        # Before the first scan marks follow each other; Pillow would look for the next one byte by byte.
        mark = _MARK.search(data, at) if scans else _MARK.search(data, at, at + MOST_FILLING_BYTES)
        if mark is None or mark[0] == _END:
            break
        scans += mark[0] == _SCAN
        if scans > MOST_SCANS:
            raise InvalidInput(f"{what} is a JPEG of more than {MOST_SCANS} scans; ordinary ones have about ten")
        at = mark.end() + max(2, int.from_bytes(data[mark.end() : mark.end() + 2], "big"))
    else:
        raise InvalidInput(f"{what} is a JPEG of more than {MOST_SEGMENTS} segments; ordinary ones have about twenty")
    if not scans:
        raise InvalidInput(f"{what} is a broken JPEG file; no picture begins in it")
