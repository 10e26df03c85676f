"""Google Cloud Storage's XML API, as much of it as obstore speaks, with preconditions that hold and scripted faults.

::

    with GoogleStorage("pictures") as google:
        storage = Storage("gs://pictures/out", buckets=BucketSettings(gcs_endpoint_url=google.url, gcs_bearer_token="t"))
        google.fail(Fault("PUT", status=500, stores=True))   # stores the object, then answers 500

Faults are used up in order by the requests they match. ``requests`` lists (method, key) of everything that arrived.
"""

import hashlib
import threading
from dataclasses import dataclass
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as the bucket holds it; ``headers`` are the ones it is served with, in lower case."""

    data: bytes
    generation: int
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to the next request of that method whose key starts with ``key``."""

    method: str
    key: str = ""
    status: int = 500
    stores: bool = False  # takes effect before it answers
    delay_s: float = 0.0  # waits before it answers; with status 200 it is only slow
    flips_a_bit: bool = False  # serves damaged bytes
    loses_a_byte: bool = False  # keeps one byte less than was sent


class GoogleStorage:
    """Buckets in memory behind http://127.0.0.1:PORT."""

    def __init__(self, *buckets: str) -> None:
        self.buckets: dict[str, dict[str, StoredObject]] = {name: {} for name in buckets}
        self.requests: list[tuple[str, str]] = []
        self._faults: list[Fault] = []
        self._generation = 0
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.google = self

    def __enter__(self) -> "GoogleStorage":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), name="gcs", daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """What stands in for https://storage.googleapis.com."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def fail(self, *faults: Fault) -> None:
        """Adds faults to come."""
        with self._lock:
            self._faults += faults

    def count(self, method: str) -> int:
        """How many requests of that method arrived."""
        with self._lock:
            return sum(1 for seen, _ in self.requests if seen == method)

    def fault(self, method: str, key: str) -> Fault | None:
        """Notes a request and takes the first fault that matches it."""
        with self._lock:
            self.requests.append((method, key))
            for fault in self._faults:
                if fault.method == method and key.startswith(fault.key):
                    self._faults.remove(fault)
                    return fault
        return None

    def pause(self, seconds: float) -> None:
        """Waits, or less where the server is stopped meanwhile."""
        self._closing.wait(seconds)

    def put(self, bucket: str, key: str, data: bytes, headers: dict[str, str]) -> StoredObject | None:
        """Stores unless ``x-goog-if-generation-match`` forbids it: 0 means that nothing may be there yet."""
        with self._lock:
            objects = self.buckets[bucket]
            wanted = headers.get("x-goog-if-generation-match")
            present = objects[key].generation if key in objects else 0
            if wanted is not None and int(wanted) != present:
                return None
            self._generation += 1
            kept = {
                name: value
                for name, value in headers.items()
                if name in ("content-type", "cache-control") or name.startswith("x-goog-meta-")
            }
            objects[key] = StoredObject(data, self._generation, kept)
            return objects[key]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    google: GoogleStorage

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Callers that hang up early are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def _handle(self) -> None:
        google = self.server.google
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        bucket, _, raw_key = url.path.lstrip("/").partition("/")
        key = unquote(raw_key)
        fault = google.fault(self.command, key)
        if fault is not None:
            google.pause(fault.delay_s)
            if fault.loses_a_byte:
                data = data[:-1]
            if fault.status != 200 and not fault.stores:
                return self._answer(fault.status, b"<Error><Code>Scripted</Code></Error>")
        if bucket not in google.buckets:
            return self._answer(404, b"<Error><Code>NoSuchBucket</Code></Error>")
        if not key:
            return self._list(google.buckets[bucket], parse_qs(url.query).get("prefix", [""])[0])
        code, body, headers = self._serve(bucket, key, data)
        if fault is not None and fault.flips_a_bit and body:
            body = bytes([body[0] ^ 1]) + body[1:]
        if fault is not None and fault.stores:
            code, body, headers = fault.status, b"", {}
        return self._answer(code, body, headers)

    def _serve(self, bucket: str, key: str, data: bytes) -> tuple[int, bytes, dict[str, str]]:
        google = self.server.google
        objects = google.buckets[bucket]
        if self.command == "PUT":
            headers = {name.lower(): value for name, value in self.headers.items()}
            stored = google.put(bucket, key, data, headers)
            return (412, b"", {}) if stored is None else (200, b"", _describe(stored))
        if key not in objects:
            return 404, b"<Error><Code>NoSuchKey</Code></Error>", {}
        if self.command == "DELETE":
            del objects[key]
            return 204, b"", {}
        return 200, objects[key].data, {**objects[key].headers, **_describe(objects[key])}

    def _list(self, objects: dict[str, StoredObject], prefix: str) -> None:
        items = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-11-22T09:00:00.000Z</LastModified>"
            f"<ETag>{_describe(stored)['ETag']}</ETag><Size>{len(stored.data)}</Size></Contents>"
            for key, stored in sorted(objects.items())
            if key.startswith(prefix)
        )
        self._answer(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{items}</ListBucketResult>".encode())

    def _answer(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle  # noqa: N815

    def log_message(self, *args: object) -> None:
        """``requests`` lists what arrived."""


def _describe(stored: StoredObject) -> dict[str, str]:
    return {
        "ETag": f'"{hashlib.md5(stored.data).hexdigest()}"',
        "x-goog-generation": str(stored.generation),
        "Last-Modified": formatdate(usegmt=True),
    }
