"""The Open Inference Protocol over HTTP with binary tensors, as Triton speaks it.

Written on ``http.client``: thread-safe through its pool, nothing to import beyond the standard library and numpy, and
as fast as Triton's own client (docs/local-triton.md has the figures). Arrays are sent from and received into their own
memory.
"""

import http.client
import json
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
from numpy.typing import DTypeLike, NDArray

from orchestrator.errors import ConfigError, DeadlineExceeded, ModelUnavailable

Array = NDArray[Any]

_HEADER_LENGTH = "Inference-Header-Content-Length"
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
_GONE = (ConnectionResetError, BrokenPipeError, http.client.RemoteDisconnected)
"""What a kept connection says whose other end went away since its last use."""


class Refusal(Exception):
    """The server answered with an error of its own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Signature:
    """Element type of every input of a model."""

    inputs: Mapping[str, np.dtype[Any]]


class InferenceServer:
    """One server; any number of threads may call it at once.

    A call that takes longer than its deadline raises :class:`DeadlineExceeded`, a server that cannot be reached
    :class:`ModelUnavailable`, an answer that is an error :class:`Refusal`. Calls are pure or idempotent, so one that
    meets a connection closed by the other end since its last use is made once more on a new connection.
    """

    def __init__(self, url: str, *, deadline_s: float, connect_timeout_s: float) -> None:
        address = urlsplit(url if "://" in url else f"http://{url}")
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ConfigError(
                f"the inference server's address is {url!r}; http://HOST:PORT or https://HOST:PORT is served"
            )
        self.url = url
        self._address = address
        self._deadline_s = deadline_s
        self._connect_timeout_s = connect_timeout_s
        self._idle: deque[http.client.HTTPConnection] = deque()
        self._lock = threading.Lock()

    def infer(self, model: str, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Run ``model`` on arrays of the dtypes in its signature; the outputs named, in memory of their own."""
        described = [
            {
                "name": name,
                "shape": array.shape,
                "datatype": _NAMES[array.dtype],
                "parameters": {"binary_data_size": array.nbytes},
            }
            for name, array in inputs.items()
        ]
        wanted = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
        header = json.dumps({"inputs": described, "outputs": wanted}).encode()
        body: list[bytes | memoryview] = [
            header,
            *(_bytes_of(np.ascontiguousarray(array)) for array in inputs.values()),
        ]
        path = f"/v2/models/{quote(model)}/infer"
        return self._exchange("POST", path, body, {_HEADER_LENGTH: str(len(header))}, self._deadline_s)

    def signature(self, model: str) -> Signature:
        """What ``model`` declares: engines on a GPU node may take FP16 where a laptop's graphs take FP32."""
        told = self.ask("GET", f"/v2/models/{quote(model)}")
        try:
            return Signature({entry["name"]: np.dtype(_DTYPES[entry["datatype"]]) for entry in told["inputs"]})
        except KeyError as error:
            raise ModelUnavailable(
                f"{model} declares an input of type {error}; {', '.join(_DTYPES)} are served"
            ) from error

    def ask(
        self, method: str, path: str, document: object = None, *, deadline_s: float | None = None
    ) -> dict[str, Any]:
        """A call without tensors; its JSON answer, empty where the server gives none."""
        body: list[bytes | memoryview] = [] if document is None else [json.dumps(document).encode()]
        return self._exchange(method, path, body, {}, self._deadline_s if deadline_s is None else deadline_s)

    def close(self) -> None:
        """Close the idle connections; calls under way finish on theirs."""
        with self._lock:
            idle, self._idle = self._idle, deque()
        for connection in idle:
            connection.close()

    def _exchange(
        self, method: str, path: str, body: Sequence[bytes | memoryview], headers: Mapping[str, str], deadline_s: float
    ) -> dict[str, Any]:
        sized = {**headers, "Content-Length": str(sum(len(part) for part in body))}
        end = time.monotonic() + deadline_s
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            reused, intact = connection is not None, False
            try:
                connection = connection or self._connect()
                answer = _converse(connection, method, path, body, sized, end)
                intact = True
                return answer
            except Refusal:
                intact = True
                raise
            except TimeoutError as error:
                raise DeadlineExceeded(f"{method} {path} at {self.url} took longer than {deadline_s:g} s") from error
            except _GONE as error:
                if not reused:
                    raise ModelUnavailable(
                        f"{self.url} closed the connection during {method} {path}: {error}"
                    ) from error
                self.close()  # the other idle ones are as old
            except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
                raise ModelUnavailable(f"{self.url} did not answer {method} {path}: {error}") from error
            finally:
                self._give_back(connection, intact)

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._address.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._address.hostname or "", self._address.port, timeout=self._connect_timeout_s)
        try:
            connection.connect()
        except TimeoutError as error:
            raise OSError(f"no connection within {self._connect_timeout_s:g} s") from error
        return connection

    def _give_back(self, connection: http.client.HTTPConnection | None, intact: bool) -> None:
        if connection is None:
            return
        if intact and connection.sock is not None:
            with self._lock:
                self._idle.append(connection)
        else:
            connection.close()


def _converse(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: Iterable[bytes | memoryview],
    headers: Mapping[str, str],
    end: float,
) -> dict[str, Any]:
    connection.sock.settimeout(_left(end))
    connection.request(method, path, body, headers)
    connection.sock.settimeout(_left(end))
    response = connection.getresponse()
    if connection.sock is not None:
        connection.sock.settimeout(_left(end))
    if response.status != http.HTTPStatus.OK:
        raise Refusal(response.status, _message_of(response.read()))
    header_length = response.getheader(_HEADER_LENGTH)
    if header_length is None:
        said = response.read()
        return json.loads(said) if said else {}
    described = json.loads(response.read(int(header_length)))["outputs"]
    arrays = {entry["name"]: _read_array(response, entry) for entry in described}
    response.read()
    return arrays


def _read_array(response: http.client.HTTPResponse, entry: Mapping[str, Any]) -> Array:
    array = np.empty(entry["shape"], _DTYPES[entry["datatype"]])
    target = _bytes_of(array)
    if entry["parameters"]["binary_data_size"] != len(target):
        raise ValueError(f"output {entry['name']} of shape {entry['shape']} came with {entry['parameters']} bytes")
    filled = 0
    while filled < len(target):
        got = response.readinto(target[filled:])
        if got == 0:
            raise http.client.IncompleteRead(b"", len(target) - filled)
        filled += got
    return array


def _bytes_of(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _message_of(body: bytes) -> str:
    try:
        told = json.loads(body)
    except ValueError:
        return body.decode(errors="replace").strip() or "no reason given"
    return str(told.get("error", told)) if isinstance(told, dict) else str(told)


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
