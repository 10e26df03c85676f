"""Whether a call is made again, and when: pure decisions, and a budget that keeps retries from becoming the load."""

import threading
from random import Random

FIRST_DELAY_S = 0.2
MAX_DELAY_S = 10.0
MAX_ASKED_S = 30.0


def delay_s(attempt: int, asked_s: float | None, rng: Random) -> float:
    """Seconds to wait after the ``attempt``-th try (from 1): exponential with full jitter, on top of what was asked."""
    longest_s = min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** min(attempt - 1, 16))
    return min(asked_s or 0.0, MAX_ASKED_S) + rng.uniform(0.0, longest_s)


class RetryBudget:
    """Retries may be a share of the calls and no more: each call earns ``share``, each retry costs one.

    ``reserve`` is what a quiet service has saved, so that its few calls may be retried at all.
    """

    def __init__(self, share: float = 0.5, reserve: float = 20.0) -> None:
        self._share = share
        self._reserve = reserve
        self._saved = reserve
        self._lock = threading.Lock()

    def earn(self) -> None:
        """Count one first try."""
        with self._lock:
            self._saved = min(self._reserve, self._saved + self._share)

    def spend(self) -> bool:
        """Whether one retry may be made; it is counted if so."""
        with self._lock:
            if self._saved < 1:
                return False
            self._saved -= 1
            return True
