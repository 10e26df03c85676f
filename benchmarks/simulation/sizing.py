"""How many nodes a volume needs, and what is left of the promises when something happens."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from benchmarks.simulation.arrivals import Mix, Rate, arrivals, bursts, constant, diurnal
from benchmarks.simulation.cluster import Cluster, Fleet, Node, Outcome
from benchmarks.simulation.curves import StepCurve
from benchmarks.timing import percentile

DAY_S = 86_400.0
SWING = 0.6
"""The busiest hour has 1.6 times the day's mean."""
WAIT_P95_S = 15.0
LATENCY_P95_S = 60.0
MOST_LOAD = 0.9
"""Of what the nodes can do with every place taken; the rest is for what no trace foresees."""
MOST_JOBS = 15_000
"""Of a slice at the peak: enough for a p99, and a table of twenty rows in two minutes."""


@dataclass(frozen=True, slots=True)
class Sizing:
    """The fewest nodes that keep the promises through the busiest hour, and how they do."""

    curve: StepCurve
    per_day: float
    nodes: int
    wait_p95_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    load: float
    node_s_per_picture: float

    @property
    def cost_per_1000(self) -> float:
        """US dollars for a thousand pictures where the nodes stay on all day."""
        return 1000 * self.nodes * 24 * self.curve.price_per_hour / self.per_day


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that happens, for the table beside the sizing."""

    name: str
    outcome: Outcome

    def row(self, price_per_hour: float) -> tuple[str | float | int, ...]:
        """Name, wait p95, latency p50, p95, p99, most nodes, node seconds and dollars per thousand pictures."""
        done, waits = self.outcome.latencies_s, self.outcome.waits_s
        each_s = self.outcome.node_seconds / len(done)
        quantiles = [percentile(done, percent) for percent in (50, 95, 99)]
        cost = 1000 * each_s * price_per_hour / 3600
        return self.name, percentile(waits, 95), *quantiles, self.outcome.most_nodes, each_s, cost


def node_of(curve: StepCurve) -> Node:
    """Step-level batching, styles mixed."""
    return Node(curve=curve, at_once=curve.at_once, extra_s=curve.extra_s)


def size(curve: StepCurve, per_day: float, mix: Mix, seed: int) -> Sizing:
    """Bisects the number of nodes on a slice of the busiest hour."""
    peak = per_day / DAY_S * (1 + SWING)
    duration_s = min(3600.0 * 4, MOST_JOBS / peak)
    trace = list(arrivals(constant(peak), peak, duration_s, mix, seed))
    # A slice of minutes does not show the queue that a load near 100 % builds up in an hour.
    fewest = max(1, math.ceil(peak / MOST_LOAD / curve.capacity_per_s(mix.mean_steps, mix.mean_weight)))

    def served(nodes: int) -> Outcome:
        return Cluster(node_of(curve), Fleet(least=nodes, most=nodes), seed).run(trace, warmup_s=duration_s / 10)

    nodes, outcome = _least(served, fewest)
    p50_s, p95_s, p99_s = (percentile(outcome.latencies_s, percent) for percent in (50, 95, 99))
    return Sizing(
        curve=curve,
        per_day=per_day,
        nodes=nodes,
        wait_p95_s=percentile(outcome.waits_s, 95),
        p50_s=p50_s,
        p95_s=p95_s,
        p99_s=p99_s,
        load=outcome.busy_seconds / outcome.node_seconds,
        node_s_per_picture=nodes * DAY_S / per_day,
    )


def _least(served: Callable[[int], Outcome], fewest: int) -> tuple[int, Outcome]:
    """Doubling, then halving; ``fewest`` is a bound from below."""
    low, high = fewest - 1, fewest
    while not _kept(outcome := served(high)):
        low, high = high, high + max(1, high // 8)
    while high - low > 1:
        middle = (low + high) // 2
        tried = served(middle) if middle else None
        if tried is not None and _kept(tried):
            high, outcome = middle, tried
        else:
            low = middle
    return high, outcome


def _kept(outcome: Outcome) -> bool:
    return percentile(outcome.waits_s, 95) <= WAIT_P95_S and percentile(outcome.latencies_s, 95) <= LATENCY_P95_S


def cases(curve: StepCurve, nodes: int, mix: Mix, seed: int, duration_s: float = 14_400.0) -> list[Case]:
    """The same fleet at 70 % of what it can do, and what changes when one thing does."""
    rate = 0.7 * nodes * curve.capacity_per_s(mix.mean_steps, mix.mean_weight)
    fixed, node = Fleet(least=nodes, most=nodes), node_of(curve)
    skewed = replace(mix, styles=200, style_skew=1.0)
    elastic = Fleet(least=0, most=2 * nodes, cold_start_s=curve.cold_start_s)

    def outcome(shape: Rate, peak: float, who: Node, fleet: Fleet, asked: Mix = mix) -> Outcome:
        return Cluster(who, fleet, seed).run(arrivals(shape, peak, duration_s, asked, seed), warmup_s=duration_s / 10)

    swinging = diurnal(rate, swing=SWING, day_s=duration_s)
    steady = (constant(rate), rate)
    return [
        Case("steady, step-level batching", outcome(*steady, node, fixed)),
        Case("the same, whole-request batching", outcome(*steady, replace(node, policy="whole"), fixed)),
        Case("200 styles (Zipf), mixed in a batch", outcome(*steady, node, fixed, skewed)),
        Case("the same, one execution per style", outcome(*steady, replace(node, mixed=False), fixed, skewed)),
        Case("bursts: 6 times the quiet rate, 1 minute in 10", outcome(bursts(rate), 6 * rate, node, fixed)),
        Case("a day's swing in four hours", outcome(swinging, rate * (1 + SWING), node, fixed)),
        Case("the same, scaled from zero", outcome(swinging, rate * (1 + SWING), node, elastic)),
        Case("spot nodes, each lost every 2 hours", outcome(*steady, node, replace(fixed, loss_per_hour=0.5))),
    ]


def table(sizings: Iterable[Sizing]) -> list[Sequence[str | float | int]]:
    """Rows for :data:`HEADER`."""
    return [
        (
            f"{each.per_day:,.0f}", each.curve.name, each.curve.source, each.nodes, f"{each.load:.0%}", each.wait_p95_s,
            each.p50_s, each.p95_s, each.p99_s, each.node_s_per_picture, each.cost_per_1000,
        )
        for each in sizings
    ]  # fmt: skip


HEADER = (
    "pictures a day", "node", "curve", "nodes", "busy at the peak", "wait p95, s", "p50, s", "p95, s", "p99, s",
    "node seconds a picture", "$ per 1000",
)  # fmt: skip
CASE_HEADER = (
    "what happens", "wait p95, s", "p50, s", "p95, s", "p99, s", "most nodes", "node seconds a picture", "$ per 1000",
)  # fmt: skip
