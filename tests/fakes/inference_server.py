"""A server of a few lines that says what Triton says, over a real socket."""

from __future__ import annotations

import json
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

DTYPES = {"FP16": np.float16, "FP32": np.float32, "INT32": np.int32, "INT64": np.int64, "UINT8": np.uint8}
DEAD_STUB = (
    "Failed to process the request(s) for model instance 'unet_0_0', message: Stub process 'unet_0_0' is not healthy."
)
Answer = Callable[[dict[str, np.ndarray]], Any]


class Served:
    """What the server says; tests change it."""

    def __init__(self) -> None:
        self.inputs: dict[str, dict[str, str]] = {
            "text_encoder": {"input_ids": "INT64"},
            "unet": {"sample": "FP32", "timestep": "FP32", "encoder_hidden_states": "FP32"},
            "vae_decoder": {"latent_sample": "FP32"},
            "vae_encoder": {"sample": "UINT8"},
        }
        self.answers: dict[str, Answer] = {
            "unet": lambda inputs: {"out_sample": inputs["sample"] * 2},
            "vae_decoder": lambda inputs: {
                "sample": np.zeros((len(inputs["latent_sample"]), 8, 8, 3), np.uint8),
                "mean": np.zeros((len(inputs["latent_sample"]), 1), np.float32),
            },
        }
        self.max_rows = 8
        self.parameters: dict[str, str] = {}
        self.not_ready: set[str] = set()
        self.received: list[dict[str, np.ndarray]] = []
        self.body_bytes: list[int] = []
        self.log: list[str] = []
        self.connections = 0
        self.states = ["READY"]
        self.hang_up_after: int | None = None
        self.wait_s = 0.0
        self.garbage: bytes | None = None
        self.truncated = False
        self.chunked = False
        self.shared_memory: Path | None = None
        """The folder whose files the server can open; None refuses."""
        self.regions: dict[str, mmap.mmap] = {}

    def kill_unet(self) -> None:
        """Its process is dead until the model is loaded again; then it answers what it is given."""

        def dead_until_loaded(inputs: dict[str, np.ndarray]) -> Any:
            if "POST /v2/repository/models/unet/load" not in self.log:
                raise Error(DEAD_STUB, 500)
            return {"out_sample": inputs["sample"]}

        self.answers["unet"] = dead_until_loaded

    def config_of(self, model: str) -> dict[str, Any]:
        kinds = {"input": self.inputs[model], "output": {"out_sample": self.inputs[model].get("sample", "FP32")}}
        tensors = {
            kind: [{"name": name, "data_type": f"TYPE_{dtype}"} for name, dtype in entries.items()]
            for kind, entries in kinds.items()
        }
        parameters = {key: {"string_value": value} for key, value in self.parameters.items()}
        return {"name": model, "max_batch_size": self.max_rows, "parameters": parameters, **tensors}


class Error(Exception):
    """An answer that is an error."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    served: Served

    def setup(self) -> None:
        super().setup()
        self.served.connections += 1
        self.exchanges = 0

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.respond(b"")

    def do_POST(self) -> None:
        self.respond(self.rfile.read(int(self.headers["Content-Length"])))

    def respond(self, body: bytes) -> None:
        self.exchanges += 1
        self.served.log.append(f"{self.command} {self.path}")
        if self.served.hang_up_after is not None and self.exchanges > self.served.hang_up_after:
            self.close_connection = True
            return
        time.sleep(self.served.wait_s)
        try:
            header, payload = self.answer(body)
        except Error as error:
            header, payload = json.dumps({"error": str(error)}).encode(), None
            self.send_response(error.status)
        else:
            self.send_response(200)
        if self.served.garbage is not None:
            header = self.served.garbage
        if payload is not None:
            self.send_header("Inference-Header-Content-Length", str(len(header)))
        self.finish_with(header + (payload or b""))

    def finish_with(self, content: bytes) -> None:
        if self.served.chunked:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            pieces = [content[i : i + 100] for i in range(0, len(content), 100)]
            for piece in (*pieces, b""):
                self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            return
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.served.truncated:
            self.close_connection = True
            content = content[:-1]
        self.wfile.write(content)

    def answer(self, body: bytes) -> tuple[bytes, bytes | None]:
        parts = self.path.split("/")
        if self.path == "/v2/repository/index":
            state = self.served.states.pop(0) if len(self.served.states) > 1 else self.served.states[0]
            return json.dumps([{"name": "unet", "version": "1", "state": state}]).encode(), None
        if parts[2] == "repository":
            return b"", None
        if parts[2] == "systemsharedmemory":
            return self.share(parts, body), None
        model = parts[3]
        if self.path.endswith("/ready"):
            if model in self.served.not_ready:
                raise Error("")
            return b"", None
        if self.path.endswith("/infer"):
            return self.infer(model, body)
        if model not in self.served.inputs:
            raise Error(f"Request for unknown model: '{model}' is not found", 404)
        return json.dumps(self.served.config_of(model)).encode(), None

    def share(self, parts: list[str], body: bytes) -> bytes:
        if parts[3] == "status":
            return json.dumps([{"name": name} for name in self.served.regions]).encode()
        name, action = parts[4], parts[5]
        if action == "unregister":
            self.served.regions.pop(name, None)
            return b""
        if self.served.shared_memory is None:
            raise Error("This protocol is restricted", 403)
        document = json.loads(body)
        try:
            descriptor = os.open(f"{self.served.shared_memory}{document['key']}", os.O_RDWR)
        except FileNotFoundError as error:
            raise Error(f"Unable to open shared memory region: '{document['key']}'") from error
        self.served.regions[name] = mmap.mmap(descriptor, document["byte_size"])
        os.close(descriptor)
        return b""

    def place(self, entry: dict[str, Any]) -> memoryview | None:
        """Where a tensor lies, if it lies in shared memory."""
        name = entry["parameters"].get("shared_memory_region")
        if name is None:
            return None
        if name not in self.served.regions:
            raise Error(f"Unable to find shared memory region: '{name}'")
        first = entry["parameters"]["shared_memory_offset"]
        return memoryview(self.served.regions[name])[first : first + entry["parameters"]["shared_memory_byte_size"]]

    def infer(self, model: str, body: bytes) -> tuple[bytes, bytes | None]:
        length = int(self.headers["Inference-Header-Content-Length"])
        rest, asked, inputs = body[length:], json.loads(body[:length]), {}
        for entry in asked["inputs"]:
            data: bytes | memoryview | None = self.place(entry)
            if data is None:
                size = entry["parameters"]["binary_data_size"]
                data, rest = rest[:size], rest[size:]
            inputs[entry["name"]] = np.frombuffer(data, DTYPES[entry["datatype"]]).reshape(entry["shape"]).copy()
        self.served.received.append(inputs)
        self.served.body_bytes.append(len(body))
        outputs = self.served.answers[model](inputs)
        places = {entry["name"]: self.place(entry) for entry in asked["outputs"]}
        names = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
        described, payload = [], b""
        for name, array in outputs.items():
            entry = {"name": name, "shape": array.shape, "datatype": names[array.dtype], "parameters": {}}
            place = places.get(name)
            if place is None:
                entry["parameters"] = {"binary_data_size": array.nbytes}
                payload += array.tobytes()
            else:
                place[:] = array.tobytes()
            described.append(entry)
        return json.dumps({"model_name": model, "outputs": described}).encode(), payload or None


@contextmanager
def serving(served: Served) -> Iterator[str]:
    """The address at which ``served`` is served while this lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"served": served}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
