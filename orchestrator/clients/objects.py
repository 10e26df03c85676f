"""What crosses between :class:`~orchestrator.clients.storage.Storage` and the places objects lie in."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from orchestrator.clients.addresses import Address
from orchestrator.errors import InvalidInput

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Incoming:
    """An object that was read, and the SHA-256 (hex) that its writer noted beside it, None where no one did."""

    data: bytes
    sha256: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """An object to write, with the headers a browser or a cache will see."""

    data: bytes
    sha256: str
    content_type: str
    cache_control: str | None = None
    create_only: bool = False


class Place(Protocol):
    """Where objects of one kind of address lie; safe to share between threads."""

    def read(self, address: Address, limit_bytes: int) -> Incoming:
        """The object; raises :class:`~orchestrator.errors.ObjectNotFound`, and
        :class:`~orchestrator.errors.InvalidInput` as soon as it proves larger than ``limit_bytes``.
        """

    def size(self, address: Address) -> int:
        """The object's size in bytes; raises :class:`~orchestrator.errors.ObjectNotFound`."""

    def version(self, address: Address) -> str:
        """Another text whenever the object is another; raises :class:`~orchestrator.errors.ObjectNotFound`."""

    def write(self, address: Address, outgoing: Outgoing) -> str | None:
        """Writes the whole object or nothing and returns its etag, if the place has such; raises
        :class:`~orchestrator.errors.ObjectExists` where a create-only write finds somebody else's object.
        """

    def remove(self, address: Address) -> None:
        """Deletes the object; one that is not there is no error."""

    def names(self, address: Address, limit: int) -> list[Address]:
        """Up to ``limit`` objects below the prefix."""


def collected(address: Address, chunks: Iterable[bytes], *, size_bytes: int, limit_bytes: int) -> bytes:
    """The chunks as one; refuses by the stated size before the first chunk, and by the real one if that was a lie."""
    kept: list[bytes] = []
    read_bytes = 0
    if size_bytes <= limit_bytes:
        for chunk in chunks:
            read_bytes += len(chunk)
            if read_bytes > limit_bytes:
                break
            kept.append(chunk)
    if max(size_bytes, read_bytes) > limit_bytes:
        raise InvalidInput(f"{address.uri()} is larger than {limit_bytes} bytes, the most that is read of such a file")
    return b"".join(kept)
