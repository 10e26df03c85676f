"""What a step takes besides the UNet, with a UNet that answers zeros at once behind the real Triton."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.bench import Bench
from benchmarks.grpc_call import grpc_caller
from benchmarks.null_models import PACED, PACED_FIXED_MS, PACED_ROW_MS, SD15, null_repository
from benchmarks.results import Bar, Section, Table
from benchmarks.served import Served, Work, metadata, random_inputs, served
from benchmarks.timing import interleaved, spread
from orchestrator.clients.triton import TritonModels
from orchestrator.plan import Plan

PAIR_BAR_MS, CPU_BAR_MS = 1.0, 0.4
JOBS = 10
CLIENTS = (1, 2, 4, 8, 10, 16)
NOWHERE = Path("/nonexistent")
Cost = tuple[float, float]
"""Milliseconds of a call: on the clock, and of this process's processor time."""


def run(bench: Bench) -> Section:
    """The loop as jobs run it, one and ten at once; the ways a guidance pair can travel; batches of a paced engine."""
    with null_repository(bench.repository) as repository, served(repository) as server:
        work = Work(steps=50)
        _loop(server, work, JOBS)
        loops = interleaved({"one": partial(_loop, server, work, 1), "ten": partial(_loop, server, work, JOBS)},
                            bench.rounds)  # fmt: skip
        travels = {model: _travels(bench, server, model) for model in ("unet", SD15)}
        batches = interleaved({str(n): partial(_paced, server, n, bench.scaled(30)) for n in CLIENTS}, bench.rounds)
    return _section(loops, travels, batches)


def _loop(server: Served, work: Work, jobs: int) -> Cost:
    """A step of each of ``jobs``: sampler, guidance, calls and all, without text encoding and decoding."""
    plans = server.plans(work.jobs(jobs))
    with ThreadPoolExecutor(jobs) as pool:
        cpu_s = time.process_time()
        taken = [each for found in pool.map(partial(_steps, server), plans) for each in found]
        cpu_s = time.process_time() - cpu_s
    return 1000 * spread(taken).median, 1000 * cpu_s / (jobs * work.steps)


def _steps(server: Served, plan: Plan) -> list[float]:
    """Seconds of every step but the first; the picture is not decoded."""
    ends: list[float] = []
    with closing(server.painter.run(plan)) as turns:
        for _ in range(plan.total_steps):
            next(turns)
            ends.append(time.perf_counter())
    return [later - earlier for earlier, later in pairwise(ends)]


def _travels(bench: Bench, server: Served, model: str) -> dict[str, list[Cost]]:
    """One guidance pair at 512x512, in every way that it can travel, in turns."""
    url = server.triton.http_url
    inputs = random_inputs(metadata(url, model), 2, 64, 64, 77)
    fixed = {name: array for name, array in inputs.items() if name not in ("sample", "timestep")}
    with ExitStack() as open_clients:
        calls: dict[str, Callable[[], object]] = {}
        for way, client in (("shared memory", TritonModels(url)), ("HTTP", TritonModels(url, shared_memory=NOWHERE))):
            open_clients.callback(client.close)
            network = open_clients.enter_context(client.conditioned(model, fixed))
            calls[way] = partial(network, inputs["sample"].astype(np.float32), inputs["timestep"])
        grpc = grpc_caller(server.triton.grpc_url, model, inputs)
        if grpc is not None:
            calls["gRPC"] = grpc
        for call in calls.values():
            call()
        return interleaved({way: partial(_timed, call) for way, call in calls.items()}, bench.scaled(200))


def _timed(call: Callable[[], object]) -> Cost:
    begun_s, cpu_s = time.perf_counter(), time.process_time()
    call()
    return 1000 * (time.perf_counter() - begun_s), 1000 * (time.process_time() - cpu_s)


def _paced(server: Served, clients: int, steps: int) -> float:
    """Rows a second that ``clients`` one-row jobs reach together, by what the engine could do with such a batch."""
    sample, timestep = np.zeros((1, 4, 64, 64), np.float32), np.ones((1, 1), np.float32)
    fixed = {"encoder_hidden_states": np.zeros((1, 77, 128), np.float32)}

    def job(_: int) -> None:
        with server.models.conditioned(PACED, fixed) as network:
            for _ in range(steps):
                network(sample, timestep)

    with ThreadPoolExecutor(clients) as pool:
        begun_s = time.perf_counter()
        list(pool.map(job, range(clients)))
        seconds = time.perf_counter() - begun_s
    return (PACED_FIXED_MS + PACED_ROW_MS * clients) / 1000 * steps / seconds


def _section(
    loops: dict[str, list[Cost]], travels: dict[str, dict[str, list[Cost]]], batches: dict[str, list[float]]
) -> Section:
    clock = {name: spread([one for one, _ in costs]) for name, costs in loops.items()}
    cpu = {name: spread([one for _, one in costs]) for name, costs in loops.items()}
    ways = [
        (model, way, spread([one for one, _ in costs]), spread([one for _, one in costs]))
        for model, by_way in travels.items()
        for way, costs in by_way.items()
    ]
    return Section(
        "overhead",
        "Everything but the UNet",
        "A UNet that answers zeros at once stands behind the real Triton; everything else is the server's own. "
        f"The paced engine takes {PACED_FIXED_MS:g} ms and {PACED_ROW_MS:g} ms a row: what jobs reach of it is the "
        "share of its own batch curve.",
        tables=(
            Table(
                ("jobs", "a step, ms", "processor time a job and step, ms"),
                [(name, clock[name], cpu[name]) for name in loops],
                "The loop, 512x512, guidance pair",
            ),
            Table(("shapes of", "travels by", "a pair, ms", "processor time, ms"), ways, "One guidance pair"),
            Table(
                ("jobs of one row", "share of the engine's curve"),
                [(name, spread(found)) for name, found in batches.items()],
                "Batches of a paced engine",
            ),
        ),
        bars=[
            Bar("orchestration of a guidance pair, one job", "at most", PAIR_BAR_MS, clock["one"].median, "ms"),
            Bar("processor time a job and step, ten jobs", "at most", CPU_BAR_MS, cpu["ten"].median, "ms"),
            Bar("share of a paced engine's curve, ten jobs", "at least", 0.95, spread(batches["10"]).median),
        ],
        figures={"loops_ms": loops, "travels_ms": travels, "paced": batches},
    )
