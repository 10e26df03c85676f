"""Times contestants in turns, so that whatever else the machine does falls on all of them alike."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Spread:
    """A median with the quarter of the samples below ``low`` and the quarter above ``high``."""

    median: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{number(self.median)} ({number(self.low)} to {number(self.high)})"

    @property
    def document(self) -> dict[str, float]:
        """For the JSON file."""
        return {"median": self.median, "low": self.low, "high": self.high, "count": self.count}


def spread(samples: Sequence[float]) -> Spread:
    """Median and quartiles; of one or two samples the quartiles are the extremes."""
    if not samples:
        raise ValueError("a spread needs at least one sample")
    ordered = sorted(samples)
    return Spread(statistics.median(ordered), percentile(ordered, 25), percentile(ordered, 75), len(ordered))


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that ``percent`` of all do not exceed (nearest rank): always one that was measured."""
    ordered = sorted(samples)
    rank = max(1, math.ceil(len(ordered) * percent / 100))
    return ordered[rank - 1]


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """``over`` by ``under``, round by round: both of one round met the same machine."""
    return [a / b for a, b in zip(over, under, strict=True)]


def interleaved(contestants: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """What each contestant gives in each round; who begins changes from round to round."""
    names = list(contestants)
    given: dict[str, list[T]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            given[name].append(contestants[name]())
    return given


def run_for(seconds: float, work: Callable[[], object]) -> None:
    """``work`` again and again until ``seconds`` have passed."""
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        work()


def seconds_of(work: Callable[[], object]) -> float:
    """How long ``work`` takes."""
    begun_s = time.perf_counter()
    work()
    return time.perf_counter() - begun_s


def number(value: float) -> str:
    """Three significant digits, no exponent below a million: what a table shows."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}"
