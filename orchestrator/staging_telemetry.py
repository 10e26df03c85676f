"""Counts what the staging service does; listens only. docs/metrics.md explains each metric."""

from collections.abc import Callable
from functools import partial
from typing import Final

from orchestrator.staging.accounts import Tier
from orchestrator.staging.breaker import Breaker
from orchestrator.staging.cost import CostLedger
from orchestrator.staging.desk import Desk
from orchestrator.staging.gateway import CallOutcome
from orchestrator.staging.routing import MODES, Mode, Routing
from orchestrator.staging.scores.verdict import Verdict
from orchestrator.telemetry import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

PART_BUCKETS_S: Final = (0.005, 0.02, 0.05, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0)
BREAKER_STATES: Final = {"closed": 0, "half_open": 1, "open": 2}


class StagingTelemetry:
    """Prometheus metrics of stagings; fits every Listen of :mod:`orchestrator.staging`. Threads may share it."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self._stagings = Counter("remarque_stagings", "Stagings that ended", ["tier", "error_code"], registry=registry)
        self._seconds = Histogram(
            "remarque_staging_seconds", "Acceptance to end", ["tier"], buckets=PART_BUCKETS_S, registry=registry
        )
        self._parts = Histogram(
            "remarque_staging_part_seconds", "Parts of a staging", ["part"], buckets=PART_BUCKETS_S, registry=registry
        )
        self._calls = Counter(
            "remarque_staging_provider_calls",
            "Calls of providers",
            ["provider", "outcome", "error_code"],
            registry=registry,
        )
        self._call_seconds = Histogram(
            "remarque_staging_provider_seconds",
            "One call of a provider",
            ["provider"],
            buckets=PART_BUCKETS_S,
            registry=registry,
        )
        self._model_seconds = Histogram(
            "remarque_staging_model_seconds",
            "One call of a network",
            ["model"],
            buckets=PART_BUCKETS_S,
            registry=registry,
        )
        self._retries = Counter("remarque_staging_retries", "Calls made again", ["provider"], registry=registry)
        self._fallbacks = Counter(
            "remarque_staging_fallbacks", "Pictures that another provider made", ["chosen"], registry=registry
        )
        self._judged = Counter(
            "remarque_staging_judged",
            "Pictures that were scored",
            ["provider", "outcome", "attempt"],
            registry=registry,
        )
        self._faults = Counter(
            "remarque_staging_faults", "Scores that were too low", ["provider", "score"], registry=registry
        )
        self._gpu_seconds = Counter(
            "remarque_staging_gpu_seconds", "GPU time billed", ["tier", "provider"], registry=registry
        )
        self._cost = Counter("remarque_staging_cost_usd", "What it cost", ["tier", "provider"], registry=registry)
        self._breakers = Gauge(
            "remarque_staging_breaker", "Breaker: 0 closed, 1 half open, 2 open", ["provider"], registry=registry
        )
        self._mode = Gauge("remarque_staging_mode", "1 for the mode that counts", ["mode"], registry=registry)

    def stage(self, name: str, seconds: float) -> None:
        """A part of a staging took so long."""
        self._parts.labels(name).observe(seconds)

    def model_called(self, model: str, seconds: float) -> None:
        """One of our own networks was called, and took so long with the wait for its batch."""
        self._model_seconds.labels(model).observe(seconds)

    def charged(self, tier: str, provider: str, gpu_s: float, usd: float) -> None:
        """A picture cost so much."""
        self._gpu_seconds.labels(tier, provider).inc(gpu_s)
        self._cost.labels(tier, provider).inc(usd)

    def ended(self, tier: Tier, error_code: str, seconds: float) -> None:
        """A staging ended, well where ``error_code`` is empty."""
        self._stagings.labels(tier, error_code).inc()
        self._seconds.labels(tier).observe(seconds)

    def called(self, provider: Mode, outcome: CallOutcome, error_code: str, seconds: float) -> None:
        """A provider was called, or its breaker kept it from being called."""
        self._calls.labels(provider, outcome, error_code).inc()
        if outcome != "not_admitted":
            self._call_seconds.labels(provider).observe(seconds)

    def retried(self, provider: Mode) -> None:
        """A provider is called again."""
        self._retries.labels(provider).inc()

    def fell_back(self, provider: Mode, reason: str) -> None:
        """Another provider made what this one was chosen for."""
        self._fallbacks.labels(provider).inc()

    def judged(self, provider: Mode, verdict: Verdict, attempt: int) -> None:
        """A picture was scored, the first of its task or one made again."""
        outcome = "passed" if verdict.passed else "failed"
        self._judged.labels(provider, outcome, "again" if attempt else "first").inc()
        for score in verdict.reasons:
            self._faults.labels(provider, score).inc()

    def watch_desk(self, desk: Desk) -> None:
        """Show how much waits and runs."""
        self._gauge("remarque_staging_waiting", "Stagings that wait for a thread", lambda: desk.waiting)
        self._gauge("remarque_staging_running", "Stagings that are worked on", lambda: desk.running)

    def watch_breaker(self, provider: Mode, breaker: Breaker) -> None:
        """Show a breaker: 0 closed, 1 half open, 2 open."""
        self._breakers.labels(provider).set_function(lambda: BREAKER_STATES[breaker.state])

    def watch_routing(self, routing: Callable[[], Routing]) -> None:
        """Show the switch, the mode and the canary."""
        self._gauge("remarque_staging_enabled", "The kill switch: 0 is off", lambda: routing().enabled)
        self._gauge("remarque_staging_canary_percent", "Share of the canary", lambda: routing().canary_percent)
        for mode in MODES:
            self._mode.labels(mode).set_function(partial(_is_mode, routing, mode))

    def watch_cost(self, cost: CostLedger) -> None:
        """Show today's cost and whether it is over the threshold."""
        self._gauge("remarque_staging_cost_today_usd", "Cost since midnight UTC, of this process", cost.today_usd)
        self._gauge("remarque_staging_cost_alert", "1 where today's cost is over the threshold", cost.alert)

    def page(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        Gauge(name, text, registry=self.registry).set_function(read)


def _is_mode(routing: Callable[[], Routing], mode: Mode) -> bool:
    return routing().mode == mode
