"""A hosted model behind Replicate's predictions protocol, as a server of this process: scripted and random faults.

::

    with PredictionServer(token="secret") as provider:
        provider.script("create", Fault(500), Fault(cut=True))     # used up one call at a time, then it works
        provider.chaos(0.3, seed=1)                                # every call fails with that probability
        ...                                                        # point MANAGED_URL at provider.url
        provider.runs                                              # how often the model really ran

The model turns every channel inside the mask to a colour that depends on the seed, so a test can tell its pictures.
"""

import base64
import io
import json
import random
import threading
import time
from collections import defaultdict, deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Fault:
    """What happens to one call instead of its answer; ``acts`` lets it take effect first."""

    status: int = 0
    cut: bool = False
    stall_s: float = 0.0
    acts: bool = False
    retry_after: str | None = None


@dataclass
class Run:
    """One prediction as the provider holds it."""

    id: str
    inputs: dict[str, Any]
    webhook: str | None
    status: str = "starting"
    looks: int = 0
    output: Any = None
    error: str | None = None


@dataclass
class PredictionServer:
    """Listens on a free port of 127.0.0.1 while its context lasts."""

    token: str = "hosted-token"
    looks_until_done: int = 1
    inline: bool = False
    endings: deque[tuple[str, str | None]] = field(default_factory=deque)
    calls: list[str] = field(default_factory=list)
    runs: dict[str, Run] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    bad_authorizations: int = 0
    output_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._keys: dict[str, str] = {}
        self._scripts: dict[str, deque[Fault]] = defaultdict(deque)
        self._chaos: tuple[float, random.Random] | None = None
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.provider = self

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "PredictionServer":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), name="predictions", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def script(self, call: str, *faults: Fault) -> None:
        """Faults for the next calls of a kind: create, get, cancel, file, output."""
        self._scripts[call].extend(faults)

    def chaos(self, share: float, seed: int, stall_s: float = 0.4) -> None:
        """From now on every call fails with that probability: a 5xx, a reset or a stall, in equal parts."""
        self._chaos = (share, random.Random(seed))
        self._stall_s = stall_s

    def calm(self) -> None:
        self._chaos = None

    def fault(self, call: str) -> Fault | None:
        with self._lock:
            self.calls.append(call)
            if self._scripts[call]:
                return self._scripts[call].popleft()
            if self._chaos is None or self._chaos[1].random() >= self._chaos[0]:
                return None
            rng = self._chaos[1]
            acts = rng.random() < 0.5
            kinds = (
                Fault(rng.choice((500, 502, 503)), acts=acts),
                Fault(cut=True, acts=acts),
                Fault(stall_s=self._stall_s, acts=acts),
            )
            return rng.choice(kinds)

    def create(self, body: dict[str, Any], key: str | None) -> Run:
        with self._lock:
            if key is not None and key in self._keys:
                return self.runs[self._keys[key]]
            run = Run(f"run{len(self.runs)}", body["input"], body.get("webhook"))
            self.runs[run.id] = run
            if key is not None:
                self._keys[key] = run.id
            return run

    def look(self, run: Run) -> Run:
        with self._lock:
            run.looks += 1
            if run.status in ("starting", "processing"):
                run.status = "processing"
                if run.looks > self.looks_until_done:
                    self._finish(run)
        return run

    def finish(self, run: Run) -> None:
        """End a run now, whoever looks."""
        with self._lock:
            self._finish(run)

    def _finish(self, run: Run) -> None:
        run.status, run.error = self.endings.popleft() if self.endings else ("succeeded", None)
        if run.status == "succeeded":
            data = self._painted(run.inputs)
            if self.inline:
                run.output = f"data:image/png;base64,{base64.b64encode(data).decode()}"
            else:
                self.files[f"/output/{run.id}.png"] = data
                run.output = [f"{self.url}/output/{run.id}.png"]

    def _painted(self, inputs: dict[str, Any]) -> bytes:
        picture, mask = (np.asarray(Image.open(io.BytesIO(self._bytes(inputs[name])))) for name in ("image", "mask"))
        painted = np.where((mask > 127)[..., None], np.uint8(colour(inputs["seed"])), 255 - picture)
        image = Image.fromarray(painted.astype(np.uint8))
        file = io.BytesIO()
        (image if self.output_size is None else image.resize(self.output_size)).save(file, format="PNG")
        return file.getvalue()

    def _bytes(self, address: str) -> bytes:
        if address.startswith("data:"):
            return base64.b64decode(address.partition(",")[2])
        return self.files[address.removeprefix(self.url)]


def colour(seed: int) -> tuple[int, int, int]:
    """What the model paints inside the mask."""
    return seed % 256, (seed // 256) % 256, 77


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    provider: PredictionServer

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is what the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        if self.path in self.server.provider.files:
            self._serve("output", lambda: self._send(200, self.server.provider.files[self.path], "image/png"))
        else:
            self._serve("get", lambda: self._document(self.server.provider.look(self._run())))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/files":
            self._serve("file", lambda: self._file(body))
        elif self.path.endswith("/cancel"):
            self._serve("cancel", self._cancel)
        else:
            self._serve("create", lambda: self._created(json.loads(body)))

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def _serve(self, call: str, act: Any) -> None:
        provider = self.server.provider
        if call != "output" and self.headers["Authorization"] != f"Bearer {provider.token}":
            provider.bad_authorizations += 1
            self._send(401, b"{}", "application/json")
            return
        if call == "output" and "Authorization" in self.headers:
            provider.bad_authorizations += 1
        fault = provider.fault(call)
        if fault is None:
            act()
            return
        if fault.acts:
            self._mute(act)
        time.sleep(fault.stall_s)
        if fault.cut or fault.stall_s:
            self.close_connection = True
            return
        headers = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
        self._send(fault.status, b'{"detail": "broken"}', "application/json", headers)

    def _mute(self, act: Any) -> None:
        answer, self._send = self._send, lambda *_, **__: None  # type: ignore[method-assign]
        act()
        self._send = answer  # type: ignore[method-assign]

    def _created(self, body: dict[str, Any]) -> None:
        self._document(self.server.provider.create(body, self.headers["Idempotency-Key"]), 201)

    def _cancel(self) -> None:
        run = self._run()
        if run.status in ("starting", "processing"):
            run.status = "canceled"
        self._document(run)

    def _file(self, body: bytes) -> None:
        content = body.partition(b"\r\n\r\n")[2].rpartition(b"\r\n--")[0]
        path = f"/uploads/{len(self.server.provider.files)}"
        self.server.provider.files[path] = content
        document = {"id": path, "urls": {"get": self.server.provider.url + path}}
        self._send(201, json.dumps(document).encode(), "application/json")

    def _run(self) -> Run:
        return self.server.provider.runs[self.path.split("/")[2]]

    def _document(self, run: Run, status: int = 200) -> None:
        document = {
            "id": run.id,
            "status": run.status,
            "output": run.output,
            "error": run.error,
            "metrics": {"predict_time": 2.0},
            "urls": {"get": "http://elsewhere.invalid/steal-the-token"},
        }
        self._send(status, json.dumps(document).encode(), "application/json")

    def _send(self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
