"""Latency under Poisson arrivals: step-level batching against batches of whole requests, on the same Triton.

What is gained depends on the engine: where a batch costs what its rows cost, sharing it helps nobody. So the same is
measured twice, with the checkpoint on this machine and with an engine whose time is mostly the same for any batch.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.null_models import PACED_FIXED_MS, PACED_ROW_MS, null_repository
from benchmarks.results import Bar, Cell, Plot, Section, Series, Table
from benchmarks.served import Lap, Served, Work, served
from benchmarks.timing import interleaved, percentile, spread
from benchmarks.whole_request import WholeRequests
from orchestrator.plan import Plan

WORK = Work(width_px=256, height_px=256)
STEPS = (6, 18)
"""Half of the jobs each: what one batch of whole requests cannot join."""
LOADS = (0.7, 0.9)
JOBS = 180
AT_ONCE = 10
BAR_P95 = 0.75
STEPWISE, WHOLE = "step by step", "whole requests"
MACHINE, PACED = "this machine", "paced engine"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one engine: pictures a second, how many whole requests go together, and seconds by load and way."""

    capacity_per_s: float
    whole_at_once: int
    latencies_s: dict[str, list[float]]

    def ratio(self, load: float) -> float:
        """The 95th percentile step by step, by that of whole requests."""
        step, whole = (self.latencies_s[_name(load, way)] for way in (STEPWISE, WHOLE))
        return percentile(step, 95) / percentile(whole, 95)


def run(bench: Bench) -> Section:
    """The same arrivals, once each way, at each load of what ten jobs at once reach, on both engines."""
    with null_repository(bench.repository, paced=True) as paced:
        return _section({name: _outcome(bench, at) for name, at in ((MACHINE, bench.repository), (PACED, paced))})


def _outcome(bench: Bench, repository: Path) -> Outcome:
    with served(repository) as server:
        rival = WholeRequests.on(server)
        plans = _plans(server, bench.scaled(JOBS, 12))
        server.settle(WORK, bench.settling_s if repository == bench.repository else 0.0)
        capacity = _capacity(server, rival, plans)
        laps: dict[str, list[Lap]] = {}
        for load in LOADS:
            at_s = _arrivals(len(plans), load * capacity, seed=round(100 * load))
            ways: dict[str, Callable[[], list[Lap]]] = {
                STEPWISE: partial(server.arriving, plans, at_s, AT_ONCE),
                WHOLE: partial(rival.arriving, plans, at_s),
            }
            laps |= {_name(load, way): found[0] for way, found in interleaved(ways, 1).items()}
    latencies = {name: [lap.latency_s for lap in each] for name, each in laps.items()}
    return Outcome(capacity, rival.at_once, latencies)


def _name(load: float, way: str) -> str:
    return f"{load:.0%} {way}"


def _plans(server: Served, count: int) -> list[Plan]:
    draw = random.Random(5)
    jobs = WORK.jobs(count)
    return server.plans([WORK.job(job.prompt, job.seed or 0, draw.choice(STEPS)) for job in jobs])


def _capacity(server: Served, rival: WholeRequests, plans: list[Plan]) -> float:
    """Pictures a second when nobody waits: the slower of the two ways, so that neither is overloaded."""
    some = plans[: 2 * AT_ONCE]
    server.arriving(some[:AT_ONCE], [0.0] * AT_ONCE, AT_ONCE)
    at_s = [0.0] * len(some)
    ways = (server.arriving(some, at_s, AT_ONCE), rival.arriving(some, at_s))
    return min(len(some) / (max(lap.done_s for lap in laps) - laps[0].asked_s) for laps in ways)


def _arrivals(count: int, per_s: float, seed: int) -> list[float]:
    draw = random.Random(seed)
    return list(accumulate(draw.expovariate(per_s) for _ in range(count)))


def _section(outcomes: dict[str, Outcome]) -> Section:
    machine, paced = outcomes[MACHINE], outcomes[PACED]
    jobs = len(next(iter(machine.latencies_s.values())))
    text = (
        f"{WORK.width_px}x{WORK.height_px} px, half of the jobs {STEPS[0]} steps and half {STEPS[1]}; the same "
        f"{jobs} Poisson arrivals for both ways. Load is of the slower way's most: {machine.capacity_per_s:.2f} "
        f"pictures a second on this machine, {paced.capacity_per_s:.2f} on the paced engine (an execution of it takes "
        f"{PACED_FIXED_MS:g} ms and {PACED_ROW_MS:g} ms a row). At most {AT_ONCE} jobs run step by step; whole "
        f"requests go up to {machine.whole_at_once} together here and {paced.whole_at_once} there, alike in steps."
    )
    return Section(
        "tail",
        "Tail latency",
        text,
        tables=(
            Table(
                ("engine", "load", "way", "p50, s", "p95, s", "p99, s", "spread, s", "p95 ratio"),
                [row for name, outcome in outcomes.items() for row in _rows(name, outcome)],
            ),
        ),
        bars=[
            Bar("p95 at 70 % load, by whole-request batching's", "at most", BAR_P95, machine.ratio(0.7)),
            Bar("the same on the paced engine", "at most", BAR_P95, paced.ratio(0.7)),
            Bar(
                "p95 at 90 % load, by whole-request batching's",
                "at most",
                1.0,
                machine.ratio(0.9),
                note="stated, no bar of its own",
            ),
        ],
        plots=[_plot("tail", MACHINE, machine), _plot("tail-paced", PACED, paced)],
        figures={
            name: {"capacity_per_s": outcome.capacity_per_s, "latencies_s": outcome.latencies_s}
            for name, outcome in outcomes.items()
        },
    )


def _rows(engine: str, outcome: Outcome) -> list[Sequence[Cell]]:
    rows: list[Sequence[Cell]] = []
    for load in LOADS:
        for way in (STEPWISE, WHOLE):
            found = outcome.latencies_s[_name(load, way)]
            tail = [percentile(found, percent) for percent in (50, 95, 99)]
            rows.append(
                (engine, f"{load:.0%}", way, *tail, spread(found), outcome.ratio(load) if way == STEPWISE else "")
            )
    return rows


def _plot(name: str, engine: str, outcome: Outcome) -> Plot:
    series = []
    for run, found in outcome.latencies_s.items():
        share = [100 * (index + 1) / len(found) for index in range(len(found))]
        series.append(Series(run, sorted(found), share, dashed=WHOLE in run))
    title = f"Share of pictures done within, {engine}"
    return Plot(name, title, "seconds after they were asked for", "% of pictures", series)
