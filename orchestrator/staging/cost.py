"""What a picture costs: seconds of a GPU times its price, added up by tier and provider, with a threshold for a day."""

import logging
import threading
from collections.abc import Callable, Mapping

from orchestrator.staging.routing import Mode

DAY_S = 86_400.0
LOG = logging.getLogger(__name__)


class CostLedger:
    """Counts in US dollars. Days begin at midnight UTC; a restart begins its count anew, the metrics' totals do not."""

    def __init__(
        self, prices: Mapping[Mode, float], alert_usd_per_day: float | None, clock: Callable[[], float]
    ) -> None:
        self._prices = prices
        self._alert_usd = alert_usd_per_day
        self._clock = clock
        self._day = -1
        self._today_usd = 0.0
        self._lock = threading.Lock()

    def charge(self, provider: Mode, gpu_s: float) -> float:
        """What so many seconds of a provider cost, in US dollars, added to today's sum."""
        usd = gpu_s * self._prices.get(provider, 0.0)
        with self._lock:
            self._turn_day()
            before, self._today_usd = self._today_usd, self._today_usd + usd
            crossed = self._alert_usd is not None and before < self._alert_usd <= self._today_usd
        if crossed:
            LOG.warning(
                "staging cost %.2f USD today, over the threshold of %.2f USD", self.today_usd(), self._alert_usd
            )
        return usd

    def today_usd(self) -> float:
        """Today's sum."""
        with self._lock:
            self._turn_day()
            return self._today_usd

    def alert(self) -> bool:
        """Whether today's sum reached the threshold."""
        return self._alert_usd is not None and self.today_usd() >= self._alert_usd

    def _turn_day(self) -> None:
        day = int(self._clock() // DAY_S)
        if day != self._day:
            self._day, self._today_usd = day, 0.0
