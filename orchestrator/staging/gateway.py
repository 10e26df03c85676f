"""The way from a task to a staged picture: which provider, how often, and what instead when it fails."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Final, Literal, Protocol

from orchestrator.errors import (
    ContentRejected,
    InferenceDisabled,
    Interrupted,
    ModelUnavailable,
    RateLimited,
    Refused,
    RemarqueError,
)
from orchestrator.staging.breaker import Breaker
from orchestrator.staging.provider import RESERVE_S, Provider, StagedPicture, Task, Watch
from orchestrator.staging.retry import RetryBudget, delay_s
from orchestrator.staging.routing import Mode, Routing

CallOutcome = Literal["succeeded", "failed", "refused", "ended", "not_admitted"]
# A call that took this share of a request's longest deadline had its time, whatever the queue took before it.
FULL_SHARE: Final = 0.75
LOG = logging.getLogger(__name__)


class Listen(Protocol):
    """Hears of calls of providers, and of pictures that another provider than the chosen one made."""

    def called(self, provider: Mode, outcome: CallOutcome, error_code: str, seconds: float) -> None: ...

    def retried(self, provider: Mode) -> None: ...

    def fell_back(self, provider: Mode, reason: str) -> None: ...


@dataclass(frozen=True, slots=True, eq=False)
class Lane:
    """A provider with its own breaker and budget."""

    provider: Provider
    breaker: Breaker
    budget: RetryBudget


class Gateway:
    """Threads share one. The routing is read when a task begins, so a switch takes hold of everything still queued."""

    def __init__(
        self,
        lanes: Mapping[Mode, Lane],
        routing: Callable[[], Routing],
        listen: Listen,
        *,
        attempts: int,
        deadline_s: float,
        rng: Random,
    ) -> None:
        """``deadline_s`` is the longest that a request may take."""
        self._lanes = lanes
        self._routing = routing
        self._listen = listen
        self._attempts = attempts
        self._full_s = FULL_SHARE * deadline_s
        self._rng = rng

    def chosen(self, image_id: str) -> Mode | None:
        """The provider that would be asked first now; None where none would, by switch or by breaker."""
        routing = self._routing()
        first = routing.choose(image_id)
        return first if routing.enabled and self._lanes[first].breaker.state != "open" else None

    def stage(self, image_id: str, task: Task, watch: Watch) -> StagedPicture:
        """The picture by the provider that the routing chooses; failing that by the main one, then by the mock.

        Every picture that another provider made says so in its warnings.

        Raises:
            Refused: no provider would do better.
            ModelUnavailable: the routing has no fallback, or the fallback failed.
        """
        routing = self._routing()
        if not routing.enabled:
            return self._disabled(routing, task, watch)
        first = routing.choose(image_id)
        why = ""
        for mode in dict.fromkeys((first, routing.mode)):
            try:
                staged = self._tried(mode, task, watch)
            except Refused:
                raise
            except RemarqueError as error:
                watch.check()
                why = f"{mode} could not stage it ({error.code})"
                LOG.warning("a staging went on without %s: %s", mode, error)
                last = error
            else:
                return staged if mode == first else self._labelled(staged, first, why)
        if routing.fallback != "mock" or routing.mode == "mock":
            # How often a provider lets us ask is no affair of the caller's.
            raise ModelUnavailable(f"{why}; come back later") if isinstance(last, RateLimited) else last
        return self._labelled(self._lanes["mock"].provider.stage(task, watch), first, why)

    def _disabled(self, routing: Routing, task: Task, watch: Watch) -> StagedPicture:
        if routing.fallback != "mock":
            raise InferenceDisabled("inference is switched off by an operator; send the request again later")
        staged = self._lanes["mock"].provider.stage(task, watch)
        return self._labelled(staged, routing.mode, "inference is switched off")

    def _labelled(self, staged: StagedPicture, chosen: Mode, why: str) -> StagedPicture:
        self._listen.fell_back(chosen, why)
        note = f"made by {staged.provider} instead of {chosen}: {why}"
        return replace(staged, warnings=(note, *staged.warnings))

    def _tried(self, mode: Mode, task: Task, watch: Watch) -> StagedPicture:
        """Up to ``attempts`` calls of one provider, as its breaker and its budget of retries allow."""
        lane = self._lanes[mode]
        lane.budget.earn()
        for attempt in range(1, self._attempts + 1):
            try:
                return self._called(mode, lane, task, watch)
            except RemarqueError as error:
                watch.check()
                asked_s = error.retry_after_s if isinstance(error, RateLimited) else None
                wait_s = delay_s(attempt, asked_s, self._rng)
                last = attempt == self._attempts or wait_s >= watch.left_s()
                if not error.retryable or last or lane.breaker.state != "closed" or not lane.budget.spend():
                    raise
            self._listen.retried(mode)
            watch.wait(wait_s)
        raise AssertionError("the last attempt returns or raises")

    def _called(self, mode: Mode, lane: Lane, task: Task, watch: Watch) -> StagedPicture:
        number = lane.breaker.admit()
        if number is None:
            self._listen.called(mode, "not_admitted", "", 0.0)
            raise ModelUnavailable(f"{mode} keeps failing and is left alone for {lane.breaker.wait_s():.0f} s")
        begun_s = time.monotonic()
        try:
            staged = lane.provider.stage(task, watch)
        except ContentRejected as error:
            lane.breaker.report(number, succeeded=True)  # it works, and does not want this picture
            self._listen.called(mode, "refused", error.code, time.monotonic() - begun_s)
            raise
        except (Refused, Interrupted) as error:
            lane.breaker.forget(number)
            self._listen.called(mode, "ended", error.code, time.monotonic() - begun_s)
            raise
        except RemarqueError as error:
            seconds = time.monotonic() - begun_s
            # The caller's short deadline says nothing about a provider that others wait for.
            if watch.left_s() <= RESERVE_S and seconds < self._full_s:
                lane.breaker.forget(number)
                self._listen.called(mode, "ended", error.code, seconds)
            else:
                lane.breaker.report(number, succeeded=False)
                self._listen.called(mode, "failed", error.code, seconds)
            raise
        except BaseException:
            lane.breaker.forget(number)
            raise
        lane.breaker.report(number, succeeded=True)
        self._listen.called(mode, "succeeded", "", time.monotonic() - begun_s)
        return staged
