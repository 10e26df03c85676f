"""The object store as the memory of what was staged, accepted and given up; there is no database.

Keys below the result root, for image 7 of the caller ``backend``::

    staging/backend/7.json              manifest, written create-only: the commit point, and every later answer
    staged/backend/7/<attempt>.png      the picture; the manifest names the attempt that counts
    staging-accepted/backend/7.json     answered with 202 and not ended yet, whoever does the work
    staging-failed/backend/7.json       why one that was answered with 202 came to nothing
    staging-cancels/backend/7.json      somebody asked for it to end
"""

import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, TypeVar

from orchestrator.errors import Conflict, ObjectExists, ObjectNotFound, StorageError

DOCUMENT_LIMIT_BYTES = 1 << 20
PICTURE_CACHE_CONTROL = "public, max-age=31536000, immutable"
PRIVATE_CACHE_CONTROL = "no-store"
ADOPTED_AT_ONCE = 100
Kind = Literal["staging", "staging-accepted", "staging-failed", "staging-cancels"]
D = TypeVar("D", "Manifest", "Accepted", "Failure")


class Store(Protocol):
    """What is needed of an object store; every method raises :class:`StorageError`."""

    def read(self, uri: str, *, limit_bytes: int) -> bytes: ...

    def write(
        self, uri: str, data: bytes, *, content_type: str, cache_control: str, create_only: bool = False
    ) -> object: ...

    def exists(self, uri: str) -> bool: ...

    def delete(self, uri: str) -> None: ...

    def list(self, uri: str, *, limit: int = 1000) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageName:
    """An image as its caller names it."""

    account: str
    image_id: str

    def __str__(self) -> str:
        return f"{self.account}/{self.image_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The answer that every request for this image gets, and by what such requests are known."""

    fingerprint: str
    answer: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A promise made with 202. ``until_s`` (Unix time) is when its keeper must have ended or died, 0 once it let go.

    ``adoptions`` counts the keepers before this one that died.
    """

    request: Mapping[str, Any]
    tier: str
    until_s: float
    adoptions: int = 0

    @property
    def deaths(self) -> int:
        """How many processes died with it, now that its keeper is gone; one that let go stopped in order."""
        return self.adoptions + (self.until_s > 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """How a promise came to nothing; ``code`` is one of :mod:`orchestrator.errors`."""

    fingerprint: str
    code: str
    message: str


class StagingLedger:
    """Commits outcomes in any store that writes create-only. Threads may share one."""

    def __init__(self, store: Store, root: str) -> None:
        self._store = store
        self._root = root.rstrip("/")

    def find(self, name: ImageName) -> Manifest | None:
        """What was committed for the image, if anything."""
        return self._document("staging", name, Manifest)

    def settled(self, name: ImageName, fingerprint: str) -> Manifest | None:
        """What was committed; raises :class:`Conflict` where that was for other parameters."""
        found = self.find(name)
        if found is not None and found.fingerprint != fingerprint:
            raise Conflict(f"image_id {name.image_id} was staged with other parameters; each wish has its own id")
        return found

    def store_picture(self, name: ImageName, data: bytes) -> str:
        """Store one attempt's PNG; its key, relative to the result root."""
        key = f"staged/{name}/{uuid.uuid4().hex}.png"
        self._store.write(
            f"{self._root}/{key}",
            data,
            content_type="image/png",
            cache_control=PICTURE_CACHE_CONTROL,
            create_only=True,
        )
        return key

    def commit(self, name: ImageName, ours: Manifest) -> Manifest:
        """The manifest that counts from now on: ours, or the one of an attempt that was quicker."""
        try:
            self._write("staging", name, asdict(ours), create_only=True)
        except ObjectExists:
            theirs = self.settled(name, ours.fingerprint)
            if theirs is None:
                raise StorageError(f"the manifest of {name} came and went") from None
            self._store.delete(f"{self._root}/{ours.answer['staged_key']}")
            return theirs
        return ours

    def accept(self, name: ImageName, accepted: Accepted) -> None:
        """Write down a promise before it is made, or who keeps it now and until when."""
        self._write("staging-accepted", name, asdict(accepted))

    def forget(self, name: ImageName) -> None:
        """Before a new promise: how the last one ended, and that somebody asked for its end."""
        self._delete("staging-failed", name)
        self._delete("staging-cancels", name)

    def accepted(self, name: ImageName) -> Accepted | None:
        """The promise, if one is open."""
        return self._document("staging-accepted", name, Accepted)

    def fulfil(self, name: ImageName, failure: Failure | None) -> None:
        """Close a promise that was kept, or say why it was not."""
        if failure is not None:
            self._write("staging-failed", name, asdict(failure))
        self._delete("staging-accepted", name)
        self._delete("staging-cancels", name)

    def failure(self, name: ImageName) -> Failure | None:
        """Why the last promise was not kept, if so."""
        return self._document("staging-failed", name, Failure)

    def promises(self, account: str) -> list[ImageName]:
        """Up to a hundred images of a caller with an open promise, in the order of their names."""
        found = self._store.list(f"{self._root}/staging-accepted/{account}/", limit=ADOPTED_AT_ONCE)
        ids = [uri.removesuffix(".json").rpartition("/")[2] for uri in found if uri.endswith(".json")]
        return [ImageName(account=account, image_id=image_id) for image_id in ids]

    def request_cancel(self, name: ImageName) -> None:
        """Leave word for whichever process does the work."""
        self._write("staging-cancels", name, {})

    def cancel_requested(self, name: ImageName) -> bool:
        """Whether somebody left word."""
        return self._store.exists(self._uri("staging-cancels", name))

    def _document(self, kind: Kind, name: ImageName, form: type[D]) -> D | None:
        try:
            data = self._store.read(self._uri(kind, name), limit_bytes=DOCUMENT_LIMIT_BYTES)
        except ObjectNotFound:
            return None
        try:
            return form(**json.loads(data))
        except (ValueError, TypeError) as error:
            raise StorageError(f"{kind}/{name}.json cannot be read: {error}") from error

    def _write(self, kind: Kind, name: ImageName, document: Mapping[str, object], *, create_only: bool = False) -> None:
        self._store.write(
            self._uri(kind, name),
            json.dumps(document, ensure_ascii=False, sort_keys=True).encode(),
            content_type="application/json",
            cache_control=PRIVATE_CACHE_CONTROL,
            create_only=create_only,
        )

    def _delete(self, kind: Kind, name: ImageName) -> None:
        self._store.delete(self._uri(kind, name))

    def _uri(self, kind: Kind, name: ImageName) -> str:
        return f"{self._root}/{kind}/{name}.json"
