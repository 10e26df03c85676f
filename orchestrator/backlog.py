"""Jobs that wait for a free place, handed out so that no user and no style starves another."""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

# A job that waited this long counts as one priority higher, so even the lowest is reached.
SECONDS_PER_PRIORITY = 30.0
MAX_PRIORITY = 10


class Contender(Protocol):
    """What fairness looks at."""

    @property
    def priority(self) -> int: ...
    @property
    def user(self) -> object: ...
    @property
    def style(self) -> object: ...


C = TypeVar("C", bound=Contender)


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[C]):
    contender: C
    since_s: float
    order: int


class Backlog(Generic[C]):
    """Higher priority first; then the user with the fewest running jobs, then the style, then the oldest."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._waiting: list[_Waiting[C]] = []
        self._count = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, contender: C) -> None:
        """Add one that waits."""
        with self._lock:
            self._count += 1
            self._waiting.append(_Waiting(contender, self._clock(), self._count))

    def take(self, running: Iterable[C]) -> C | None:
        """The one whose turn it is beside those running; None where nobody waits."""
        now_s, beside = self._clock(), list(running)
        with self._lock:
            if not self._waiting:
                return None
            chosen = min(self._waiting, key=lambda waiting: self._rank(waiting, beside, now_s))
            self._waiting.remove(chosen)
            return chosen.contender

    def remove(self, contender: C) -> bool:
        """Take out one that is to wait no more; False where it does not wait here."""
        with self._lock:
            kept = [waiting for waiting in self._waiting if waiting.contender is not contender]
            found = len(kept) < len(self._waiting)
            self._waiting = kept
            return found

    def drain(self) -> list[C]:
        """Everybody who waits, oldest first; the backlog is empty afterwards."""
        with self._lock:
            drained = [waiting.contender for waiting in self._waiting]
            self._waiting.clear()
            return drained

    @staticmethod
    def _rank(waiting: _Waiting[C], running: list[C], now_s: float) -> tuple[int, int, int, int]:
        one = waiting.contender
        given = max(-MAX_PRIORITY, min(MAX_PRIORITY, one.priority))
        aged = given + int((now_s - waiting.since_s) / SECONDS_PER_PRIORITY)
        of_user = sum(one.user is not None and one.user == other.user for other in running)
        of_style = sum(one.style is not None and one.style == other.style for other in running)
        return -aged, of_user, of_style, waiting.order
