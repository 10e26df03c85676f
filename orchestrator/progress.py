"""Milestones of a running job, and the lane on which they reach the backend in order and never too late."""

import queue
import threading
from collections.abc import Callable, Iterator

from orchestrator.job import Progress

MILESTONES_PERCENT = (0, 25, 50, 75, 90, 100)


def milestones(done: int, before: int, total: int) -> Iterator[int]:
    """The percentages passed from ``before`` to ``done`` of ``total`` steps; 100 is left to the stored picture.

    ``before`` is -1 at the very start, so that 0 % is among them.
    """
    for percent in MILESTONES_PERCENT[:-1]:
        if 100 * before < percent * total <= 100 * done or (percent == 0 and before < 0):
            yield percent


class ProgressLane:
    """Sends one job's milestones one after the other from a thread of its own, so a slow backend delays no step."""

    def __init__(self, send: Callable[[Progress], None]) -> None:
        self._send = send
        self._waiting: queue.SimpleQueue[Progress | None] = queue.SimpleQueue()
        self._dropping = threading.Event()
        self._thread: threading.Thread | None = None

    def put(self, event: Progress) -> None:
        """Queue one milestone."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"progress-{event.generation_id}", daemon=True)
            self._thread.start()
        self._waiting.put(event)

    def close(self, patience_s: float) -> None:
        """Let the queued milestones go out for ``patience_s``, drop the rest; nothing is sent once this returns.

        A call under way is waited for: ``send`` has its own deadline, and a milestone must not overtake the outcome.
        """
        if self._thread is None:
            return
        self._waiting.put(None)
        self._thread.join(patience_s)
        self._dropping.set()
        self._thread.join()

    def _run(self) -> None:
        while (event := self._waiting.get()) is not None:
            if not self._dropping.is_set():
                self._send(event)
