"""The Open Inference Protocol over HTTP with binary tensors or shared memory, as Triton speaks it.

Thread-safe through its pool of connections, nothing to import beyond the standard library and numpy, and thinner than
Triton's own clients (docs/throughput.md has the figures).
"""

import json
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
from numpy.typing import DTypeLike, NDArray

from orchestrator.clients.wire import BrokenAnswer, Connection, Part, Response
from orchestrator.errors import ConfigError, DeadlineExceeded, ModelUnavailable

Array = NDArray[Any]
Turn = Callable[[Callable[[], None], Callable[[float], bool]], AbstractContextManager[None]]
"""Entered with (send, wait): ``send`` has been called, by whatever thread, when the answer begins and the body runs."""

_HEADER = "Inference-Header-Content-Length"
_DTYPES: Mapping[str, DTypeLike] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_GONE = (ConnectionResetError, BrokenPipeError, ssl.SSLEOFError, ssl.SSLZeroReturnError)
"""What a kept connection says whose other end went away since its last use."""


class Refusal(Exception):
    """The server answered with an error of its own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model declares: element types, the most rows of one execution and its configuration's parameters."""

    inputs: Mapping[str, np.dtype[Any]]
    outputs: Mapping[str, np.dtype[Any]]
    max_rows: int
    parameters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Message:
    """A request, written out: its first bytes and what follows them. It can be sent any number of times."""

    what: str
    parts: Sequence[Part]


class InferenceServer:
    """One server; any number of threads may call it at once.

    A call that takes longer than its deadline raises :class:`DeadlineExceeded`, a server that cannot be reached
    :class:`ModelUnavailable`, an answer that is an error :class:`Refusal`. Calls are pure or idempotent, so one that
    meets a connection closed by the other end since its last use is made once more on a new connection.
    """

    def __init__(
        self, url: str, *, deadline_s: float, connect_timeout_s: float = 2.0, ca_file: Path | None = None
    ) -> None:
        address = urlsplit(url if "://" in url else f"http://{url}")
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ConfigError(
                f"the inference server's address is {url!r}; http://HOST:PORT or https://HOST:PORT is served"
            )
        self.url = url
        self._address = address
        self._host = address.netloc.rpartition("@")[2]
        self._below = quote(address.path.rstrip("/"), safe="/%")
        self._trusted = _trusted(ca_file) if address.scheme == "https" else None
        self._deadline_s = deadline_s
        self._connect_timeout_s = connect_timeout_s
        self._idle: deque[Connection] = deque()
        self._lock = threading.Lock()

    def infer(self, model: str, inputs: Mapping[str, Array], outputs: Sequence[str], turn: Turn) -> dict[str, Array]:
        """Run ``model`` on arrays of the dtypes in its signature; the outputs named, in memory of their own."""
        sent = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        described = [described_by_value(name, array) for name, array in sent.items()]
        wanted = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
        message = self.message(model, described, wanted, [bytes_of(array) for array in sent.values()])
        rows = len(next(iter(sent.values())))
        return self.outputs_of(message, self.send(message, turn), outputs, rows)

    def message(
        self, model: str, inputs: Sequence[object], outputs: Sequence[object], tensors: Sequence[Part]
    ) -> Message:
        """A call of ``model``; inputs and outputs are described as the protocol does, ``tensors`` travel with it."""
        header = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
        return self._request("POST", f"/v2/models/{quote(model)}/infer", [header, *tensors], {_HEADER: len(header)})

    def send(self, message: Message, turn: Turn, deadline_s: float | None = None) -> Response:
        """Send ``message`` when its turn comes; the answer."""
        response = self._exchange(message, turn, self._deadline_s if deadline_s is None else deadline_s)
        if response.status != HTTPStatus.OK:
            raise Refusal(response.status, _message_of(bytes(response.content)))
        return response

    def outputs_of(self, message: Message, response: Response, outputs: Sequence[str], rows: int) -> dict[str, Array]:
        """The outputs named, of so many rows each, that travelled with the answer to ``message``."""
        try:
            length = int(response.headers[_HEADER.lower().encode()])
            described = json.loads(bytes(response.content[:length]))["outputs"]
            found = dict(_arrays(described, response.content[length:]))
            return {name: _of_rows(name, found[name], rows) for name in outputs}
        except (ValueError, LookupError, TypeError) as error:
            raise ModelUnavailable(f"{self.url} did not answer {message.what}: {error!r}") from error

    def signature(self, model: str) -> Signature:
        """What ``model`` declares: engines on a GPU node may take FP16 where a laptop's graphs take FP32."""
        told = self.ask("GET", f"/v2/models/{quote(model)}/config")
        try:
            inputs, outputs = (
                {entry["name"]: np.dtype(_DTYPES[entry["data_type"].removeprefix("TYPE_")]) for entry in told[kind]}
                for kind in ("input", "output")
            )
        except KeyError as error:
            raise ModelUnavailable(
                f"{model} declares a tensor of type {error}; {', '.join(_DTYPES)} are served"
            ) from error
        parameters = {key: entry.get("string_value", "") for key, entry in told.get("parameters", {}).items()}
        return Signature(inputs, outputs, max(1, told.get("max_batch_size", 0)), parameters)

    def ask(self, method: str, path: str, document: object = None, *, deadline_s: float | None = None) -> Any:
        """A call without tensors; its JSON answer, an empty dict where the server gives none."""
        body = [] if document is None else [json.dumps(document).encode()]
        said = self.send(self._request(method, path, body), at_once, deadline_s).content
        try:
            return json.loads(bytes(said)) if said else {}
        except ValueError as error:
            raise ModelUnavailable(f"{self.url} did not answer {method} {path}: {error}") from error

    def close(self) -> None:
        """Close the idle connections; calls under way finish on theirs."""
        with self._lock:
            idle, self._idle = self._idle, deque()
        for connection in idle:
            connection.close()

    def _request(
        self, method: str, path: str, body: Sequence[Part], headers: Mapping[str, object] | None = None
    ) -> Message:
        sized = {"Host": self._host, **(headers or {}), "Content-Length": sum(len(part) for part in body)}
        lines = "".join(f"{name}: {value}\r\n" for name, value in sized.items())
        head = f"{method} {self._below}{path} HTTP/1.1\r\n{lines}\r\n".encode("ascii")
        # One buffer for all that is text: a step whose tensors lie in shared memory is one short write.
        return Message(f"{method} {path}", [head + bytes(body[0]), *body[1:]] if body else [head])

    def _exchange(self, message: Message, turn: Turn, within_s: float) -> Response:
        end = time.monotonic() + within_s
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            reused, intact = connection is not None, False
            try:
                connection = connection or self._connect()
                with turn(partial(connection.send, end, message.parts), partial(connection.wait, end)):
                    response = connection.receive(end)
                intact = True
                return response
            except (TimeoutError, *_GONE) as error:
                if isinstance(error, TimeoutError) and error.errno is None:
                    raise DeadlineExceeded(f"{message.what} at {self.url} took longer than {within_s:g} s") from error
                if not reused:
                    raise ModelUnavailable(
                        f"{self.url} closed the connection during {message.what}: {error}"
                    ) from error
                self.close()  # the other idle ones are as old
            except (OSError, ValueError) as error:
                raise ModelUnavailable(f"{self.url} did not answer {message.what}: {error}") from error
            finally:
                self._give_back(connection, intact)

    def _connect(self) -> Connection:
        try:
            return Connection(self._address, self._connect_timeout_s, self._trusted)
        except TimeoutError as error:
            raise OSError(f"no connection within {self._connect_timeout_s:g} s") from error

    def _give_back(self, connection: Connection | None, intact: bool) -> None:
        if connection is None:
            return
        if intact and connection.reusable:
            with self._lock:
                self._idle.append(connection)
        else:
            connection.close()


