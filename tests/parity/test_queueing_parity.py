"""The simulation behind the sizing table: queueing theory where it has an answer, invariants where it has none."""

import statistics
from dataclasses import replace
from itertools import pairwise

import pytest

from benchmarks.simulation.arrivals import Arrival, Mix, arrivals, bursts, constant, diurnal
from benchmarks.simulation.cluster import Cluster, Fleet, Node, Outcome
from benchmarks.simulation.curves import StepCurve, curve_from, read_curves
from benchmarks.simulation.sizing import node_of, size

ONE = Fleet(least=1, most=1)
STEPS = 20


def linear(rows: float) -> float:
    """A tenth of a second a pair: nothing is gained by batching."""
    return 0.05 * rows


def poisson(rate: float, jobs: int, mix: Mix | None = None, seed: int = 1) -> list[Arrival]:
    return list(arrivals(constant(rate), rate, jobs / rate, mix or Mix(steps=((STEPS, 1.0),)), seed))


def run(node: Node, fleet: Fleet, trace: list[Arrival]) -> Outcome:
    return Cluster(node, fleet, seed=3).run(trace)


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_one_job_at_a_time_waits_as_an_m_d_1_queue_does(load: float) -> None:
    service_s = STEPS * linear(2)
    outcome = run(Node(curve=linear, at_once=1), ONE, poisson(load / service_s, 15_000))
    expected_s = load / (2 * (1 - load)) * service_s  # Pollaczek, Khinchine
    assert statistics.mean(outcome.waits_s) == pytest.approx(expected_s, rel=0.08)


def test_jobs_in_turns_stay_as_long_as_processor_sharing_says() -> None:
    service_s, load = 200 * linear(2), 0.6
    mix = Mix(steps=((200, 1.0),))
    outcome = run(Node(curve=linear, at_once=1000), ONE, poisson(load / service_s, 8_000, mix))
    assert statistics.mean(outcome.latencies_s) == pytest.approx(service_s / (1 - load), rel=0.08)


def test_a_job_alone_takes_its_steps_and_its_decoding() -> None:
    outcome = run(Node(curve=linear, extra_s=0.5), ONE, [Arrival(3.0, STEPS, 1.0, 0)])
    assert outcome.latencies_s == [pytest.approx(STEPS * linear(2) + 0.5)]
    assert outcome.waits_s == [0.0]


def test_who_arrives_during_a_step_joins_after_it() -> None:
    trace = [Arrival(0.0, STEPS, 1.0, 0), Arrival(0.25, STEPS, 1.0, 0)]
    outcome = run(Node(curve=linear), ONE, trace)
    assert outcome.waits_s == [0.0, pytest.approx(0.05)]


def test_every_job_ends_and_none_ends_sooner_than_alone() -> None:
    mix = Mix(steps=((10, 0.5), (50, 0.5)), weights=((1.0, 0.7), (2.3, 0.3)))
    trace = poisson(0.3, 3000, mix)
    outcome = run(Node(curve=linear), ONE, trace)
    assert len(outcome.latencies_s) == len(outcome.waits_s) == len(trace)
    assert min(outcome.latencies_s) >= 10 * linear(2) - 1e-9
    assert outcome.busy_seconds == pytest.approx(sum(job.steps * linear(2 * job.weight) for job in trace))


def test_whole_request_batches_begin_only_when_the_former_ended() -> None:
    trace = [Arrival(0.0, STEPS, 1.0, 0), Arrival(0.1, STEPS, 1.0, 0), Arrival(0.2, STEPS, 1.0, 0)]
    outcome = run(Node(curve=linear, policy="whole"), ONE, trace)
    alone_s = STEPS * linear(2)
    both_s = STEPS * linear(4)
    assert outcome.waits_s == [0.0, pytest.approx(alone_s - 0.1), pytest.approx(alone_s - 0.2)]
    assert outcome.latencies_s[1] == pytest.approx(alone_s + both_s - 0.1)


def test_whole_request_batches_hold_only_jobs_of_equal_length() -> None:
    trace = [Arrival(0.0, STEPS, 1.0, 0), Arrival(0.1, 10, 1.0, 0), Arrival(0.2, STEPS, 1.0, 0)]
    outcome = run(Node(curve=linear, policy="whole"), ONE, trace)
    assert len(set(outcome.waits_s)) == 3


