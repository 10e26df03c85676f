"""The model repository on disk: built beside its place and moved there whole, so that no half model is ever served."""

import filecmp
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from export.description import DESCRIPTION_FILE
from export.errors import ExportError


def check_space(place: Path, needed_bytes: int) -> None:
    """Refuses a build that the disk under ``place`` cannot hold."""
    existing = next(folder for folder in (place, *place.parents) if folder.is_dir())
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < needed_bytes:
        raise ExportError(
            f"{existing} has {free_bytes / 1e9:.2f} GB free; building writes {needed_bytes / 1e9:.2f} GB there"
        )


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """An empty folder beside ``out`` that is gone afterwards; what killed builds left there goes first."""
    out = out.absolute()
    if out.exists() and not (out.is_dir() and os.access(out, os.W_OK)):
        raise ExportError(f"{out} is not a folder that can be written to")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for left in out.parent.glob(f".{out.name}.building-*"):
            if not _is_alive(left.name.rpartition("-")[2]):
                shutil.rmtree(left, ignore_errors=True)
        folder = out.parent / f".{out.name}.building-{os.getpid()}"
        folder.mkdir()
    except OSError as error:
        raise ExportError(f"{out.parent} cannot be written to: {error.strerror}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(built: Path, out: Path) -> None:
    """Moves every finished model to its place, the description last; other files of ``out`` are left alone.

    Between the first and the last move ``out`` has no description, so an interruption there shows as an unbuilt
    repository and never as a mixed one.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / DESCRIPTION_FILE).unlink(missing_ok=True)
    add_models(built, out)
    (built / DESCRIPTION_FILE).rename(out / DESCRIPTION_FILE)


def add_models(built: Path, out: Path) -> None:
    """Moves every finished model to its place in a repository whose description stays as it is."""
    for model in sorted(path for path in built.iterdir() if path.is_dir()):
        place = out / model.name
        if place.exists():
            place.rename(built / f".{model.name}.replaced")
        model.rename(place)


def share_equal_files(model: Path, base: Path) -> None:
    """Makes every file of ``model`` that ``base`` holds too the same file on disk."""
    for path in sorted(path for path in model.rglob("*") if path.is_file()):
        other = base / path.relative_to(model)
        if other.is_file() and filecmp.cmp(path, other, shallow=False):
            path.unlink()
            os.link(other, path)


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True
