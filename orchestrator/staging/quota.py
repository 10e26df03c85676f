"""How often one caller may ask: a bucket of tokens per caller, and the headers that say how full it is.

The state is this process': two replicas let through twice as much, which the documentation says.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

from orchestrator.staging.accounts import Tier

# Callers remembered at once; the longest silent is forgotten, and would have a full bucket by then.
REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class Rate:
    """``limit`` requests in ``window_s`` seconds, all at once if the caller likes."""

    limit: int
    window_s: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a request is let through; ``reset_s`` is when the bucket is full, or has one token again if it is not."""

    allowed: bool
    tier: Tier
    rate: Rate
    remaining: int
    reset_s: int

    def headers(self) -> dict[str, str]:
        """``RateLimit`` and ``RateLimit-Policy`` as the IETF's draft writes them since its version 8, and the three
        fields of its earlier versions, which more clients read.
        """
        found = {
            "RateLimit-Policy": f'"{self.tier}";q={self.rate.limit};w={self.rate.window_s}',
            "RateLimit": f'"{self.tier}";r={self.remaining};t={self.reset_s}',
            "RateLimit-Limit": str(self.rate.limit),
            "RateLimit-Remaining": str(self.remaining),
            "RateLimit-Reset": str(self.reset_s),
        }
        return found if self.allowed else found | {"Retry-After": str(self.reset_s)}


class Quota:
    """Counts requests by caller and tier. Threads may share one."""

    def __init__(self, rates: Mapping[Tier, Rate], clock: Callable[[], float]) -> None:
        self._rates = rates
        self._clock = clock
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, caller: Hashable, tier: Tier) -> Verdict:
        """One request of ``caller``, counted if it is let through."""
        rate = self._rates[tier]
        per_s = rate.limit / rate.window_s
        with self._lock:
            now_s = self._clock()
            tokens, since_s = self._buckets.pop((caller, tier), (float(rate.limit), now_s))
            tokens = min(float(rate.limit), tokens + (now_s - since_s) * per_s)
            allowed = tokens >= 1
            tokens -= 1 if allowed else 0
            self._buckets[caller, tier] = (tokens, now_s)
            if len(self._buckets) > REMEMBERED:
                self._buckets.popitem(last=False)
        missing = rate.limit - tokens if allowed else 1 - tokens
        return Verdict(allowed, tier, rate, int(tokens), math.ceil(missing / per_s))
