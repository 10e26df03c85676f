"""One try at one job, and how others reach into it while it runs."""

import hashlib
import threading
import time
from dataclasses import dataclass

from orchestrator.errors import Cancelled, DeadlineExceeded, Interrupted
from orchestrator.job import Job
from orchestrator.trace import Trace, trace_of

SEED_BITS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A job as the queue delivered it: ``number`` counts attempts from 1, ``life`` an operator's replays from 0."""

    job: Job
    fingerprint: str
    number: int = 1
    life: int = 0
    redelivered: bool = False
    traceparent: str | None = None

    @property
    def trace(self) -> Trace:
        """Where its spans belong, and what the backend is told."""
        job = f"{self.job.task_id} {self.job.generation_id}"
        return trace_of(self.traceparent, job=job, attempt=f"{self.life} {self.number}")

    @property
    def may_resume(self) -> bool:
        """Whether an earlier attempt can have left a checkpoint."""
        return self.redelivered or self.number > 1


class Control:
    """Cancels a running attempt, has it stop where it is, or ends it ``timeout_s`` after it began."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._begun_s = time.monotonic()
        self.cancelled = threading.Event()
        self.stopping = threading.Event()

    def begin(self) -> None:
        """The wait is over; from now on the time counts."""
        self._begun_s = time.monotonic()

    def check(self) -> None:
        """Raise what ends the attempt, if anything does."""
        if self.cancelled.is_set():
            raise Cancelled("the generation was cancelled on request")
        if self.stopping.is_set():
            raise Interrupted("the worker stops")
        if time.monotonic() - self._begun_s > self._timeout_s:
            raise DeadlineExceeded(f"the generation took over {self._timeout_s:g} s, as long as one attempt may take")


def derived_seed(job: Job) -> int:
    """A seed for a job that brings none: any of 2^32, the same on every attempt, so that a checkpoint can be used.

    Two messages differ in ``task_id`` and so in their seed.
    """
    digest = hashlib.sha256(f"{job.task_id}\0{job.generation_id}".encode()).digest()
    return int.from_bytes(digest[: SEED_BITS // 8], "big")
