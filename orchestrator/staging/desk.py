"""Where stagings wait and are worked on: takes them in up to a cap, joins duplicates, hands them to threads in turn."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from orchestrator.backlog import Backlog
from orchestrator.errors import Conflict, GenerationFailed, Interrupted, Overloaded, Refused, RemarqueError
from orchestrator.staging.accounts import Account, Tier
from orchestrator.staging.job import StagingJob
from orchestrator.staging.ledger import ImageName, Manifest
from orchestrator.staging.promises import Promises
from orchestrator.staging.request import StagingRequest

# Of a full queue the cheaper tiers may hold no more, so that the dearer ones still find a place in it.
SHARES: Final[Mapping[Tier, float]] = {"free": 0.5, "pro": 0.8, "business": 1.0}
ENDED_REMEMBERED: Final = 1000
MOST_RETRY_AFTER_S: Final = 60.0
FIRST_GUESS_S: Final = 10.0
MEAN_WEIGHT: Final = 0.1
UNWIND_S: Final = 2.0
LOG = logging.getLogger(__name__)


class Listen(Protocol):
    """Hears of jobs that ended; ``error_code`` is empty for those that went well."""

    def ended(self, tier: Tier, error_code: str, seconds: float) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DeskSettings:
    """``most_waiting`` jobs wait beyond the ``threads`` that work; a job may take ``deadline_s`` in all."""

    threads: int = 4
    most_waiting: int = 64
    deadline_s: float = 120.0


class Desk:
    """Takes in requests and works on them with threads of its own, between :meth:`start` and :meth:`stop`."""

    def __init__(
        self,
        run: Callable[[StagingJob], Manifest],
        promises: Promises,
        settings: DeskSettings,
        listen: Listen,
        clock: Callable[[], float],
    ) -> None:
        self.settings = settings
        self._run = run
        self._promises = promises
        self._listen = listen
        self._clock = clock
        self._backlog: Backlog[StagingJob] = Backlog(clock)
        self._jobs: dict[ImageName, StagingJob] = {}
        self._ended: OrderedDict[ImageName, StagingJob] = OrderedDict()
        self._running: list[StagingJob] = []
        self._mean_s = FIRST_GUESS_S
        self._changed = threading.Condition()
        self._stopping = False
        self._threads = [threading.Thread(target=self._work, name=f"staging-{n}") for n in range(settings.threads)]

    @property
    def waiting(self) -> int:
        """How many jobs wait for a thread."""
        return len(self._backlog)

    @property
    def running(self) -> int:
        """How many jobs are worked on."""
        return len(self._running)

    @property
    def stopping(self) -> bool:
        """Whether nothing is taken in any more."""
        return self._stopping

    def start(self) -> None:
        """Begin to work."""
        for thread in self._threads:
            thread.start()

    def find(self, name: ImageName) -> StagingJob | None:
        """The job of an image, under way or ended not long ago."""
        with self._changed:
            return self._jobs.get(name) or self._ended.get(name)

    def under_way(self) -> list[StagingJob]:
        """All jobs that have not ended."""
        with self._changed:
            return list(self._jobs.values())

    def submit(
        self,
        request: StagingRequest,
        account: Account,
        tier: Tier,
        *,
        deadline_s: float,
        prepare: Callable[[StagingJob], None] | None = None,
    ) -> StagingJob:
        """The job for a request: a new one, or the one under way for the same wish. It begins after ``prepare(job)``.

        Raises:
            Conflict: the image is being staged with other parameters.
            Overloaded: the queue holds as many as it may, the process stops, or the image's last job is still ending.
        """
        until_s = self._clock() + deadline_s
        job = StagingJob(request, account, tier, until_s=until_s, clock=self._clock)
        with self._changed:
            found = self._jobs.get(job.name)
            if found is None:
                self._require_place(tier)
                self._jobs[job.name] = job
        if found is not None:
            self._join(found, request, until_s, prepare)
            return found
        if prepare is not None:
            try:
                prepare(job)
            except RemarqueError as error:
                self._end(job, error)
                raise
        with self._changed:
            self._backlog.put(job)
            self._changed.notify()
        return job

    def cancel(self, job: StagingJob) -> None:
        """End a job: at once where it waits for a thread, at its next check where it is worked on."""
        job.cancel()
        if self._backlog.remove(job):
            try:
                job.check()
            except RemarqueError as error:
                self._end(job, error)

    def stop(self, grace_s: float) -> None:
        """Send back what waits, let what runs finish for ``grace_s``, then end it."""
        with self._changed:
            self._stopping = True
            waiting = self._backlog.drain()
            self._changed.notify_all()
        for job in waiting:
            self._end(job, Interrupted("the service stops; send the request again"))
        until_s = self._clock() + grace_s
        started = [thread for thread in self._threads if thread.ident is not None]
        for thread in started:
            thread.join(max(0.0, until_s - self._clock()))
        for job in self.under_way():
            job.interrupt()
        for thread in started:
            thread.join(UNWIND_S)

    def _join(
        self, job: StagingJob, request: StagingRequest, until_s: float, prepare: Callable[[StagingJob], None] | None
    ) -> None:
        """Have a job last as long as one more caller waits for it."""
        if job.cancelled:
            raise Overloaded(f"a staging of image {request.image_id} is being cancelled", retry_after_s=1.0)
        if job.request.fingerprint != request.fingerprint:
            raise Conflict(f"image_id {request.image_id} is being staged with other parameters")
        job.extend(until_s)
        if prepare is not None:
            prepare(job)
        elif job.promised:
            self._promises.make(job)  # or another replica would take it over at its old deadline

    def _require_place(self, tier: Tier) -> None:
        if self._stopping:
            raise Overloaded("the service stops; send the request again", retry_after_s=1.0)
        places = self.settings.threads + int(self.settings.most_waiting * SHARES[tier])
        held = len(self._jobs)
        if held >= places:
            wait_s = min(MOST_RETRY_AFTER_S, max(1.0, self._mean_s * (1 + held - places / 2) / self.settings.threads))
            raise Overloaded(f"{held} stagings are under way; {tier} has room for {places}", retry_after_s=wait_s)

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                self._attend(job)
            finally:
                with self._changed:
                    self._running.remove(job)

    def _next(self) -> StagingJob | None:
        """The job whose turn it is, once there is one; None when the desk stops."""
        with self._changed:
            while not self._stopping:
                job = self._backlog.take(self._running)
                if job is not None:
                    self._running.append(job)
                    return job
                self._changed.wait()
        return None

    def _attend(self, job: StagingJob) -> None:
        job.start()
        try:
            job.check()
            manifest = self._run(job)
        except RemarqueError as error:
            self._end(job, error)
        except Exception:
            LOG.exception("staging %s broke", job.name)
            self._end(job, GenerationFailed("the service broke; its log says more"))
        else:
            self._end(job, manifest)

    def _end(self, job: StagingJob, outcome: Manifest | RemarqueError) -> None:
        """Close the promise, tell those who wait, remember the job for those who ask later."""
        seconds = self._clock() - job.accepted_s
        error = None if isinstance(outcome, Manifest) else outcome
        self._promises.close(job, error)
        with self._changed:
            self._jobs.pop(job.name, None)
            self._ended[job.name] = job
            if len(self._ended) > ENDED_REMEMBERED:
                self._ended.popitem(last=False)
            self._mean_s += MEAN_WEIGHT * (seconds - self._mean_s) if error is None else 0.0
        code = "" if error is None else error.code
        self._listen.ended(job.tier, code, seconds)
        level = logging.INFO if error is None or isinstance(error, Refused) else logging.WARNING
        text = "staged" if error is None else f"not staged, {code}: {error}"
        LOG.log(level, "image %s was %s after %.2f s", job.name, text, seconds)
        if isinstance(outcome, Manifest):
            job.succeed(outcome)
        else:
            job.fail(outcome)
