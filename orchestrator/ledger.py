"""The object store as the ledger of outcomes: which job ended how, and where an unfinished one stands.

Keys below the result root, for generation 456::

    generations/gen-456.json              manifest, written create-only: the commit point
    generations/gen-456.png               the public name of the picture
    attempts/gen-456-<attempt>.png        what one attempt made, before anybody knows who wins
    checkpoints/gen-456.npz               where an interrupted attempt stood
    cancels/gen-456.json                  somebody asked for the job to stop
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal, Protocol

from orchestrator.errors import ObjectExists, ObjectNotFound, StorageError

MANIFEST_LIMIT_BYTES = 1 << 20
CHECKPOINT_LIMIT_BYTES = 64 << 20
PICTURE_LIMIT_BYTES = 64 << 20
PICTURE_CACHE_CONTROL = "public, max-age=31536000, immutable"
PRIVATE_CACHE_CONTROL = "no-store"
SUFFIXES = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}


class Store(Protocol):
    """What the ledger needs of an object store; every method raises :class:`StorageError`."""

    def read(self, uri: str, *, limit_bytes: int) -> bytes:
        """The object's bytes; ObjectNotFound where there is none."""

    def write(
        self, uri: str, data: bytes, *, content_type: str, cache_control: str, create_only: bool = False
    ) -> object:
        """Store the bytes; ObjectExists where ``create_only`` finds the key taken."""

    def exists(self, uri: str) -> bool:
        """Whether an object lies there."""

    def delete(self, uri: str) -> None:
        """Remove the object; nothing happens where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A finished picture's bytes and what they are."""

    data: bytes
    content_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """How a generation ended, for good. ``body`` is the terminal webhook, the same on every try.

    ``life`` counts an operator's replays; by ``fingerprint`` another message under this id is told apart.
    """

    generation_id: int
    outcome: Literal["complete", "failed"]
    body: Mapping[str, object]
    fingerprint: str
    life: int = 0
    webhook_url: str | None = None
    picture_uri: str | None = None
    picture_sha256: str | None = None
    content_type: str | None = None


class Ledger:
    """Commits outcomes and keeps checkpoints, in any store that writes create-only. Threads may share one."""

    def __init__(self, store: Store, root: str) -> None:
        self._store = store
        self._root = root.rstrip("/")

    def find(self, generation_id: int) -> Manifest | None:
        """The manifest that was committed, if any."""
        try:
            data = self._store.read(self._manifest_uri(generation_id), limit_bytes=MANIFEST_LIMIT_BYTES)
        except ObjectNotFound:
            return None
        try:
            return Manifest(**json.loads(data))
        except (ValueError, TypeError) as error:
            raise StorageError(f"the manifest of generation {generation_id} cannot be read: {error}") from error

    def commit(self, manifest: Manifest) -> Manifest:
        """Write the manifest unless one is there; the one that counts is returned, ours or the other's."""
        data = json.dumps(asdict(manifest), ensure_ascii=False, sort_keys=True).encode()
        try:
            self._store.write(
                self._manifest_uri(manifest.generation_id),
                data,
                content_type="application/json",
                cache_control=PRIVATE_CACHE_CONTROL,
                create_only=True,
            )
        except ObjectExists:
            found = self.find(manifest.generation_id)
            if found is None:
                raise StorageError(f"the manifest of generation {manifest.generation_id} came and went") from None
            return found
        return manifest

    def reopen(self, manifest: Manifest) -> None:
        """Forget a failure, because an operator replayed the job."""
        self._store.delete(self._manifest_uri(manifest.generation_id))
        self._store.delete(self._cancel_uri(manifest.generation_id))

    def store_attempt(self, generation_id: int, attempt: str, picture: Picture) -> tuple[str, str]:
        """Store one attempt's picture under a key of its own; its URI and SHA-256."""
        uri = f"{self._root}/attempts/gen-{generation_id}-{attempt}.{SUFFIXES[picture.content_type]}"
        self._store.write(
            uri, picture.data, content_type=picture.content_type, cache_control=PRIVATE_CACHE_CONTROL, create_only=True
        )
        return uri, hashlib.sha256(picture.data).hexdigest()

    def discard_attempt(self, uri: str) -> None:
        """Remove a picture that lost against another attempt's, or that has its public name."""
        self._store.delete(uri)

    def result_uri(self, generation_id: int, content_type: str) -> str:
        """The public name of a generation's picture."""
        return f"{self._root}/generations/gen-{generation_id}.{SUFFIXES[content_type]}"

    def reveal(self, manifest: Manifest, picture: Picture | None = None) -> None:
        """Put the committed picture under its public name, unless it is there already.

        ``picture`` saves the reading back where the caller still holds the bytes of the attempt that won.
        """
        if manifest.picture_uri is None or manifest.content_type is None:
            return
        public = self.result_uri(manifest.generation_id, manifest.content_type)
        if picture is None and self._store.exists(public):
            return
        try:
            data = picture.data if picture else self._store.read(manifest.picture_uri, limit_bytes=PICTURE_LIMIT_BYTES)
        except ObjectNotFound:
            if self._store.exists(public):  # the worker that made it was quicker
                return
            raise
        if hashlib.sha256(data).hexdigest() != manifest.picture_sha256:
            raise StorageError(f"{manifest.picture_uri} is not the picture that was committed")
        self._store.write(public, data, content_type=manifest.content_type, cache_control=PICTURE_CACHE_CONTROL)
        self.discard_attempt(manifest.picture_uri)

    def save_checkpoint(self, generation_id: int, data: bytes) -> None:
        """Keep where the attempt stands, over the previous checkpoint."""
        self._store.write(
            self._checkpoint_uri(generation_id),
            data,
            content_type="application/octet-stream",
            cache_control=PRIVATE_CACHE_CONTROL,
        )

    def checkpoint(self, generation_id: int) -> bytes | None:
        """The last checkpoint, if any."""
        try:
            return self._store.read(self._checkpoint_uri(generation_id), limit_bytes=CHECKPOINT_LIMIT_BYTES)
        except ObjectNotFound:
            return None

    def clear(self, generation_id: int) -> None:
        """Remove what only an unfinished job needs."""
        self._store.delete(self._checkpoint_uri(generation_id))
        self._store.delete(self._cancel_uri(generation_id))

    def request_cancel(self, generation_id: int) -> None:
        """Leave word, for whichever worker runs the job or will; none of a job that has ended."""
        if self.find(generation_id) is not None:
            return
        self._store.write(
            self._cancel_uri(generation_id),
            json.dumps({"generation_id": generation_id}).encode(),
            content_type="application/json",
            cache_control=PRIVATE_CACHE_CONTROL,
        )
        if self.find(generation_id) is not None:  # it ended meanwhile, perhaps before there was a word to clear away
            self.clear(generation_id)

    def cancel_requested(self, generation_id: int) -> bool:
        """Whether somebody left word."""
        return self._store.exists(self._cancel_uri(generation_id))

    def _manifest_uri(self, generation_id: int) -> str:
        return f"{self._root}/generations/gen-{generation_id}.json"

    def _checkpoint_uri(self, generation_id: int) -> str:
        return f"{self._root}/checkpoints/gen-{generation_id}.npz"

    def _cancel_uri(self, generation_id: int) -> str:
        return f"{self._root}/cancels/gen-{generation_id}.json"