def test_styles_that_cannot_share_an_execution_cost_one_each() -> None:
    trace = [Arrival(0.0, STEPS, 1.0, style) for style in range(4)]
    overhead = Node(curve=lambda rows: 0.1 + 0.01 * rows)
    mixed = run(overhead, ONE, trace)
    split = run(replace(overhead, mixed=False), ONE, trace)
    # The first arrives alone for one step; from then on all four are together.
    assert max(mixed.latencies_s) < STEPS * (0.1 + 0.01 * 8) + 0.2
    assert max(split.latencies_s) > 0.9 * STEPS * 4 * 0.12


def test_a_lost_node_loses_no_job() -> None:
    fleet = Fleet(least=2, most=2, loss_per_hour=30.0, cold_start_s=20.0, checkpoint_s=1.0)
    trace = poisson(0.5, 2000)
    outcome = run(Node(curve=linear), fleet, trace)
    assert outcome.lost_nodes > 10
    assert len(outcome.latencies_s) == len(trace)
    assert outcome.lost_steps > 0


def test_from_zero_the_first_job_waits_for_the_cold_start() -> None:
    fleet = Fleet(least=0, most=2, cold_start_s=60.0, idle_s=30.0)
    trace = [Arrival(10.0, STEPS, 1.0, 0), Arrival(1000.0, STEPS, 1.0, 0)]
    outcome = run(Node(curve=linear), fleet, trace)
    assert outcome.waits_s == [pytest.approx(60.0), pytest.approx(60.0)]
    assert outcome.node_seconds < 100.0


def test_the_same_seed_gives_the_same_outcome_and_another_another() -> None:
    fleet = Fleet(least=1, most=4, loss_per_hour=5.0)
    first, again, other = (
        Cluster(Node(curve=linear), fleet, seed).run(poisson(0.8, 500, seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize("shape", [constant(2.0), bursts(2.0), diurnal(2.0, day_s=6000.0)])
def test_every_shape_of_a_day_has_the_mean_that_was_asked_for(shape) -> None:
    found = list(arrivals(shape, 12.0, 12_000.0, Mix(), seed=4))
    assert len(found) / 12_000.0 == pytest.approx(2.0, rel=0.03)
    assert all(a.at_s < b.at_s for a, b in pairwise(found))


def test_style_skew_is_zipfs() -> None:
    found = list(arrivals(constant(1.0), 1.0, 30_000.0, Mix(styles=50, style_skew=1.0), seed=4))
    shares = [sum(job.style == style for job in found) for style in (0, 1, 3)]
    assert shares[0] / shares[1] == pytest.approx(2.0, rel=0.1)
    assert shares[0] / shares[2] == pytest.approx(4.0, rel=0.15)


def test_a_curve_goes_through_its_points_and_on_along_its_last_slope() -> None:
    curve = StepCurve(
        name="c", source="measured", basis="", rows=(2, 4, 8), step_s=(0.2, 0.3, 0.7),
        extra_s=0.0, cold_start_s=0.0, price_per_hour=1.0,
    )  # fmt: skip
    assert [curve(rows) for rows in (2, 3, 4, 8, 10)] == pytest.approx([0.2, 0.25, 0.3, 0.7, 0.9])


def test_a_derived_curve_is_the_arithmetic_it_says() -> None:
    entry = {
        "source": "derived", "basis": "b", "tflops": 100.0, "share_reached": 0.5, "fixed_ms": 2.0,
        "cold_start_s": 1.0, "price_per_hour": 1.0,
    }  # fmt: skip
    assert curve_from("x", entry)(10) == pytest.approx(0.002 + 10 * 0.803 / 50)


def test_no_committed_curve_claims_to_be_measured_without_saying_where() -> None:
    for curve in read_curves().values():
        assert curve.source in ("measured", "derived")
        assert curve.source == "derived" or " on " in curve.basis


def test_sizing_finds_the_fewest_nodes_that_keep_the_promises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.simulation.sizing.MOST_JOBS", 1500)
    mix, curve = Mix(steps=((50, 1.0),)), read_curves()["t4"]
    found = size(curve, 150_000, mix, seed=1)
    peak = 150_000 / 86_400 * 1.6
    trace = list(arrivals(constant(peak), peak, 1500 / peak, mix, 1))
    fewer = Cluster(node_of(curve), Fleet(least=found.nodes - 1, most=found.nodes - 1), 1).run(trace)
    assert found.nodes > 1
    assert found.wait_p95_s <= 15.0
    assert statistics.quantiles(fewer.latencies_s, n=20)[-1] > found.p95_s
