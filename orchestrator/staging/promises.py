"""Stagings that were answered with 202: written down, so that another process keeps the promise if this one dies."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Final

from orchestrator.errors import Cancelled, GenerationFailed, Interrupted, RemarqueError, StorageError
from orchestrator.staging.job import StagingJob
from orchestrator.staging.ledger import Accepted, Failure, ImageName, StagingLedger
from orchestrator.staging.problems import problem_of

# After its deadline a job gets this long to unwind before somebody else takes it for abandoned.
MARGIN_S: Final = 30.0
MOST_DEATHS: Final = 3
# Of MARGIN_S, what a deadline may grow by before it is written down anew.
SLACK_S: Final = 1.0
LOG = logging.getLogger(__name__)


class Promises:
    """Keeps the documents of promises in step with what becomes of the jobs. Threads share one."""

    def __init__(self, ledger: StagingLedger, wall_clock: Callable[[], float]) -> None:
        self._ledger = ledger
        self._now_s = wall_clock

    def make(self, job: StagingJob, adopted: Accepted | None = None) -> None:
        """Write down that somebody was or will be told 202, and until when; raises :class:`StorageError`.

        ``adopted`` is the promise of a process that is gone, which the job keeps from now on.
        """
        before_s, until_s = job.promised_until_s, self._now_s() + job.left_s()
        if before_s is not None and until_s < before_s + SLACK_S:
            return
        job.promised_until_s = until_s
        if adopted is not None:
            job.adoptions = adopted.deaths
        elif before_s is None:
            self._ledger.forget(job.name)
        self._ledger.accept(job.name, self._document(job, until_s))

    def close(self, job: StagingJob, error: RemarqueError | None) -> None:
        """Say how a promise ended, or let go of it where the process stops. What cannot be written is found later."""
        if not job.promised:
            return
        try:
            if isinstance(error, Interrupted):
                self._ledger.accept(job.name, self._document(job, 0.0))
            else:
                self._ledger.fulfil(job.name, None if error is None else _failure(job, error))
        except StorageError as storing:
            LOG.warning("the outcome of image %s was not written down: %s", job.name, storing)

    def abandoned(self, account: str, is_here: Callable[[ImageName], bool]) -> Iterator[tuple[ImageName, Accepted]]:
        """A caller's promises that nobody keeps and somebody should; those that need no work are closed on the way."""
        for name in self._ledger.promises(account):
            accepted = None if is_here(name) else self._read(name)
            if accepted is None or (accepted.until_s and self._now_s() < accepted.until_s + MARGIN_S):
                continue
            if self._ledger.find(name) is not None:
                self._ledger.fulfil(name, None)
            elif self._ledger.cancel_requested(name):
                self._give_up(name, Cancelled.code, f"the staging of image {name.image_id} was cancelled")
            elif accepted.deaths >= MOST_DEATHS:
                self._give_up(name, GenerationFailed.code, f"{accepted.deaths} processes ended while they worked on it")
            else:
                yield name, accepted

    def _read(self, name: ImageName) -> Accepted | None:
        """The promise; one that cannot be read keeps no other from being taken over."""
        try:
            return self._ledger.accepted(name)
        except StorageError as error:
            LOG.warning("the promise of image %s is left alone: %s", name, error)
            return None

    def _give_up(self, name: ImageName, code: str, message: str) -> None:
        self._ledger.fulfil(name, Failure(fingerprint="", code=code, message=message))

    @staticmethod
    def _document(job: StagingJob, until_s: float) -> Accepted:
        wanted = {name: value for name, value in asdict(job.request).items() if name != "unknown"}
        return Accepted(request=wanted, tier=job.tier, until_s=until_s, adoptions=job.adoptions)


def _failure(job: StagingJob, error: RemarqueError) -> Failure:
    return Failure(fingerprint=job.request.fingerprint, code=error.code, message=problem_of(error).detail)
