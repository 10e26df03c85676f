"""Measures how a built repository is served best on this machine, prints the curves and keeps what they say.

  python export/build_engines.py --tune --out models
  python export/build_engines.py --tune --out /models --url http://triton:8000

Without --url the local Triton is started with the repository's UNet; with it, a server under explicit model control
that serves the same repository is used. Measured are the runtimes and numbers of threads that a CPU leaves to choose,
the time of every number of rows at 512x512 and 1024x1024, a second instance, and how long Triton has to wait for calls
that are posted together. The values go into tuning.json and into the UNet's config.pbtxt: a rebuild keeps them,
deleting tuning.json and rebuilding forgets them. A running Triton takes them over when it loads the UNet again.
"""

import argparse
import contextlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TextIO

from export.config_pbtxt import LOCAL_RUNTIMES
from export.curve import Point, Refused, Server, curve, joined, worth
from export.errors import ExportError
from export.tuning import ROWS_AIMED_AT, Tuned, write_tuning

MODEL: Final = "unet"
SIDES: Final = (64, 128)
DELAYS_US: Final = (500, 1000, 2000, 5000)
CALLERS: Final = 4
WORTH_A_CHANGE: Final = 1.05
"""How much faster something must be to be chosen over what costs less or changes nothing."""
_ROOT: Final = Path(__file__).resolve().parents[1]


