"""A private RabbitMQ on this machine, without Docker or root.

``RABBITMQ_URL`` wins where it is set. Else a broker of our own runs: from an installed ``rabbitmq-server``, or from
Debian's packages unpacked once into the state folder (54 MB, a few seconds). It listens on loopback only, on free
ports, with a random password and a data folder of its own, and it is killed with its parent.

``python -m local.rabbitmq`` runs one in the foreground and prints its URL.
"""

import ctypes
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from local.debian import unpack
from local.environment import state_folder
from orchestrator.errors import ServiceError

PACKAGES = (
    "rabbitmq-server",
    *(f"erlang-{part}" for part in ("base", "asn1", "crypto", "eldap", "inets", "mnesia", "os-mon", "parsetools")),
    *(f"erlang-{part}" for part in ("public-key", "runtime-tools", "ssl", "syntax-tools", "tools", "xmerl")),
)
START_TIMEOUT_S = 240.0  # 4 s of CPU time, which a busy machine may stretch twentyfold
STOP_TIMEOUT_S = 15.0
REMEDY = "install rabbitmq-server (it need not run) or set RABBITMQ_URL to a broker you have"
# Below the kernel's range for outgoing connections (32768-60999), which would take a port between two of our starts.
_PORTS = range(20_000, 32_768)
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Installation:
    """Where a RabbitMQ that can be started lies."""

    server: Path
    """The real ``rabbitmq-server`` script, not Debian's wrapper, which insists on the user ``rabbitmq``."""
    erlang_bin: Path


def find_installation(state: Path) -> Installation:
    """The installed RabbitMQ if there is one, else the unpacked one, downloaded the first time."""
    scripts = [Path("/usr/lib/rabbitmq/bin/rabbitmq-server"), *_on_path("rabbitmq-server")]
    servers = [script for script in scripts if script.exists() and script.parent != Path("/usr/sbin")]
    epmds = [*_on_path("epmd"), *(erl.resolve().parent / "epmd" for erl in _on_path("erl"))]
    for server in servers:
        for epmd in epmds:
            if epmd.exists():
                return Installation(server, epmd.parent)
    return _unpacked(state / "rabbitmq")


def _on_path(program: str) -> list[Path]:
    found = shutil.which(program)
    return [Path(found)] if found else []


def _unpacked(folder: Path) -> Installation:
    root = folder / "server"
    if " " in str(root):
        raise ServiceError(
            f"RabbitMQ's scripts cannot run from {root}, a path with a space; set REMARQUE_STATE to another"
        )
    if not root.exists():
        partial = folder / f"server.{os.getpid()}"
        unpack(PACKAGES, partial, instead=REMEDY)
        _point_erlang_at(partial, root)
        try:
            partial.rename(root)
        except OSError:  # another process was first
            shutil.rmtree(partial)
    return Installation(root / "usr/lib/rabbitmq/bin/rabbitmq-server", root / "usr/lib/erlang/bin")


def _point_erlang_at(partial: Path, root: Path) -> None:
    """Erlang's start scripts have their installation folder written into them."""
    for script in ("erl", "start"):
        path = partial / "usr/lib/erlang/bin" / script
        path.write_text(re.sub(r"ROOTDIR=/usr/lib/erlang\b", f"ROOTDIR={root}/usr/lib/erlang", path.read_text()))


