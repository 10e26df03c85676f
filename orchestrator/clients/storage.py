"""Reads what jobs need and stores what they make: in ``gs://``, ``s3://``, ``file://`` or under a plain path."""

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import ClassVar
from uuid import uuid4

from orchestrator.clients.addresses import Address, AllowedPrefixes, parse_address
from orchestrator.clients.buckets import Buckets, BucketSettings
from orchestrator.clients.folder import Folder
from orchestrator.clients.objects import Outgoing, Place
from orchestrator.errors import ConfigError, InvalidInput, ObjectNotFound, RemarqueError, StorageError


@dataclass(frozen=True, slots=True)
class Reader:
    """Objects below the allowed prefixes, and nothing else; safe to share between threads."""

    allowed: AllowedPrefixes
    buckets: Place
    files: Place

    def read(self, uri: str, *, limit_bytes: int, expected_sha256: str | None = None) -> bytes:
        """The object's bytes; :class:`ObjectNotFound` where there is none, :class:`InvalidInput` where it may not be
        read or is larger than ``limit_bytes``, :class:`StorageError` where its SHA-256 is another.
        """
        *readings, last = self._readings(uri)
        for address in readings:
            try:
                return self._read(address, limit_bytes, expected_sha256)
            except ObjectNotFound:
                continue
        return self._read(last, limit_bytes, expected_sha256)

    def exists(self, uri: str) -> bool:
        """Whether :meth:`read` would find the object."""
        for address in self._readings(uri):
            try:
                self.place(address).size(address)
            except ObjectNotFound:
                continue
            return True
        return False

    def version(self, uri: str) -> str:
        """Another text whenever :meth:`read` would give another object; raises :class:`ObjectNotFound`."""
        *readings, last = self._readings(uri)
        for address in readings:
            try:
                return self.place(address).version(address)
            except ObjectNotFound:
                continue
        return self.place(last).version(last)

    def list(self, uri: str, *, limit: int = 1000) -> tuple[str, ...]:
        """URIs of up to ``limit`` objects below the folder or prefix ``uri``, sorted; none where there is no such."""
        address = self.allowed.admit(parse_address(uri))
        place = self.files if address.scheme == "file" else self.buckets
        return tuple(sorted(found.uri() for found in place.names(address, limit)))

    def place(self, address: Address) -> Place:
        """Where the object of that address lies; refuses an address without an object's name."""
        if not address.key:
            raise InvalidInput(f"{address.uri()} is a whole store; the address of an object has a name after it")
        return self.files if address.scheme == "file" else self.buckets

    def _read(self, address: Address, limit_bytes: int, expected_sha256: str | None) -> bytes:
        incoming = self.place(address).read(address, limit_bytes)
        found = sha256(incoming.data).hexdigest()
        for expected in (expected_sha256, incoming.sha256):
            if expected is not None and expected.lower() != found:
                raise StorageError(f"{address.uri()} has the SHA-256 {found}, expected is {expected.lower()[:64]}")
        return incoming.data

    def _readings(self, uri: str) -> tuple[Address, ...]:
        """The addresses that ``uri`` may mean, likeliest first.

        Some publishers percent-encode an object's name, others upload objects whose very names hold ``%20``. The
        decoded name is the one that must be allowed; the other counts only where it is allowed as well.
        """
        decoded, literal = parse_address(uri), parse_address(uri, decode=False)
        first = self.allowed.admit(decoded)
        return (first, literal) if literal != decoded and self.allowed.holds(literal) else (first,)


class Storage:
    """The object store, safe to share between threads.

    Reads admit the result store and the input prefixes; writes and deletions the result store only. ``inputs`` leaves
    the result store out: read through it what a message named, or a signature path could stamp somebody else's picture.
    """

    # A key that only one attempt writes never changes under a reader; any other may.
    IMMUTABLE: ClassVar[str] = "public, max-age=31536000, immutable"
    NO_CACHE: ClassVar[str] = "no-cache"

    def __init__(
        self,
        result_store: str,
        *,
        allowed_input_prefixes: Iterable[str] = (),
        buckets: BucketSettings | None = None,
    ) -> None:
        places: tuple[Place, Place] = (Buckets(buckets or BucketSettings()), Folder())
        inputs = AllowedPrefixes(_configured("ALLOWED_INPUT_PREFIXES", allowed_input_prefixes))
        results = AllowedPrefixes(_configured("RESULT_STORE", [result_store]))
        (self._root,) = results.prefixes
        self.inputs = Reader(inputs, *places)
        self._results = Reader(results, *places)
        self._all = Reader(AllowedPrefixes(results.prefixes + inputs.prefixes), *places)

    def result_uri(self, key: str) -> str:
        """The URI of the object ``key`` (plain, such as ``generations/gen-7.png``) in the result store."""
        return self._root.child(key).uri()

    def read(self, uri: str, *, limit_bytes: int, expected_sha256: str | None = None) -> bytes:
        """The object's bytes, as :meth:`Reader.read`, from the result store and the input prefixes."""
        return self._all.read(uri, limit_bytes=limit_bytes, expected_sha256=expected_sha256)

    def exists(self, uri: str) -> bool:
        """Whether :meth:`read` would find the object."""
        return self._all.exists(uri)

    def list(self, uri: str, *, limit: int = 1000) -> tuple[str, ...]:
        """URIs of up to ``limit`` objects below the folder or prefix ``uri``, sorted."""
        return self._all.list(uri, limit=limit)

    def write(
        self,
        uri: str,
        data: bytes,
        *,
        content_type: str,
        cache_control: str | None = None,
        create_only: bool = False,
    ) -> str | None:
        """Stores the object whole or not at all and returns its etag, None for files.

        ``create_only`` raises :class:`ObjectExists` where the name is taken; of any number of writers one wins.
        """
        address = self._results.allowed.admit(parse_address(uri))
        outgoing = Outgoing(
            data=data,
            sha256=sha256(data).hexdigest(),
            content_type=content_type,
            cache_control=cache_control,
            create_only=create_only,
        )
        return self._results.place(address).write(address, outgoing)

    def delete(self, uri: str) -> None:
        """Deletes the object; one that is not there is no error."""
        address = self._results.allowed.admit(parse_address(uri))
        self._results.place(address).remove(address)

    def probe(self) -> None:
        """Writes, reads back and deletes a small object; raises :class:`StorageError` where any of it fails."""
        uri = self.result_uri(f"probes/{uuid4().hex}")
        self.write(uri, b"ready", content_type="text/plain", cache_control=self.NO_CACHE)
        try:
            self.read(uri, limit_bytes=5)
        finally:
            self.delete(uri)


def _configured(variable: str, uris: Iterable[str]) -> tuple[Address, ...]:
    try:
        return AllowedPrefixes.parse(uris).prefixes
    except RemarqueError as error:
        raise ConfigError(f"{variable}: {error}") from None