@dataclass
class Tuning:
    """One run of the measurement; :meth:`run` is called once."""

    server: Server
    stream: TextIO
    repeats: int
    patience_s: float
    curves: list[dict[str, Any]] = field(default_factory=list)

    def run(self) -> Tuned:
        """What is best; the server has the UNet as its file says again."""
        told = self.server.config(MODEL)
        local = told.get("backend") == "python"
        runtime, threads = self._computation(told) if local else (None, None)
        chosen = _with(told, runtime=runtime, threads=threads)
        self.server.load(MODEL, chosen)
        rows = self._rows(runtime or told.get("platform", ""), threads)
        self._instances(chosen)
        delay_us = self._delay(chosen)
        self.server.load(MODEL)
        return Tuned(delay_us, runtime, threads, rows)

    def _computation(self, told: dict[str, Any]) -> tuple[str, int]:
        """The runtime and the number of threads that take guidance pairs through fastest."""
        cores = len(os.sched_getaffinity(0))
        speeds = {
            (runtime, cores): self._speed(told, runtime, cores) for runtime in LOCAL_RUNTIMES if runtime != "auto"
        }
        best, _ = max(speeds, key=lambda key: speeds[key])
        if speeds[best, cores] == 0.0:
            raise ExportError(f"none of {', '.join(LOCAL_RUNTIMES[1:])} serves {MODEL} here; see Triton's log")
        if cores > 1 and self._speed(told, best, cores // 2) > WORTH_A_CHANGE * speeds[best, cores]:
            return best, cores // 2
        return best, cores

    def _speed(self, told: dict[str, Any], runtime: str, threads: int) -> float:
        """Rows a second of a guidance pair; 0 where this machine cannot run it so."""
        try:
            self.server.load(MODEL, _with(told, runtime=runtime, threads=threads))
        except Refused as error:
            self._say(f"{runtime:16} is not served here: {error}")
            return 0.0
        return self._measured(runtime, threads, SIDES[0], most=2)[-1].rows_per_s

    def _rows(self, runtime: str, threads: int | None) -> dict[int, int]:
        """How many rows are worth waiting for, by area."""
        return {side * side: worth(self._measured(runtime, threads, side)) for side in SIDES}

    def _instances(self, chosen: dict[str, Any]) -> None:
        """Says what a second instance with half of the threads would do; one is kept, since the gate fills one."""
        one = self._together()
        threads = int(chosen.get("parameters", {}).get("threads", {}).get("string_value", "0"))
        with contextlib.suppress(Refused):
            self.server.load(MODEL, _with(chosen, instances=2, threads=max(1, threads // 2) if threads else None))
            two = self._together()
            self._say(f"two instances: {one / two:.2f} of the speed of one; one is kept")
            self.curves.append({"instances": 2, "speed": one / two})

    def _delay(self, chosen: dict[str, Any]) -> int:
        """The shortest delay at which calls that are posted together run together."""
        for delay_us in DELAYS_US:
            self.server.load(MODEL, _with(chosen, delay_us=delay_us))
            needed = joined(self.server, MODEL, SIDES[0] // 2, CALLERS, 2 * self.repeats)
            self._say(f"delay {delay_us:5} us: {CALLERS} calls at once ran in {needed:.1f} executions")
            if needed <= WORTH_A_CHANGE:
                return delay_us
        return DELAYS_US[-1]

    def _measured(self, runtime: str, threads: int | None, side: int, most: int | None = None) -> list[Point]:
        points = curve(self.server, MODEL, side, self.repeats, self.patience_s, most)
        way = f"{runtime:16} {'' if threads is None else f'{threads} threads':10} {8 * side:4} px"
        for point in points:
            self._say(f"{way} {point.rows:3} rows {1000 * point.seconds:9.1f} ms {point.rows_per_s:8.2f} rows/s")
        line = {"runtime": runtime, "threads": threads, "area": side * side}
        self.curves.append(line | {"seconds": {point.rows: round(point.seconds, 5) for point in points}})
        return points

    def _together(self) -> float:
        """Seconds that calls of two rows, posted at once, take."""
        begun_s = time.perf_counter()
        joined(self.server, MODEL, SIDES[0], CALLERS, self.repeats)
        return time.perf_counter() - begun_s

    def _say(self, line: str) -> None:
        self.stream.write(f"{line}\n")
        self.stream.flush()


def tune(repository: Path, url: str | None, stream: TextIO, *, repeats: int = 3, patience_s: float = 60.0) -> Tuned:
    """Measures, writes what it found into ``repository`` and returns it."""
    if not (repository / MODEL / "config.pbtxt").is_file():
        raise ExportError(f"{repository} holds no {MODEL}; build it first, or name the repository with --out")
    if not all(os.access(path, os.W_OK) for path in (repository, repository / MODEL / "config.pbtxt")):
        raise ExportError(f"{repository} cannot be written to, and that is where the values go")
    with _serving(repository, url) as address:
        tuning = Tuning(Server(address), stream, repeats, patience_s)
        tuned = tuning.run()
    write_tuning(repository, _machine(), {MODEL: tuned}, tuning.curves)
    rows = ", ".join(f"{rows} rows at {area} latent pixels" for area, rows in tuned.rows_aimed_at.items())
    stream.write(
        f"{repository}: {tuned.runtime or 'as built'}"
        f"{'' if tuned.threads is None else f', {tuned.threads} threads'}, {rows}, "
        f"{tuned.max_queue_delay_us} us of delay; load {MODEL} again, or restart Triton, to serve so\n"
    )
    return tuned


def main(arguments: Sequence[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="build_engines.py --tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="the built model repository")
    parser.add_argument("--url", help="a Triton that serves it under explicit model control (default: the local one)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="of each point (default: 3)")
    parser.add_argument(
        "--patience", type=float, default=60.0, metavar="S", help="seconds that one point may take (default: 60)"
    )
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats is {options.repeats}; 1 or more are served")
    try:
        tune(options.out, options.url, sys.stdout, repeats=options.repeats, patience_s=options.patience)
    except ExportError as error:
        print(f"build_engines: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"\nbuild_engines: interrupted; {options.out} is as it was", file=sys.stderr)
        return 130
    return 0


@contextlib.contextmanager
def _serving(repository: Path, url: str | None) -> Iterator[str]:
    """The address of a Triton that holds the UNet."""
    if url is not None:
        yield url
        return
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    command = [sys.executable, "-m", "local.triton", "--models", str(repository.absolute()), "--only", MODEL, *ports]
    with subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            lines = (line for line in process.stdout if " at http://" in line)
            said = next(lines, None)
            if said is None:
                raise ExportError("the local Triton did not start; it says why above")
            yield said.partition(" at ")[2].split(" ")[0]
        finally:
            process.terminate()


def _with(
    config: dict[str, Any],
    *,
    runtime: str | None = None,
    threads: int | None = None,
    instances: int | None = None,
    delay_us: int | None = None,
) -> dict[str, Any]:
    """``config`` with other values. A revision makes each different: Triton drops one that equals what it has."""
    parameters = {key: value for key, value in config.get("parameters", {}).items() if key != ROWS_AIMED_AT}
    given = {"runtime": runtime, "threads": threads, "revision": os.urandom(4).hex()}
    parameters |= {key: {"string_value": str(value)} for key, value in given.items() if value is not None}
    changed = {**config, "parameters": parameters}
    if instances is not None:
        changed["instance_group"] = [{**group, "count": instances} for group in config["instance_group"]]
    if delay_us is not None:
        changed["dynamic_batching"] = {**config["dynamic_batching"], "max_queue_delay_microseconds": delay_us}
    return changed


def _machine() -> str:
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), model)
    return f"{model}, {len(os.sched_getaffinity(0))} cores"
