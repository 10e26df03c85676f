"""How long executions take by their rows, measured through Triton's HTTP interface."""

import http.client
import json
import math
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

from export.errors import ExportError

SHARED: Final = Path("/dev/shm")
_TIMEOUT_S: Final = 600.0
_SIZES: Final = {"BOOL": 1, "UINT8": 1, "FP16": 2, "FP32": 4, "INT32": 4, "INT64": 8, "FP64": 8}
_TOKENS: Final = 77


@dataclass(frozen=True)
class Point:
    """One measured place of the curve: a call of ``rows`` rows took ``seconds``, the median of its repeats."""

    rows: int
    seconds: float

    @property
    def rows_per_s(self) -> float:
        return self.rows / self.seconds


class Server:
    """A running Triton, as far as tuning needs it."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url if "://" in url else f"http://{url}")
        self._host, self._port = address.hostname or "", address.port or 80

    def config(self, model: str) -> dict[str, Any]:
        """A model's configuration as the server has it now."""
        told: dict[str, Any] = json.loads(self._asked("GET", f"/v2/models/{quote(model)}/config"))
        return told

    def load(self, model: str, config: Mapping[str, Any] | None = None) -> None:
        """Load ``model`` again, with a configuration that overrules its file's where one is given."""
        parameters = {} if config is None else {"parameters": {"config": json.dumps(config)}}
        self._asked("POST", f"/v2/repository/models/{quote(model)}/load", json.dumps(parameters).encode())

    def executions(self, model: str) -> int:
        """How often ``model`` ran."""
        told = json.loads(self._asked("GET", f"/v2/models/{quote(model)}/stats"))
        return int(told["model_stats"][0]["execution_count"])

    def step(self, model: str, config: Mapping[str, Any], rows: int, side: int) -> None:
        """One call with ``rows`` rows of latents ``side`` by ``side``; every value is 0, which takes no less time."""
        header, body = _call(config, rows, side, None)
        self._asked("POST", f"/v2/models/{quote(model)}/infer", body, header)

    def steps(
        self, model: str, config: Mapping[str, Any], rows: int, side: int, calls: int, region: str | None
    ) -> None:
        """So many such calls, written one after the other by this thread, as a group of jobs sends them."""
        header, body = _call(config, rows, side, region)
        path = f"/v2/models/{quote(model)}/infer"
        with ExitStack() as closing_all:
            open_calls = [closing_all.enter_context(closing(self._connection())) for _ in range(calls)]
            try:
                for call in open_calls:
                    call.connect()
                for call in open_calls:
                    call.request("POST", path, body, header)
                answers = [call.getresponse() for call in open_calls]
                said = [answer.read() for answer in answers]
            except (OSError, http.client.HTTPException) as error:
                raise self._silent(error) from error
        for answer, words in zip(answers, said, strict=True):
            if answer.status != http.HTTPStatus.OK:
                raise Refused(words.decode(errors="replace"))

    @contextmanager
    def zeros(self, size: int) -> Iterator[str | None]:
        """Shared memory of so many zeros, by its name there; None where the server takes none from this process."""
        path = SHARED / f"remarque-tune-{os.getpid()}"
        region = f"/v2/systemsharedmemory/region/{path.name}"
        try:
            with path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)  # a hole that is read where nothing is left ends the server
            about = {"key": f"/{path.name}", "offset": 0, "byte_size": size}
            self._asked("POST", f"{region}/register", json.dumps(about).encode())
        except (OSError, ExportError):
            path.unlink(missing_ok=True)
            yield None
            return
        try:
            yield path.name
        finally:
            path.unlink()
            self._asked("POST", f"{region}/unregister", b"{}")

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT_S)

    def _silent(self, error: Exception) -> ExportError:
        return ExportError(f"Triton at {self._host}:{self._port} does not answer: {error}")

    def _asked(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
        connection = self._connection()
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            said = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._silent(error) from error
        finally:
            connection.close()
        if answer.status != http.HTTPStatus.OK:
            raise Refused(said.decode(errors="replace"))
        return said


class Refused(ExportError):
    """Triton answered with an error of its own."""


def curve(
    server: Server, model: str, side: int, repeats: int, patience_s: float, most: int | None = None
) -> list[Point]:
    """The median time of 1, 2, 4 ... rows up to the model's limit, or to ``most``.

    It ends where a point would take longer than ``patience_s`` or does not fit into memory.
    """
    config = server.config(model)
    points: list[Point] = []
    for rows in rows_to_try(min(config["max_batch_size"], most or config["max_batch_size"])):
        if points and points[-1].seconds * 2 * (repeats + 1) > patience_s:
            break
        try:
            server.step(model, config, rows, side)
            points.append(Point(rows, statistics.median(_timed(server, model, config, rows, side, repeats))))
        except Refused as error:
            if not points or not any(sign in str(error) for sign in ("memory", "alloc")):
                raise
            break
    return points


def joined(server: Server, model: str, side: int, callers: int, rounds: int) -> float:
    """Executions that ``callers`` calls of two rows, posted at the same moment, needed on average; 1 is the best."""
    config = server.config(model)
    largest = max(_bytes(entry, [2, *_filled(entry["name"], entry["dims"], side)]) for entry in config["input"])
    with server.zeros(largest) as region:
        before = server.executions(model)
        for _ in range(rounds):
            server.steps(model, config, 2, side, callers, region)
        return (server.executions(model) - before) / rounds


def rows_to_try(limit: int) -> Sequence[int]:
    """1, 2, 4 ... and the limit itself."""
    doubling = [1 << power for power in range(limit.bit_length()) if 1 << power < limit]
    return [*doubling, limit]


def worth(points: Sequence[Point], share: float = 0.95) -> int:
    """The fewest rows, a guidance pair at least, that reach ``share`` of the best rows a second."""
    best = max(point.rows_per_s for point in points)
    enough = [point.rows for point in points if point.rows_per_s >= share * best and point.rows >= 2]
    return min(enough, default=points[-1].rows)


def _timed(
    server: Server, model: str, config: Mapping[str, Any], rows: int, side: int, repeats: int
) -> Sequence[float]:
    times = []
    for _ in range(repeats):
        begun_s = time.perf_counter()
        server.step(model, config, rows, side)
        times.append(time.perf_counter() - begun_s)
    return times


def _call(config: Mapping[str, Any], rows: int, side: int, region: str | None) -> tuple[dict[str, str], bytes]:
    """Headers and body of a call; its zeros are in the shared memory, if there is any, else in the body."""
    described, size = [], 0
    for entry in config["input"]:
        shape = [rows, *_filled(entry["name"], entry["dims"], side)]
        length = _bytes(entry, shape)
        where: dict[str, object] = {"binary_data_size": length}
        if region is not None:
            where = {"shared_memory_region": region, "shared_memory_byte_size": length}
        else:
            size += length
        kind = entry["data_type"].removeprefix("TYPE_")
        described.append({"name": entry["name"], "shape": shape, "datatype": kind, "parameters": where})
    outputs = [{"name": entry["name"], "parameters": {"binary_data": True}} for entry in config["output"]]
    header = json.dumps({"inputs": described, "outputs": outputs}).encode()
    return {"Inference-Header-Content-Length": str(len(header))}, header + bytes(size)


def _bytes(entry: Mapping[str, Any], shape: Sequence[int]) -> int:
    return math.prod(shape) * _SIZES[entry["data_type"].removeprefix("TYPE_")]


def _filled(name: str, dims: Sequence[int | str], side: int) -> list[int]:
    """A row's shape: open dims are the latents' sides, a picture's, or one chunk of tokens."""
    sides = [int(dim) for dim in dims]
    if name == "encoder_hidden_states":
        return [_TOKENS if dim < 0 else dim for dim in sides]
    large = 8 * side if sides[-1:] == [3] else side
    return [large if dim < 0 else dim for dim in sides]
