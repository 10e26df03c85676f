"""``python -m orchestrator inspect PICTURE``: what a picture says about itself, and whether to believe it."""

import argparse
import sys
from pathlib import Path

from orchestrator.errors import InvalidInput
from orchestrator.imaging.inspection import describe, read

DESCRIPTION = """
Prints the metadata of a PNG, JPEG or WebP picture (EXIF, XMP, generation parameters) and judges its
Content Credentials (C2PA).

The exit code is 0 where the manifest validates, there is none or only its certificate ran out, and
1 where it is broken: the picture or its manifest was changed after it was signed.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("picture", type=Path, metavar="PICTURE", help="the file to read")
    parser.add_argument(
        "--trust",
        type=Path,
        metavar="PEM",
        help="root certificates to trust; pictures signed below one of them are called trusted",
    )


def run(args: argparse.Namespace) -> int:
    """Prints the page; gives 1 where the manifest is broken, else 0."""
    trust_anchors = None if args.trust is None else _roots_at(args.trust)
    inspection = read(_bytes_of(args.picture), trust_anchors)
    sys.stdout.write(describe(inspection))
    return 1 if inspection.is_broken else 0


def _roots_at(path: Path) -> bytes:
    from orchestrator.imaging.signing_key import roots_in  # cryptography, which no other inspection needs

    return roots_in(_bytes_of(path), str(path))


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from error