@contextmanager
def at_once(send: Callable[[], None], wait: Callable[[float], bool]) -> Iterator[None]:
    """The turn of a call that waits for no other."""
    del wait
    send()
    yield


def described_by_value(name: str, array: Array) -> dict[str, object]:
    """An input that travels with the call."""
    return _described(name, array) | {"parameters": {"binary_data_size": array.nbytes}}


def described_by_place(name: str, array: Array, region: str, offset: int) -> dict[str, object]:
    """An input that lies, or an output that shall lie, in the shared memory ``region``."""
    place = {
        "shared_memory_region": region,
        "shared_memory_byte_size": array.nbytes,
        "shared_memory_offset": offset,
    }
    return _described(name, array) | {"parameters": place}


def bytes_of(array: Array) -> memoryview:
    """The memory of a contiguous array."""
    return array.reshape(-1).view(np.uint8).data


def _described(name: str, array: Array) -> dict[str, object]:
    return {"name": name, "shape": array.shape, "datatype": _NAMES[array.dtype]}


def _arrays(described: Sequence[Mapping[str, Any]], binary: memoryview) -> Iterator[tuple[str, Array]]:
    for entry in described:
        size = entry.get("parameters", {}).get("binary_data_size")
        if size is None:
            continue
        array = np.empty(entry["shape"], _DTYPES[entry["datatype"]])
        if size != array.nbytes or size > len(binary):
            raise BrokenAnswer(f"output {entry['name']} of shape {entry['shape']} came with {size} bytes")
        bytes_of(array)[:] = binary[:size]
        binary = binary[size:]
        yield entry["name"], array


def _of_rows(name: str, array: Array, rows: int) -> Array:
    """The output as it came; one row for many would otherwise be taken for all of them further on."""
    if array.shape[:1] != (rows,):
        raise BrokenAnswer(f"output {name} came in the shape {list(array.shape)} for {rows} rows")
    return array


def _message_of(body: bytes) -> str:
    try:
        told = json.loads(body)
    except ValueError:
        return body.decode(errors="replace").strip() or "no reason given"
    return str(told.get("error", told)) if isinstance(told, dict) else str(told)


def _trusted(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ConfigError(f"the authority's file {ca_file} cannot be read: {error}") from error
