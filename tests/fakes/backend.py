"""The backend that webhooks go to, as a server of this process: scripted faults, and a ledger of everything it saw.

::

    with Backend(token="secret") as backend:
        backend.script("complete", DONE_THEN_500, DOWN, status(429, retry_after="2"))  # then accepts again
        ...                                          # point BACKEND_URL at backend.url
        backend.outcomes(456)                        # ["complete"], repeats dropped by webhook-id

A script is per kind (``progress``, ``complete``, ``failed``) or for every kind (``"*"``); answers are used up one call
at a time, unless ``always=True`` keeps the last one until the next ``script``. ``stop()`` and ``start()`` take the whole
server down and bring it back on the same port. All methods may be called from any thread.
"""

import json
import socket
import threading
import time
from collections import defaultdict, deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TERMINAL = ("complete", "failed")
PATHS = {
    ("PATCH", "/api/webhooks/inference/progress"): "progress",
    ("POST", "/api/webhooks/inference/complete"): "complete",
    ("POST", "/api/webhooks/inference/failed"): "failed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the backend does with one call."""

    status: int = 204
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    processed: bool = True  # whether the event takes effect, whatever is answered
    before_s: float = 0.0  # waits so long before the first byte
    between_s: float = 0.0  # sends byte by byte with such pauses
    stall_s: float = 0.0  # waits so long between head and body
    cut: bool = False  # closes the connection instead of answering


ACCEPTED = Answer()
DOWN = Answer(cut=True, processed=False)
DONE_THEN_500 = Answer(status=500)
DONE_THEN_CUT = Answer(cut=True)


def status(code: int, *, retry_after: str | None = None, body: bytes = b"") -> Answer:
    """A refusal with that status; the event takes no effect."""
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return Answer(status=code, headers=headers, body=body, processed=200 <= code < 300)


def slow(seconds: float) -> Answer:
    """Accepts after a while; with a client that gives up earlier this is "done, but nobody heard"."""
    return Answer(before_s=seconds)


def trickle(pause_s: float) -> Answer:
    """Answers one byte at a time."""
    return Answer(between_s=pause_s, body=b"x" * 1000, status=500, processed=False)


def redirect(url: str) -> Answer:
    """Sends the caller elsewhere."""
    return Answer(status=307, headers={"Location": url}, processed=False)


def huge(size_bytes: int, code: int = 200) -> Answer:
    """Answers with a body of that size."""
    return Answer(status=code, body=b"x" * size_bytes, processed=code < 300)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call as it arrived; ``kind`` is None for a method and path that the backend does not have."""

    at_s: float
    method: str
    path: str
    kind: str | None
    headers: dict[str, str]  # names in lower case
    data: bytes
    authorized: bool
    status: int
    processed: bool
    port: int  # the caller's: equal ports are one connection

    @property
    def body(self) -> Any:
        """The call's JSON."""
        return json.loads(self.data)

    @property
    def webhook_id(self) -> str | None:
        """By which repeats are told."""
        return self.headers.get("webhook-id")


class Backend:
    """An HTTP backend on a free port of 127.0.0.1 (or a given one)."""

    def __init__(self, token: str = "backend-token", port: int = 0) -> None:
        self.token = token
        self._port = port
        self._ledger: list[Call] = []
        self._scripts: dict[str, deque[Answer]] = defaultdict(deque)
        self._held: dict[str, Answer] = {}
        self._lock = threading.Condition()
        self._server: _Server | None = None
        self._closing = threading.Event()

    def __enter__(self) -> "Backend":
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """What BACKEND_URL is set to."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Begins to listen; after ``stop`` on the same port."""
        self._closing.clear()
        self._server = _Server(self, self._port)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), name="backend", daemon=True).start()

    def stop(self) -> None:
        """Refuses connections and cuts those that are open."""
        self._closing.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def script(self, kind: str, *answers: Answer, always: bool = False) -> None:
        """Replaces what the next calls of that kind (``"*"``: of every kind) get; without answers all is well again."""
        with self._lock:
            self._scripts[kind] = deque(answers)
            self._held.pop(kind, None)
            if always and answers:
                self._held[kind] = answers[-1]

    @property
    def ledger(self) -> list[Call]:
        """Every call so far, in the order of arrival."""
        with self._lock:
            return list(self._ledger)

    def processed(self, generation_id: int | None = None) -> list[Call]:
        """The calls that took effect: authorized, not refused, repeats (same webhook-id or same bytes) dropped."""
        seen: set[tuple[str | None, str | bytes]] = set()
        found = []
        for call in self.ledger:
            key = (call.kind, call.webhook_id or call.data)
            if call.processed and key not in seen and (generation_id in (None, call.body["generation_id"])):
                seen.add(key)
                found.append(call)
        return found

    def outcomes(self, generation_id: int) -> list[str]:
        """The terminal events of a job that took effect, in order: one entry where everything is right."""
        return [call.kind for call in self.processed(generation_id) if call.kind in TERMINAL]

    def wait_for(self, count: int, kind: str | None = None, timeout_s: float = 10.0) -> list[Call]:
        """The ledger (of that kind) once it holds ``count`` calls; fails the test after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        with self._lock:
            while True:
                found = [call for call in self._ledger if kind in (None, call.kind)]
                if len(found) >= count:
                    return found
                left_s = deadline - time.monotonic()
                assert left_s > 0, f"{len(found)} of {count} {kind or ''} calls came within {timeout_s} s"
                self._lock.wait(left_s)

    def hear(self, method: str, path: str, headers: dict[str, str], data: bytes, port: int) -> Answer:
        """Notes a call and says how it is answered."""
        kind = PATHS.get((method, path))
        authorized = headers.get("authorization") == f"Bearer {self.token}"
        with self._lock:
            answer = self._next(kind)
            if kind is None:
                answer = status(404)
            elif not authorized:
                answer = status(401)
            call = Call(
                at_s=time.monotonic(),
                method=method,
                path=path,
                kind=kind,
                headers=headers,
                data=data,
                authorized=authorized,
                status=answer.status,
                processed=answer.processed,
                port=port,
            )
            self._ledger.append(call)
            self._lock.notify_all()
        return answer

    def pause(self, seconds: float) -> None:
        """Waits, or less where the server is stopped meanwhile."""
        self._closing.wait(seconds)

    def _next(self, kind: str | None) -> Answer:
        for name in (kind, "*"):
            if name is not None and self._scripts[name]:
                return self._scripts[name].popleft()
            if name in self._held:
                return self._held[name]
        return ACCEPTED


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, backend: Backend, port: int) -> None:
        self.backend = backend
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        super().server_close()
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Callers that hang up early are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def _handle(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        data = self.rfile.read(size)
        if len(data) < size:  # the caller died in the middle of its call, which is then none
            self.close_connection = True
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        backend = self.server.backend
        answer = backend.hear(self.command, self.path, headers, data, self.client_address[1])
        backend.pause(answer.before_s)
        if answer.cut:
            self.close_connection = True
            return
        lines = [f"HTTP/1.1 {answer.status} scripted", f"Content-Length: {len(answer.body)}"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        head = "\r\n".join(lines).encode() + b"\r\n\r\n"
        if not answer.between_s:
            self.wfile.write(head)
            backend.pause(answer.stall_s)
            for start in range(0, len(answer.body), 1 << 16):
                self.wfile.write(answer.body[start : start + (1 << 16)])
            return
        for byte in head + answer.body:
            self.wfile.write(bytes([byte]))
            backend.pause(answer.between_s)

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _handle  # noqa: N815

    def log_message(self, *args: object) -> None:
        """The ledger says it all."""
