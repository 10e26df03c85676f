"""A circuit breaker: a provider that keeps failing is left alone for a while, then asked once whether it is back.

::

    closed ── half of the last calls failed ──> open ── cool_s pass ──> half open ── its one probe succeeds ──> closed
                                                 ^────────────────────────────┘ the probe fails
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

BreakerState = Literal["closed", "open", "half_open"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerSettings:
    """Opens when ``failing_share`` of the last ``window`` calls failed, ``least_calls`` at least; waits ``cool_s``."""

    window: int = 20
    least_calls: int = 10
    failing_share: float = 0.5
    cool_s: float = 10.0
    # A probe whose caller never reports, because its thread died, blocks no longer than this.
    probe_lost_s: float = 300.0


class Breaker:
    """One provider's breaker. A call is let through by :meth:`admit` and reported with the number it was given."""

    def __init__(self, settings: BreakerSettings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._recent: deque[bool] = deque(maxlen=settings.window)
        self._era = 0
        self._until_s: float | None = None
        self._probe_since_s: float | None = None

    @property
    def state(self) -> BreakerState:
        """Where it stands now."""
        with self._lock:
            if self._until_s is None:
                return "closed"
            return "open" if self._clock() < self._until_s else "half_open"

    def admit(self) -> int | None:
        """A number to report the call with; None where it must not be made. Half open lets a single call through."""
        with self._lock:
            now_s = self._clock()
            if self._until_s is None:
                return self._era
            lost = self._probe_since_s is not None and now_s - self._probe_since_s >= self._settings.probe_lost_s
            if now_s < self._until_s or (self._probe_since_s is not None and not lost):
                return None
            self._probe_since_s = now_s
            self._era += 1
            return self._era

    def wait_s(self) -> float:
        """How long until a call may be let through; 0 where one may now."""
        with self._lock:
            return 0.0 if self._until_s is None else max(0.0, self._until_s - self._clock())

    def report(self, number: int, succeeded: bool) -> None:
        """Say how a call ended. Calls admitted before the breaker last changed say nothing about the provider now."""
        with self._lock:
            if number != self._era:
                return
            if self._probe_since_s is not None:
                self._turn(closed=succeeded)
                return
            self._recent.append(succeeded)
            failed = self._recent.count(False)
            if len(self._recent) >= self._settings.least_calls and (
                failed >= self._settings.failing_share * len(self._recent)
            ):
                self._turn(closed=False)

    def forget(self, number: int) -> None:
        """Take back a call that ended without saying anything about the provider, such as a cancelled one."""
        with self._lock:
            if number == self._era and self._probe_since_s is not None:
                self._probe_since_s = None

    def _turn(self, *, closed: bool) -> None:
        self._era += 1
        self._recent.clear()
        self._probe_since_s = None
        self._until_s = None if closed else self._clock() + self._settings.cool_s
