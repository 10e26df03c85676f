"""Objects as plain files: ``file://`` addresses and paths.

A file holds the bytes and nothing else: content type and cache headers have no place there and are dropped, whoever
serves the folder takes the type from the name's ending. Writes are complete or absent, also after a power cut.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from orchestrator.clients.addresses import Address
from orchestrator.clients.objects import CHUNK_BYTES, Incoming, Outgoing, collected
from orchestrator.errors import ObjectExists, ObjectNotFound, StorageError

_UNFINISHED = ".remarque-unfinished-"


class Folder:
    """Every file this process may reach; which ones a message may name is not decided here."""

    def read(self, address: Address, limit_bytes: int) -> Incoming:
        """The file's bytes; what is no regular file (a folder, a pipe, a device) counts as absent."""
        with _translated(address):
            # A pipe without a writer would block a plain open for ever.
            descriptor = os.open(address.path(), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                found = os.fstat(descriptor)
                if not stat.S_ISREG(found.st_mode):
                    raise ObjectNotFound(f"{address.uri()} is not a file")
                # Not before: fdopen refuses a folder and leaves its descriptor open.
                with os.fdopen(descriptor, "rb", closefd=False) as file:
                    chunks = iter(lambda: file.read(CHUNK_BYTES), b"")
                    return Incoming(collected(address, chunks, size_bytes=found.st_size, limit_bytes=limit_bytes), None)
            finally:
                os.close(descriptor)

    def size(self, address: Address) -> int:
        """The file's size in bytes; raises :class:`ObjectNotFound`."""
        return _regular(address).st_size

    def version(self, address: Address) -> str:
        """When the file was last written, and what it is; raises :class:`ObjectNotFound`."""
        found = _regular(address)
        return f"{found.st_mtime_ns}-{found.st_size}-{found.st_ino}"

    def write(self, address: Address, outgoing: Outgoing) -> None:
        """Writes a file beside its final name, then moves it there; create-only by a link, which never replaces."""
        path = Path(address.path())
        unfinished = path.parent / f"{_UNFINISHED}{uuid4().hex}"
        with _translated(address, writing=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                _write_through(unfinished, outgoing.data)
                if outgoing.create_only:
                    os.link(unfinished, path)
                else:
                    unfinished.replace(path)
            except FileExistsError:
                raise ObjectExists(f"{address.uri()} exists already") from None
            finally:
                unfinished.unlink(missing_ok=True)
            _flush_names(path.parent)

    def remove(self, address: Address) -> None:
        """Deletes the file; one that is not there is no error."""
        with _translated(address, writing=True), suppress(FileNotFoundError):
            Path(address.path()).unlink()

    def names(self, address: Address, limit: int) -> list[Address]:
        """Up to ``limit`` files below the folder, sorted; links are not followed, unfinished writes are left out."""
        found = []
        with _translated(address):
            for folder, _, files in os.walk(address.path()):
                kept = (name for name in files if not name.startswith(_UNFINISHED))
                found += [Address("file", "", f"{folder}/{name}".lstrip("/")) for name in kept]
        return sorted(found, key=lambda file: file.key)[:limit]


def _regular(address: Address) -> os.stat_result:
    with _translated(address):
        found = Path(address.path()).stat()
    if not stat.S_ISREG(found.st_mode):
        raise ObjectNotFound(f"{address.uri()} is not a file")
    return found


def _write_through(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_names(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _translated(address: Address, *, writing: bool = False) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        absent = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
        if absent and not writing:
            raise ObjectNotFound(f"{address.uri()} does not exist") from None
        done = "written" if writing else "read"
        raise StorageError(f"{address.uri()} could not be {done}: {error.strerror}") from None
