"""What a concurrent job and a style cost in memory, in Triton and in the orchestrator."""

import os

from benchmarks.bench import Bench
from benchmarks.memory import MIB, Peak, pss_bytes, tree_bytes
from benchmarks.results import Section, Table
from benchmarks.served import served
from benchmarks.timing import number

JOBS = (1, 4, 10)


def run(bench: Bench) -> Section:
    """Peaks while 1, 4 and 10 jobs run, in that order on one server."""
    rows: list[tuple[str, float, float]] = []
    with served(bench.repository) as server:
        assert server.triton.server_pid is not None
        rows.append(("none", tree_bytes(server.triton.server_pid) / MIB, pss_bytes(os.getpid()) / MIB))
        server.settle(bench.work, bench.settling_s)
        for n in JOBS:
            with Peak(server.triton.server_pid) as triton, Peak(os.getpid()) as ours:
                server.together(server.plans(bench.work.jobs(n)))
            # The benchmark's own tree holds Triton as well, below its keeper.
            rows.append((str(n), triton.bytes / MIB, (ours.bytes - triton.bytes) / MIB))
    (_, *most), (_, *one) = rows[-1], rows[1]
    each_triton, each_ours = ((a - b) / (JOBS[-1] - JOBS[0]) for a, b in zip(most, one, strict=True))
    return Section(
        "memory",
        "Memory",
        f"Proportional set size, peaks while the jobs ran. From {JOBS[0]} to {JOBS[-1]} jobs each further one took "
        f"{number(each_triton)} MiB in Triton and {number(each_ours)} MiB in the orchestrator (with this benchmark "
        f"around it). {bench.work.width_px}x{bench.work.height_px} px. What a style takes is in make bench-styles.",
        tables=(Table(("jobs at once", "Triton and its models, MiB", "orchestrator, MiB"), rows),),
        figures={"mib": rows, "per_job_mib": {"triton": each_triton, "orchestrator": each_ours}},
    )
