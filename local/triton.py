"""The real ``tritonserver`` on this machine, as long as a ``with`` block or the program that started it.

::

    with LocalTriton(Path("model_repository")) as triton:
        client = TritonModels(triton.http_url)

``python -m local.triton --models DIR`` runs it in the foreground. It listens on 127.0.0.1 only.
"""

import argparse
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from local.environment import prepare
from local.triton_log import means_overload, means_taken_port, reason_and_remedy
from orchestrator.errors import ServiceError

HOST = "127.0.0.1"
START_ATTEMPTS = 4
"""Ports found free may be taken meanwhile; on a very busy machine the python backend may abort or hang at a start."""
LOG_KEPT_BYTES = 8 << 20
SHM_BYTES = 64 << 20
"""Shared memory that each python model starts with; it grows as needed."""
ROUND_TRIP = "round_trip"
ROUND_TRIP_REPOSITORY = Path(__file__).resolve().parent / "repository"
ROUND_TRIP_VALUES = [[1.5, -2.25, 3.0e5], [0.0, 1.0e-3, 7.0]]


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the three services listen; 0 takes any free port."""

    http: int = 0
    grpc: int = 0
    metrics: int = 0


class LocalTriton:
    """One ``tritonserver`` process, started, proven by a round trip and ended together with this process.

    ``models`` are loaded at the start, all of the repository's where None but those with styles merged into them, whose
    names hold ``--``; any can be loaded later through model control. ``runtime`` and ``threads``, where given, overrule
    what the models' configurations say. ``grace_s`` is what :meth:`stop` allows calls in flight: an orderly end takes
    Triton 3 s even when idle, a kill 70 ms.
    """

    def __init__(
        self,
        model_repository: Path,
        *,
        models: Sequence[str] | None = None,
        ports: Ports | None = None,
        runtime: str | None = None,
        threads: int | None = None,
        ready_within_s: float = 480.0,
        grace_s: float = 0.0,
        log: Path | None = None,
    ) -> None:
        self._repository = model_repository.absolute()
        self._models = models
        self._wanted = ports or Ports()
        self._overrides = {"REMARQUE_RUNTIME": runtime, "REMARQUE_THREADS": None if threads is None else str(threads)}
        self._ready_within_s = ready_within_s
        self._grace_s = grace_s
        self._environment = prepare()
        # The keeper runs in the checkout, where a relative path would be another file.
        self.log = (log or self._environment.state / "logs" / "triton.log").absolute()
        self._ports = self._wanted
        self._keeper: subprocess.Popen[str] | None = None
        self.server_pid: int | None = None

    @property
    def http_url(self) -> str:
        return f"http://{HOST}:{self._ports.http}"

    @property
    def grpc_url(self) -> str:
        return f"{HOST}:{self._ports.grpc}"

    @property
    def metrics_url(self) -> str:
        return f"http://{HOST}:{self._ports.metrics}/metrics"

    @property
    def alive(self) -> bool:
        """Whether the server process runs. Starting a dead one again is up to the caller."""
        return self._keeper is not None and self._keeper.poll() is None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Return when every model is ready and the round trip was right; else :class:`ServiceError`, nothing left."""
        self.stop()
        if not self._repository.is_dir():
            raise ServiceError(f"{self._repository} is not a folder; name the model repository to serve")
        _keep_log_short(self.log)
        for attempt in range(START_ATTEMPTS):
            self._ports = _resolve(self._wanted)
            beginning = self.log.stat().st_size
            self._spawn()
            try:
                self._wait_until_ready(beginning)
                self._prove_round_trip()
                return
            except _WorthAnotherTry as error:
                self.stop()
                if attempt == START_ATTEMPTS - 1:
                    raise ServiceError(str(error)) from error
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """End the server in an orderly way within ``grace_s``, then by force. Harmless when it does not run."""
        keeper, self._keeper, self.server_pid = self._keeper, None, None
        if keeper is None or keeper.stdin is None or keeper.stdout is None:
            return
        with contextlib.suppress(BrokenPipeError):
            keeper.stdin.write(f"{self._grace_s}\n")
            keeper.stdin.flush()
        try:
            keeper.wait(timeout=self._grace_s + 30)
        except subprocess.TimeoutExpired:
            keeper.kill()
            keeper.wait()
        with contextlib.suppress(BrokenPipeError):
            keeper.stdin.close()
        keeper.stdout.close()

    def wait(self) -> int:
        """Block until the server ends by itself; its exit status."""
        return self._keeper.wait() if self._keeper else 0

    def _spawn(self) -> None:
        # A killed python backend leaves its shared memory behind: the keeper removes what carries this server's prefix.
        prefix = f"remarque_{os.getpid()}_{self._ports.http}_"
        command = [sys.executable, "-m", "local.keeper", str(self.log), f"/dev/shm/{prefix}", *self._command(prefix)]
        self._keeper = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).resolve().parent.parent,
            env=self._server_environment(os.environ),
            start_new_session=True,  # Ctrl-C in a terminal reaches the caller, who decides what it means
        )
        assert self._keeper.stdout is not None
        told = self._keeper.stdout.readline()
        self.server_pid = int(told) if told else None

    def _command(self, shm_prefix: str) -> list[str]:
        models = [*(self._unmerged() if self._models is None else self._models), ROUND_TRIP]
        options = {
            "http-address": HOST,
            "grpc-address": HOST,
            "metrics-address": HOST,
            "http-port": self._ports.http,
            "grpc-port": self._ports.grpc,
            "metrics-port": self._ports.metrics,
            "backend-directory": self._environment.backends,
            "model-control-mode": "explicit",
            "allow-gpu-metrics": "false",
            "http-thread-count": 16,
            "exit-timeout-secs": 5,
            # A stub that gets no processor for a second is taken for dead, and the server aborts on its locks. Beside
            # twelve programs on two cores 11 of 16 starts with four stubs at once failed, 3 of 10 with one at a time
            # and 0 of 6 without numpy's threads (OPENBLAS_NUM_THREADS).
            "model-load-thread-count": 1,
        }
        repositories = (self._repository, ROUND_TRIP_REPOSITORY)
        return [
            str(self._environment.server),
            *(f"--{name}={value}" for name, value in options.items()),
            f"--backend-config=python,shm-default-byte-size={SHM_BYTES}",
            f"--backend-config=python,stub-timeout-seconds={self._ready_within_s:.0f}",  # 30 s by default
            f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
            *(f"--model-repository={folder}" for folder in repositories),
            *(f"--load-model={name}" for name in models),
            "--disable-auto-complete-config",  # a python model then loads in 0.1 s instead of 1.4 s
        ]

    def _unmerged(self) -> list[str]:
        folders = (path.name for path in self._repository.iterdir() if path.is_dir())
        return sorted(name for name in folders if "--" not in name)

    def _server_environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """The caller's environment, with the stub's Python first on PATH: the python backend embeds that one."""
        dropped = ("PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
        kept = {name: value for name, value in inherited.items() if name not in dropped}
        libraries = [str(self._environment.libraries), kept.get("LD_LIBRARY_PATH", "")]
        return {
            **kept,
            "PATH": os.pathsep.join([str(self._environment.stub / "bin"), kept.get("PATH", os.defpath)]),
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OPENBLAS_NUM_THREADS": "1",
            **{name: value for name, value in self._overrides.items() if value is not None},
        }

    def _wait_until_ready(self, beginning: int) -> None:
        deadline = time.monotonic() + self._ready_within_s / START_ATTEMPTS
        while time.monotonic() < deadline:
            if not self.alive:
                raise self._explained(beginning)
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self._call("GET", "/v2/health/ready")[0] == http.HTTPStatus.OK:
                    return
            time.sleep(0.02)
        raise _WorthAnotherTry(
            f"Triton was not ready after {self._ready_within_s:g} s; allow more (ready_within_s) or see {self.log}"
        )

    def _explained(self, beginning: int) -> ServiceError:
        """Why the server ended, from what it logged since ``beginning``, with the remedy."""
        with self.log.open("rb") as handle:
            handle.seek(beginning)
            said = handle.read().decode(errors="replace")
        if means_taken_port(said):
            return _WorthAnotherTry(_taken(self._ports))
        if reason := reason_and_remedy(said):
            kind = _WorthAnotherTry if means_overload(said) else ServiceError
            return kind(f"Triton cannot start: {reason} (log: {self.log})")
        status = self._keeper.poll() if self._keeper else None
        return ServiceError(f"Triton ended with status {status} before it was ready; the reason is in {self.log}")

    def _prove_round_trip(self) -> None:
        tensor = {"name": "sent", "datatype": "FP32", "shape": [2, 3], "data": ROUND_TRIP_VALUES}
        status, body = self._call("POST", f"/v2/models/{ROUND_TRIP}/infer", {"inputs": [tensor]})
        expected = [value for row in ROUND_TRIP_VALUES for value in row]
        outputs = json.loads(body).get("outputs", [{}]) if status == http.HTTPStatus.OK else [{}]
        got = outputs[0].get("data", [])
        if len(got) != len(expected) or any(abs(a - b) > 1e-6 * abs(b) for a, b in zip(got, expected, strict=True)):
            raise ServiceError(
                f"Triton's python backend answered {got or body.decode(errors='replace')} for {expected}: its numpy is "
                f"not 1.26; delete {self._environment.stub} and run python -m local.environment"
            )
        self._call("POST", f"/v2/repository/models/{ROUND_TRIP}/unload", {})

    def _call(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(HOST, self._ports.http, timeout=30)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


class _WorthAnotherTry(ServiceError):
    """A port was taken since it was found free, or the machine was too busy: the same start may succeed."""


def _taken(ports: Ports) -> str:
    named = ", ".join(str(port) for port in (ports.http, ports.grpc, ports.metrics))
    return f"one of the ports {named} on {HOST} is in use; end the program that listens there or choose other ports"


def _resolve(wanted: Ports) -> Ports:
    """Free ports for zeros; a named port that is taken is refused here, before anything starts."""
    named = [port for port in (wanted.http, wanted.grpc, wanted.metrics) if port]
    if len(set(named)) < len(named):
        raise ServiceError(f"ports are {', '.join(map(str, named))}; each protocol needs one of its own")
    with contextlib.ExitStack() as held:
        found = []
        for port in (wanted.http, wanted.grpc, wanted.metrics):
            probe = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OverflowError as error:
                raise ServiceError(f"port is {port}; 0 to 65535 are served, 0 takes any free one") from error
            except OSError as error:
                raise ServiceError(
                    f"port {port} on {HOST} is in use; end the program that listens there or choose another port"
                ) from error
            found.append(probe.getsockname()[1])
    return Ports(*found)


def _keep_log_short(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > LOG_KEPT_BYTES:
        log.replace(log.with_suffix(".log.1"))
    log.touch()


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m local.triton", description="Run a local Triton in the foreground.")
    parser.add_argument("--models", type=Path, required=True, metavar="DIR", help="the model repository to serve")
    parser.add_argument("--only", nargs="+", metavar="MODEL", help="load these models instead of all")
    parser.add_argument("--http-port", type=int, default=8000, help="default 8000; 0 takes any free port")
    parser.add_argument("--grpc-port", type=int, default=8001, help="default 8001")
    parser.add_argument("--metrics-port", type=int, default=8002, help="default 8002")
    parser.add_argument(
        "--runtime", help="overrule the models' runtime: auto, openvino-bf16, openvino-f32, onnxruntime-f32"
    )
    parser.add_argument("--threads", type=int, help="overrule the models' number of threads")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C, SIGTERM or the server's own end."""
    chosen = _arguments(argv)
    for ending in (signal.SIGINT, signal.SIGTERM):  # a shell starts background programs with SIGINT ignored
        signal.signal(ending, signal.default_int_handler)
    ports = Ports(chosen.http_port, chosen.grpc_port, chosen.metrics_port)
    try:
        with LocalTriton(
            chosen.models, models=chosen.only, ports=ports, runtime=chosen.runtime, threads=chosen.threads, grace_s=10.0
        ) as triton:
            print(f"Triton serves {chosen.models} at {triton.http_url} (log: {triton.log})", flush=True)
            status = triton.wait()
            print(f"Triton ended with status {status}; see {triton.log}", file=sys.stderr)
            return 1
    except ServiceError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
