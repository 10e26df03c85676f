"""The model repository on disk: built apart and moved to its place whole, so that no half model is ever served."""

import fcntl
import filecmp
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from glob import escape
from pathlib import Path
from tempfile import mkdtemp
from typing import Final

from export.description import DESCRIPTION_FILE
from export.errors import ExportError

_LOCK: Final = ".lock"


def check_space(place: Path, needed_bytes: int) -> None:
    """Refuses a build that the disk under ``place`` cannot hold."""
    place = place.resolve()
    existing = next(folder for folder in (place, *place.parents) if folder.is_dir())
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < needed_bytes:
        raise ExportError(
            f"{existing} has {free_bytes / 1e9:.2f} GB free; building writes {needed_bytes / 1e9:.2f} GB there"
        )


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A folder whose content can be moved into ``out``, gone afterwards; what killed builds left goes first."""
    out = out.resolve()
    if out.exists() and not (out.is_dir() and os.access(out, os.W_OK)):
        raise ExportError(f"{out} is not a folder that can be written to")
    with ExitStack() as held:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(out)
            folder = _make_folder(out)
            held.callback(shutil.rmtree, folder, ignore_errors=True)
            held.enter_context(_locked(folder))
        except OSError as error:
            place = out if out.exists() else out.parent
            raise ExportError(f"{place} cannot be written to: {error.strerror}") from error
        yield folder


def publish(built: Path, out: Path) -> None:
    """Moves every finished model to its place, the description last; other files of ``out`` are left alone.

    Between the first and the last move ``out`` has no description, so an interruption there shows as an unbuilt
    repository and never as a mixed one.
    """
    out = out.resolve()
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


def _make_folder(out: Path) -> Path:
    """Beside ``out``, or within it where no folder moves from one to the other: it is a mount, or its parent not ours.

    Its name has two hyphens, as a merged model's, so that a server which loads every base model passes it by.
    """
    prefix = f".{out.name}.building--"
    if not out.exists():
        return Path(mkdtemp(prefix=prefix, dir=out.parent))
    within = Path(mkdtemp(prefix=prefix, dir=out))
    try:
        return within.rename(out.parent / within.name)
    except OSError:
        return within


def _remove_leftovers(out: Path) -> None:
    """A build that runs holds its folder's lock; process ids would not tell, each container's build has id 1."""
    for left in (path for place in (out.parent, out) for path in place.glob(f".{escape(out.name)}.building-*")):
        with suppress(OSError), _locked(left):
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds ``folder``'s lock, which no process outlives; raises OSError where another holds it."""
    with (folder / _LOCK).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (folder / _LOCK).stat()  # gone where another took the folder for a leftover just before
        yield
