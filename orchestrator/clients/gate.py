"""Lets the steps of running jobs go to the server together, so that its batcher finds them side by side.

Left alone, jobs that call in a closed loop fall into phases: whoever is not there when an execution begins waits for
the next one, and half-full executions follow each other for ever. The gate holds each step until all jobs of its shape
wait, or a full execution is there, or a share of a step's time has passed; and it never has more rows under way than
fit.

No thread of its own: whoever completes a group sends every message of it, and each job reads its own answer from its
own connection, so that nobody has to be woken up.
"""

import bisect
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from orchestrator.trace import Trace, trace_here

PATIENCE = 0.25
"""How long the last ones are waited for, as a share of a step."""
PATIENCE_MIN_S, PATIENCE_MAX_S = 0.001, 0.25
LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Rows of one shape: as many as a group aims at, and as many as may be under way at once."""

    group: int
    under_way: int


@dataclass(frozen=True, slots=True)
class Batch:
    """One group that went through the gate; ``seconds`` are from its release to its last answer.

    ``traces`` are those of the attempts whose rows it held, as far as they have one.
    """

    model: str
    rows: int
    members: int
    seconds: float
    traces: tuple[Trace, ...] = ()


@dataclass(eq=False, slots=True)
class _Post:
    """One message that waits for its turn or for its answer."""

    member: object
    rows: int
    alone: bool
    send: Callable[[], None]
    arrived_s: float
    rank: tuple[bool, int]
    trace: Trace | None
    group: "_Group | None" = None
    error: OSError | None = None


@dataclass(eq=False, slots=True)
class _Group:
    released_s: float
    posts: list[_Post]
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = len(self.posts)

    def told(self, model: str, seconds: float) -> Batch:
        """What is said of the group when its last answer is there."""
        traces = dict.fromkeys(post.trace for post in self.posts if post.trace is not None)
        return Batch(model, sum(post.rows for post in self.posts), len(self.posts), seconds, tuple(traces))


class Gate:
    """The steps of one model in one shape; any number of threads.

    A *member* is a job: it is expected again after each of its steps until it leaves or lets the others wait in vain.
    """

    def __init__(
        self,
        model: str,
        limits: Callable[[], Limits],
        on_batch: Callable[[Batch], None] = lambda batch: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._limits = limits
        self._on_batch = on_batch
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: list[_Post] = []
        self._expected: set[object] = set()
        self._ages: dict[object, int] = {}
        self._joins = itertools.count()
        self._under_way: list[_Post] = []
        self._idle_s = clock()
        self._step_s = 0.0

    @contextmanager
    def turn(
        self, member: object, rows: int, alone: bool, send: Callable[[], None], wait: Callable[[float], bool]
    ) -> Iterator[None]:
        """Enters when the answer to what ``send`` sent begins; ``alone`` asks for an execution without neighbours.

        ``wait`` tells within the seconds given whether the answer begins. What ``send`` raised, in whatever thread, is
        raised here.
        """
        post = _Post(member, rows, alone, send, self._clock(), self._rank(member), trace_here())
        try:
            self._release(self._joined(post))
            while post.error is None and not wait(self._patience_s(post)):
                self._release(self._overdue())
            if post.error is not None:
                raise post.error
            yield
        finally:
            self._release(self._ended(post))

    def leave(self, member: object) -> None:
        """``member`` makes no more steps of this shape."""
        with self._lock:
            self._expected.discard(member)
            self._ages.pop(member, None)
            due = self._due()
        self._release(due)

    def _rank(self, member: object) -> tuple[bool, int]:
        """A job's first step goes before all others; then, where not all rows fit, the older job does.

        In turns, jobs would slow each other down and all end late (docs/throughput.md).
        """
        with self._lock:
            known = member in self._ages
            return known, self._ages.setdefault(member, next(self._joins))

    def _joined(self, post: _Post) -> list[_Post]:
        with self._lock:
            bisect.insort(self._waiting, post, key=lambda one: one.rank)
            self._expected.add(post.member)
            return self._due()

    def _overdue(self) -> list[_Post]:
        with self._lock:
            return self._due()

    def _ended(self, post: _Post) -> list[_Post]:
        """Take the post out, whether it got its answer or gave up."""
        now_s = self._clock()
        with self._lock:
            group = post.group
            if group is None:
                self._waiting.remove(post)
                return self._due()
            self._under_way.remove(post)
            group.left -= 1
            if not self._under_way:
                self._idle_s = now_s
            due = self._due()
        if group.left == 0:
            self._measure(group, now_s)
        return due

    def _measure(self, group: _Group, now_s: float) -> None:
        seconds = now_s - group.released_s
        self._step_s = seconds if self._step_s == 0.0 else self._step_s + (seconds - self._step_s) / 4
        self._on_batch(group.told(self._model, seconds))

    def _patience_s(self, post: _Post) -> float:
        return LOOK_S if post.group else self._delay_s()

    def _delay_s(self) -> float:
        return min(max(PATIENCE * self._step_s, PATIENCE_MIN_S), PATIENCE_MAX_S)

    def _due(self) -> list[_Post]:
        """The posts that go now, marked as gone. Called under the lock."""
        group = self._chosen(self._limits())
        if group:
            if not self._under_way:  # whoever did not come in time is not waited for again until it does
                self._expected = {post.member for post in self._waiting}
            released = _Group(self._clock(), group)
            for post in group:
                post.group = released
            self._waiting = [post for post in self._waiting if post.group is None]
            self._under_way += group
        return group

    def _chosen(self, limits: Limits) -> list[_Post]:
        if not self._waiting:
            return []
        group = list(_first(self._waiting, limits.group))
        rows = _rows(group)
        full = rows >= limits.group or len(group) < len(self._waiting)
        if self._under_way:
            # A full group may queue behind one that runs; then the server begins it without a pause.
            fits = _rows(self._under_way) + rows <= limits.under_way
            alone = group[0].alone or any(post.alone for post in self._under_way)
            return group if full and fits and not alone else []
        everyone = self._expected <= {post.member for post in self._waiting}
        since_s = max(self._idle_s, min(post.arrived_s for post in self._waiting))
        return group if full or everyone or self._clock() - since_s >= self._delay_s() else []

    def _release(self, posts: Iterable[_Post]) -> None:
        for post in posts:
            try:
                post.send()
            except OSError as error:
                post.error = error


def _first(waiting: Iterable[_Post], rows: int) -> Iterator[_Post]:
    """The first of those who wait that fit into ``rows``, at least one; one that wants to be alone is."""
    taken = 0
    for post in waiting:
        if taken and (post.alone or taken + post.rows > rows):
            return
        yield post
        taken += post.rows
        if post.alone:
            return


def _rows(posts: Iterable[_Post]) -> int:
    return sum(post.rows for post in posts)
