"""One staging under way: its state, which anybody may follow, and its end, which anybody may ask for."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final, Literal

from orchestrator.errors import Cancelled, DeadlineExceeded, Interrupted, RemarqueError
from orchestrator.staging.accounts import Account, Tier
from orchestrator.staging.ledger import ImageName, Manifest
from orchestrator.staging.request import StagingRequest

Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]
FINAL: Final = frozenset({"succeeded", "failed", "cancelled"})
PRIORITIES: Final = {"free": 0, "pro": 2, "business": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """How a job stands; ``version`` grows with every change."""

    status: Status
    percent: int
    version: int

    @property
    def final(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in FINAL


class StagingJob:
    """A request on its way. Threads share it; it fits the Watch of a provider and the Contender of a backlog."""

    def __init__(
        self,
        request: StagingRequest,
        account: Account,
        tier: Tier,
        *,
        until_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.request = request
        self.account = account
        self.tier = tier
        self.name = ImageName(account=account.name, image_id=request.image_id)
        self.promised_until_s: float | None = None
        self.handed_over = False
        self.adoptions = 0
        self.accepted_s = clock()
        self.done: Future[Manifest] = Future()
        self._clock = clock
        self._until_s = until_s
        self._wake = threading.Event()
        self._cancelled = False
        self._interrupted = False
        self._lock = threading.Lock()
        self._status: Status = "queued"
        self._percent = 0
        self._version = 0
        self._followers: list[Future[Snapshot]] = []

    @property
    def promised(self) -> bool:
        """Whether somebody was told 202."""
        return self.promised_until_s is not None

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked for its end."""
        return self._cancelled

    @property
    def priority(self) -> int:
        """What it is worth in the backlog."""
        return PRIORITIES[self.tier]

    @property
    def user(self) -> object:
        """Who must not crowd out others."""
        return self.account.payer(self.request)

    @property
    def style(self) -> object:
        """Styles do not compete."""
        return None

    def check(self) -> None:
        """Raises Cancelled, Interrupted or DeadlineExceeded where the job has ended."""
        if self._cancelled:
            raise Cancelled(f"the staging of image {self.request.image_id} was cancelled")
        if self._interrupted:
            raise Interrupted("the service stops; send the request again")
        if self.left_s() <= 0:
            raise DeadlineExceeded(f"the staging of image {self.request.image_id} was not done in time")

    def wait(self, seconds: float) -> None:
        """Wait, at most until the deadline and shorter where somebody nudges."""
        self._wake.wait(max(0.0, min(seconds, self.left_s())))
        self._wake.clear()
        self.check()

    def nudge(self) -> None:
        """Wake whoever waits in :meth:`wait`."""
        self._wake.set()

    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self._until_s - self._clock()

    def extend(self, until_s: float) -> None:
        """Somebody joined who has more patience."""
        self._until_s = max(self._until_s, until_s)

    def cancel(self) -> None:
        """Ask for the end; whoever works on it notices at its next check."""
        self._cancelled = True
        self._wake.set()

    def interrupt(self) -> None:
        """The process stops, and whoever works on it is to let go."""
        self._interrupted = True
        self._wake.set()

    def report(self, percent: int) -> None:
        """How much of the picture is done."""
        self._change("running", percent)

    def start(self) -> None:
        """It left the queue."""
        self._change("running", 0)

    def succeed(self, manifest: Manifest) -> None:
        """It ended well."""
        self._settle(lambda: self.done.set_result(manifest))
        self._change("succeeded", 100)

    def fail(self, error: RemarqueError) -> None:
        """It ended without a picture; of the error its sentence is kept, not the frames that hold the photograph."""
        error.__traceback__ = error.__context__ = error.__cause__ = None
        self.handed_over = self.promised and isinstance(error, Interrupted)
        self._settle(lambda: self.done.set_exception(error))
        self._change("cancelled" if isinstance(error, Cancelled) else "failed", self._percent)

    def snapshot(self) -> Snapshot:
        """How it stands now."""
        with self._lock:
            return self._snapshot()

    def after(self, version: int) -> "Future[Snapshot]":
        """The first snapshot that is newer than ``version``, now or once there is one."""
        follower: Future[Snapshot] = Future()
        with self._lock:
            if self._version > version:
                follower.set_result(self._snapshot())
            else:
                self._followers = [other for other in self._followers if not other.cancelled()] + [follower]
        return follower

    def _settle(self, settle: Callable[[], None]) -> None:
        """Tell those who wait for the end; each waits on its own view of ``done``, so nobody can have cancelled it."""
        if self.done.set_running_or_notify_cancel():
            settle()

    def _change(self, status: Status, percent: int) -> None:
        with self._lock:
            if (status, percent) == (self._status, self._percent) or self._snapshot().final:
                return
            self._status, self._percent, self._version = status, percent, self._version + 1
            followers, self._followers = self._followers, []
            snapshot = self._snapshot()
        for follower in followers:
            if follower.set_running_or_notify_cancel():
                follower.set_result(snapshot)

    def _snapshot(self) -> Snapshot:
        return Snapshot(status=self._status, percent=self._percent, version=self._version)
