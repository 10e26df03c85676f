"""Traces: when jobs arrive, how long they are and whose style they carry; the same seed gives the same trace."""

import math
import random
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

Rate = Callable[[float], float]
"""Jobs a second at a time."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One job: ``weight`` is one UNet row's cost by that of a 512x512 row."""

    at_s: float
    steps: int
    weight: float
    style: int


@dataclass(frozen=True, slots=True)
class Mix:
    """What jobs are like: step counts and weights with their shares, and how unevenly styles are asked for.

    ``style_skew`` is Zipf's exponent: 0 asks for all styles alike, 1 gives the k-th a k-th of the first's share.
    """

    steps: Sequence[tuple[int, float]] = ((50, 1.0),)
    weights: Sequence[tuple[float, float]] = ((1.0, 1.0),)
    styles: int = 1
    style_skew: float = 0.0

    @property
    def mean_steps(self) -> float:
        """Of a job."""
        return _mean(self.steps)

    @property
    def mean_weight(self) -> float:
        """Of a job."""
        return _mean(self.weights)


def constant(rate: float) -> Rate:
    """Poisson arrivals."""
    return lambda at_s: rate


def bursts(rate: float, *, every_s: float = 600.0, length_s: float = 60.0, times: float = 6.0) -> Rate:
    """The same mean, with ``times`` the quiet rate during the first ``length_s`` of every ``every_s``."""
    quiet = rate * every_s / (every_s + (times - 1) * length_s)
    return lambda at_s: quiet * (times if at_s % every_s < length_s else 1.0)


def diurnal(rate: float, *, swing: float = 0.6, day_s: float = 86_400.0) -> Rate:
    """The same mean over a day, ``1 + swing`` times it at the peak (noon) and ``1 - swing`` at midnight."""
    return lambda at_s: rate * (1.0 - swing * math.cos(2 * math.pi * at_s / day_s))


def arrivals(rate: Rate, peak: float, duration_s: float, mix: Mix, seed: int) -> Iterator[Arrival]:
    """Poisson arrivals of varying ``rate``, never above ``peak``, by thinning (Lewis, Shedler 1979)."""
    draw = random.Random(seed)
    pick_steps, pick_weight = _chooser(mix.steps), _chooser(mix.weights)
    styles = [(index, 1.0 / (index + 1) ** mix.style_skew) for index in range(mix.styles)]
    pick_style = _chooser(styles)
    at_s = 0.0
    while (at_s := at_s + draw.expovariate(peak)) < duration_s:
        if draw.random() * peak <= rate(at_s):
            yield Arrival(at_s, pick_steps(draw), pick_weight(draw), pick_style(draw))


def _chooser(shares: Sequence[tuple[float, float]]) -> Callable[[random.Random], int]:
    """Draws a value with the probability its share stands for."""
    values = [value for value, _ in shares]
    bounds = list(accumulate(share for _, share in shares))
    if len(values) == 1:
        return lambda draw: values[0]  # type: ignore[return-value]
    return lambda draw: values[bisect(bounds, draw.random() * bounds[-1])]  # type: ignore[return-value]


def _mean(shares: Sequence[tuple[float, float]]) -> float:
    return sum(value * share for value, share in shares) / sum(share for _, share in shares)
