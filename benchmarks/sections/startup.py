"""From nothing to a picture: imports, Triton's start, the first and the second picture, and the whole worker."""

import subprocess
import sys
import time
from functools import partial

from benchmarks.bench import ROOT, Bench
from benchmarks.results import Bar, Section, Table
from benchmarks.served import Served, served
from benchmarks.timing import Spread, interleaved, seconds_of, spread

IMPORT_BAR_S, IMPORT_BAR_MB = 0.5, 120.0
# VmHWM and not getrusage: the latter begins with what the parent held when it forked.
_MEASURE = """
import time
begun_s = time.perf_counter()
import {module}
taken_s = time.perf_counter() - begun_s
with open("/proc/self/status") as status:
    print(taken_s, next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM:")))
"""


def run(bench: Bench) -> Section:
    """Imports in fresh processes, then one start from cold to the second picture."""
    modules = {
        "a bare Python": "sys",
        "orchestrator": "orchestrator.__main__",
        "what the worker imports": "orchestrator.service",
    }
    ways = {name: partial(_imported, module) for name, module in modules.items()}
    imports = interleaved(ways, bench.scaled(7))
    first_s, second, text_and_decode_s = _first_picture(bench)
    worker = imports["what the worker imports"]
    seconds, megabytes = spread([s for s, _ in worker]), spread([mb for _, mb in worker])
    rows: list[tuple[str, Spread, Spread]] = [
        (name, spread([s for s, _ in found]), spread([mb for _, mb in found])) for name, found in imports.items()
    ]
    return Section(
        "startup",
        "Start",
        f"Import times are a fresh process's, the peak of its resident memory is the whole process's. "
        f"{bench.work.width_px}x{bench.work.height_px} px, {bench.work.steps} steps.",
        tables=(
            Table(("import of", "seconds", "peak, MB"), rows),
            Table(
                ("from cold", "seconds"),
                [
                    ("Triton started, every model loaded", first_s["triton"]),
                    ("and the first picture after that", first_s["picture"]),
                    ("the second picture", second),
                    ("text encoding and decoding of one picture", text_and_decode_s),
                ],
            ),
        ),
        bars=[
            Bar("import of what the worker needs", "at most", IMPORT_BAR_S, seconds.median, "s"),
            Bar("resident memory after that import", "at most", IMPORT_BAR_MB, megabytes.median, "MB"),
        ],
        figures={
            "imports": imports,
            "cold_start_s": sum(first_s.values()),
            "second_picture_s": second,
            "text_and_decode_s": text_and_decode_s,
        },
    )


def _imported(module: str) -> tuple[float, float]:
    """Seconds and MB that importing ``module`` took."""
    command = [sys.executable, "-c", _MEASURE.format(module=module)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    seconds, megabytes = map(float, answer.stdout.split())
    return seconds, megabytes


def _first_picture(bench: Bench) -> tuple[dict[str, float], float, float]:
    begun_s = time.perf_counter()
    with served(bench.repository) as server:
        started_s = time.perf_counter() - begun_s
        plans = server.plans(bench.work.jobs(2))
        first_s = seconds_of(lambda: server.paint(plans[0]))
        second_s = seconds_of(lambda: server.paint(plans[1]))
        return {"triton": started_s, "picture": first_s}, second_s, _text_and_decode(bench, server)


def _text_and_decode(bench: Bench, server: Served) -> float:
    """Everything of a picture that is not its steps: a picture less as many of its own steps."""
    lap = server.paint(server.plans([bench.work.job("a boat that nobody asked for", 3)])[0])
    steps = [later - earlier for earlier, later in zip(lap.steps_s, lap.steps_s[1:], strict=False)]
    return max(0.0, lap.latency_s - len(lap.steps_s) * spread(steps).median)
