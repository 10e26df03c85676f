"""How long a job that arrives waits before the UNet sees it, in steps of the jobs that are running."""

import random
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.bench import Bench
from benchmarks.results import Bar, Section, Table
from benchmarks.served import Lap, Served, served
from benchmarks.timing import Spread, percentile, spread

RUNNING = (1, 3)
BAR_STEPS = 1.5
SEED = 7


def run(bench: Bench) -> Section:
    """A late job among ``n`` long ones, at a random moment of their step; repeated."""
    with served(bench.repository) as server:
        server.together(server.plans(bench.work.jobs(max(RUNNING) + 1)))
        server.settle(bench.work, bench.settling_s)
        delays = {n: _delays(bench, server, n) for n in RUNNING}
    rows = [(n, spread(found), percentile(found, 95), len(found)) for n, found in delays.items()]
    worst: Spread = max((spread(found) for found in delays.values()), key=lambda each: each.median)
    return Section(
        "admission",
        "Admission",
        "From a job's arrival, its prompt not yet encoded, to the begin of the first UNet execution with its rows "
        "(the end of its first step less one step), in steps of the jobs that run: half a step is what arriving at a "
        "random moment costs, text encoding is in it.",
        tables=(Table(("jobs running", "wait, steps", "p95", "arrivals"), rows),),
        bars=[Bar("admission, median", "at most", BAR_STEPS, worst.median, "steps")],
        figures={"delays_steps": {str(n): found for n, found in delays.items()}},
    )


def _delays(bench: Bench, server: Served, running: int) -> list[float]:
    draw, found = random.Random(SEED), []
    arrivals = bench.scaled(6)
    steps = bench.work.steps * 2
    for turn in range(arrivals):
        long = [bench.work.job(job.prompt, job.seed or 0, steps) for job in bench.work.jobs(running, 100 + 10 * turn)]
        # A prompt that was never seen, so that it must be encoded.
        late = bench.work.job(f"a red boat, {turn} of {running}", 500 + turn, 2)
        with ThreadPoolExecutor(running + 1) as pool:
            made = [pool.submit(server.paint, plan) for plan in server.plans(long)]
            time.sleep(0.05 + draw.random() * 0.3)
            last = pool.submit(server.paint, server.plans([late])[0], time.perf_counter())
            found.append(_steps_waited([one.result() for one in made], last.result()))
    return found


def _steps_waited(running: list[Lap], late: Lap) -> float:
    """Between its arrival and its first step's begin, in steps of the others at that time; never below 0."""
    first_s = late.steps_s[0]
    ends = [end_s for lap in running for end_s in zip(lap.steps_s, lap.steps_s[1:], strict=False)]
    near = sorted(ends, key=lambda pair: abs(pair[1] - first_s))[: 2 * len(running)]
    step_s = spread([later - earlier for earlier, later in near]).median
    return max(0.0, (first_s - late.asked_s) / step_s - 1.0)
