"""A progress bar that knows seconds per step; where nobody watches, a few plain lines instead."""

import threading
import time
from collections.abc import Callable
from typing import TextIO

WIDTH = 24
PLAIN_LINES = 10


class ProgressBar:
    """Counts steps of all pictures together; any thread may report one.

    ``total_cost`` is the sum of the costs that will be reported: a step of 1024x1024 px takes longer than one of
    512x512 px, and an estimate that took them for equal would be wrong by a factor.
    """

    def __init__(
        self, stream: TextIO, total_steps: int, total_cost: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._total_steps, self._total_cost = total_steps, total_cost
        self._clock = clock
        self._watched = stream.isatty()
        self._lock = threading.Lock()
        self._begun_s = clock()
        self.done = 0
        self._done_cost = 0.0

    def step(self, cost: float) -> None:
        """One more step was taken."""
        with self._lock:
            self.done += 1
            self._done_cost += cost
            if self._watched:
                # Erased to its end, for the line before may have been longer.
                self._stream.write(f"\r{self._line()}\x1b[K")
            elif self._is_due():
                self._stream.write(f"{self._line()}\n")
            self._stream.flush()

    def end(self) -> None:
        """Leaves the line to what follows."""
        with self._lock:
            if self._watched and self.done:
                self._stream.write("\n")
                self._stream.flush()

    def _is_due(self) -> bool:
        """Whether this step is the first of the next tenth, or the very first, which proves that things move."""
        tenths = [done * PLAIN_LINES // self._total_steps for done in (self.done - 1, self.done)]
        return self.done == 1 or tenths[0] != tenths[1]

    def _line(self) -> str:
        elapsed_s = self._clock() - self._begun_s
        left_s = elapsed_s / self._done_cost * (self._total_cost - self._done_cost)
        filled = WIDTH * self.done // self._total_steps
        bar = "█" * filled + "·" * (WIDTH - filled)
        return (
            f"step {self.done:>{len(str(self._total_steps))}} of {self._total_steps} {bar} "
            f"{elapsed_s / self.done:.2f} s/step, {_duration(left_s)} left"
        )


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 100 else f"{whole // 60} min {whole % 60:02d} s"
