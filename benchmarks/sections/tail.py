"""Latency under Poisson arrivals: step-level batching against batches of whole requests, on the same Triton."""

import random
from collections.abc import Callable
from functools import partial
from itertools import accumulate

from benchmarks.bench import Bench
from benchmarks.results import Bar, Plot, Section, Series, Table
from benchmarks.served import Lap, Served, Work, served
from benchmarks.timing import interleaved, percentile, spread
from benchmarks.whole_request import WholeRequests
from orchestrator.plan import Plan

WORK = Work(width_px=256, height_px=256)
STEPS = (6, 18)
"""Half of the jobs each: what one batch of whole requests cannot join."""
LOADS = (0.7, 0.9)
JOBS = 120
AT_ONCE = 10
BAR_P95 = 0.75
STEPWISE, WHOLE = "step by step", "whole requests"


def run(bench: Bench) -> Section:
    """The same arrivals, once each way, at each load of what ten jobs at once reach."""
    with served(bench.repository) as server:
        rival = WholeRequests.on(server)
        plans = _plans(server, bench.scaled(JOBS, 12))
        capacity = _capacity(server, rival, plans)
        laps: dict[str, list[Lap]] = {}
        for load in LOADS:
            at_s = _arrivals(len(plans), load * capacity, seed=round(100 * load))
            ways: dict[str, Callable[[], list[Lap]]] = {
                STEPWISE: partial(server.arriving, plans, at_s, AT_ONCE),
                WHOLE: partial(rival.arriving, plans, at_s),
            }
            laps |= {f"{load:.0%} {way}": found[0] for way, found in interleaved(ways, 1).items()}
    return _section(capacity, rival.at_once, {name: [lap.latency_s for lap in each] for name, each in laps.items()})


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


def _section(capacity: float, batch: int, latencies: dict[str, list[float]]) -> Section:
    rows, ratios = [], {}
    for load in LOADS:
        step, whole = latencies[f"{load:.0%} {STEPWISE}"], latencies[f"{load:.0%} {WHOLE}"]
        ratios[load] = percentile(step, 95) / percentile(whole, 95)
        for way, found in ((STEPWISE, step), (WHOLE, whole)):
            shown = ratios[load] if way == STEPWISE else ""
            tail = [percentile(found, percent) for percent in (50, 95, 99)]
            rows.append((f"{load:.0%}", way, *tail, spread(found), shown))
    series = []
    for name, found in latencies.items():
        ordered = sorted(found)
        share = [100 * (index + 1) / len(ordered) for index in range(len(ordered))]
        series.append(Series(name, ordered, share, dashed=WHOLE in name))
    jobs = len(next(iter(latencies.values())))
    text = (
        f"{WORK.width_px}x{WORK.height_px} px, half of the jobs {STEPS[0]} steps and half {STEPS[1]}; the same "
        f"{jobs} Poisson arrivals for both ways. Load is of {capacity:.2f} pictures a second, the slower way's most. "
        f"At most {AT_ONCE} jobs run step by step; whole requests go up to {batch} together, alike in steps."
    )
    return Section(
        "tail",
        "Tail latency",
        text,
        tables=(Table(("load", "way", "p50, s", "p95, s", "p99, s", "spread, s", "p95 ratio"), rows),),
        bars=[
            Bar("p95 at 70 % load, by whole-request batching's", "at most", BAR_P95, ratios[0.7]),
            Bar(
                "p95 at 90 % load, by whole-request batching's",
                "at most",
                1.0,
                ratios[0.9],
                note="stated, no bar of its own",
            ),
        ],
        plots=[
            Plot("tail", "Share of pictures done within", "seconds after they were asked for", "% of pictures", series)
        ],
        figures={"capacity_per_s": capacity, "latencies_s": latencies},
    )