class RabbitMQ:
    """One broker with a life of its own: start, stop, kill, start again with the same data."""

    def __init__(self, installation: Installation, folder: Path) -> None:
        self._installation = installation
        self._folder = folder
        self._port, self._epmd_port, self._dist_port = free_ports(3)
        self._password = secrets.token_hex(16)
        self._epmd: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self.log = folder / "rabbitmq.log"

    @property
    def url(self) -> str:
        return f"amqp://remarque:{self._password}@127.0.0.1:{self._port}/"

    @property
    def pids(self) -> list[int]:
        """The broker's processes that were started here; their children end with them."""
        return [process.pid for process in (self._server, self._epmd) if process is not None]

    def start(self) -> Self:
        """Returns when the broker answers; :class:`ServiceError` with the end of its log when it does not."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._write_config()
        if self._epmd is None or self._epmd.poll() is not None:
            epmd = [str(self._installation.erlang_bin / "epmd"), "-address", "127.0.0.1", "-port", str(self._epmd_port)]
            self._epmd = self._spawn(epmd)
        self._server = self._spawn([str(self._installation.server)])
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _answers(self._port):
            if self._server.poll() is not None:
                raise ServiceError(
                    f"RabbitMQ ended with {self._server.returncode} while starting: {self._log_end()}; {REMEDY}"
                )
            if time.monotonic() > deadline:
                self.kill_9()
                raise ServiceError(
                    f"RabbitMQ did not answer within {START_TIMEOUT_S:.0f} s: {self._log_end()}; {REMEDY}"
                )
            time.sleep(0.05)
        return self

    def stop(self) -> None:
        """Orderly: the broker writes what it holds, then its processes end and its data folder goes away."""
        for process in (self._server, self._epmd):
            if process is not None and process.poll() is None:
                process.terminate()
                try:
                    process.wait(STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        self._server = self._epmd = None
        shutil.rmtree(self._folder / "data", ignore_errors=True)

    def kill_9(self) -> None:
        """What a power cut does; data and port stay for :meth:`restart`."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None

    def restart(self) -> None:
        """Up again with the same data, port and password, after a kill or by one."""
        self.kill_9()
        self.start()

    def ctl(self, *arguments: str) -> str:
        """What ``rabbitmqctl ARGUMENTS`` prints (about 2 s: it starts an Erlang of its own)."""
        command = [str(self._installation.server.with_name("rabbitmqctl")), "-q", *arguments]
        answer = subprocess.run(command, env=self._environ(), capture_output=True, text=True, check=False)
        if answer.returncode != 0:
            raise ServiceError(f"rabbitmqctl {arguments[0]} failed: {answer.stderr.strip() or answer.stdout.strip()}")
        return answer.stdout

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command,
                env=self._environ(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )

    def _write_config(self) -> None:
        config = self._folder / "rabbitmq.conf"
        config.touch(mode=0o600)
        config.write_text(f"default_user = remarque\ndefault_pass = {self._password}\n")

    def _environ(self) -> dict[str, str]:
        folder, data = self._folder, self._folder / "data"
        own = {
            "PATH": f"{self._installation.erlang_bin}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "HOME": str(folder),  # holds Erlang's cookie
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_NODENAME": "remarque@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self._port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "none.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(data),
            "RABBITMQ_LOG_BASE": str(folder),
            "RABBITMQ_LOGS": "-",
            "RUNNING_UNDER_SYSTEMD": "true",  # the script becomes the Erlang VM, so the process we hold is the broker
            "LC_ALL": "C.UTF-8",
        }
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL"))}
        return kept | own

    def _log_end(self) -> str:
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return f"{' | '.join(lines[-3:])} (whole log: {self.log})"


def free_ports(count: int) -> list[int]:
    """Different TCP ports of loopback that nobody listens on now."""
    ports: list[int] = []
    for port in random.SystemRandom().sample(_PORTS, 400):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise ServiceError(f"no {count} free ports between {_PORTS.start} and {_PORTS.stop - 1}; stop what listens there")


def _answers(port: int) -> bool:
    """Whether an AMQP broker, not merely a listening socket, is there."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as probe:
            probe.sendall(b"AMQP\x00\x00\x09\x01")
            return probe.recv(1) == b"\x01"  # a method frame: Connection.Start
    except OSError:
        return False


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def _die_with_parent() -> None:
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def private_rabbitmq(state: Path | None = None) -> Iterator[RabbitMQ]:
    """A started broker of our own, stopped at the end; its log stays in the state folder's ``logs``."""
    state = state or state_folder()
    installation = find_installation(state)
    _remove_left_overs(state / "rabbitmq")
    folder = state / "rabbitmq" / f"run-{os.getpid()}-{secrets.token_hex(3)}"
    broker = RabbitMQ(installation, folder)
    try:
        yield broker.start()
    finally:
        broker.stop()
        (state / "logs").mkdir(exist_ok=True)
        if broker.log.exists():
            shutil.copyfile(broker.log, state / "logs" / "rabbitmq.log")
        shutil.rmtree(folder, ignore_errors=True)


def _remove_left_overs(folder: Path) -> None:
    """Data of brokers whose parent was killed and could not tidy up."""
    for run in folder.glob("run-*"):
        pid = run.name.split("-")[1]
        if not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            shutil.rmtree(run, ignore_errors=True)


@contextmanager
def rabbitmq_url(environ: Mapping[str, str], state: Path | None = None) -> Iterator[str]:
    """``RABBITMQ_URL`` if it is set, else the URL of a private broker that lives as long as the ``with`` block."""
    if given := environ.get("RABBITMQ_URL"):
        yield given
        return
    with private_rabbitmq(state) as broker:
        yield broker.url


def main() -> int:
    """Run in the foreground until Ctrl-C or SIGTERM; the URL is the first line of the output."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with rabbitmq_url(os.environ) as url:
            print(url, flush=True)
            while True:
                signal.pause()
    except KeyboardInterrupt:
        return 0
    except ServiceError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
