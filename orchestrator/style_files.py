"""Downloaded styles on disk, by content, so that a restart fetches nothing twice; bounded, oldest use goes first."""

import hashlib
import json
import logging
import os
import threading
from pathlib import Path
from uuid import uuid4

LOG = logging.getLogger(__name__)


class StyleFiles:
    """A folder of weights files. Threads may share one, and so may processes; a broken or full disk costs only speed.

    ``names/`` says which content an object of the store had in which version, ``weights/`` holds the contents.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._names = folder / "names"
        self._weights = folder / "weights"
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()

    def find(self, uri: str, version: str) -> bytes | None:
        """The object's bytes, if it was kept in that version and its SHA-256 is what it was then."""
        try:
            name = json.loads(self._name(uri).read_text("utf-8"))
            if not isinstance(name, dict) or name.get("version") != version:
                return None
            sha256 = str(name.get("sha256"))
            path = self._weights / sha256
            data = path.read_bytes()
            os.utime(path)
        except (OSError, ValueError):
            return None
        if hashlib.sha256(data).hexdigest() == sha256:
            return data
        LOG.warning("%s was kept with another SHA-256; it is fetched again", uri)
        path.unlink(missing_ok=True)
        return None

    def keep(self, uri: str, version: str, data: bytes) -> None:
        """Keep the object's bytes, and forget the longest unused until everything fits."""
        if len(data) > self._limit_bytes:
            return
        sha256 = hashlib.sha256(data).hexdigest()
        try:
            _write(self._weights / sha256, data)
            _write(self._name(uri), json.dumps({"uri": uri, "version": version, "sha256": sha256}).encode())
            self._shrink()
        except OSError as error:
            LOG.warning("%s was not kept on disk: %s", uri, error.strerror)

    def _name(self, uri: str) -> Path:
        return self._names / f"{hashlib.sha256(uri.encode()).hexdigest()}.json"

    def _shrink(self) -> None:
        with self._lock:
            found = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in self._weights.iterdir())
            size_bytes = sum(size for _, size, _ in found)
            for _, size, path in found:
                if size_bytes <= self._limit_bytes:
                    return
                path.unlink(missing_ok=True)
                size_bytes -= size


def _write(path: Path, data: bytes) -> None:
    """The whole file or nothing: readers never see half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{uuid4().hex}")
    try:
        draft.write_bytes(data)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
