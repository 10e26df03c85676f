"""The service's housekeeping: takes over the routing and cancels that other replicas wrote, and abandoned promises."""

import logging
import threading
from typing import Final

from orchestrator.errors import Refused, RemarqueError
from orchestrator.staging.accounts import Account, Accounts
from orchestrator.staging.desk import Desk
from orchestrator.staging.ledger import Accepted, ImageName, StagingLedger
from orchestrator.staging.promises import Promises
from orchestrator.staging.request import StagingRequest
from orchestrator.staging.switch import Switch

LOOK_EVERY_S: Final = 2.0
ADOPT_EVERY_LOOKS: Final = 8
LOG = logging.getLogger(__name__)


class Keeper:
    """A thread that looks into the store every two seconds; every sixteen for what nobody works on any more."""

    def __init__(
        self, desk: Desk, ledger: StagingLedger, promises: Promises, accounts: Accounts, switch: Switch
    ) -> None:
        self._desk = desk
        self._ledger = ledger
        self._promises = promises
        self._accounts = accounts
        self._switch = switch
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="staging-keeper")

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End after the look under way."""
        self._stopping.set()
        self._thread.join(30.0)

    def look(self, *, adopt: bool) -> None:
        """Look once; what the store cannot tell now is looked at next time."""
        self._switch.refresh()
        try:
            for job in self._desk.under_way():
                if job.promised and self._ledger.cancel_requested(job.name):
                    self._desk.cancel(job)
            for account in self._accounts if adopt else ():
                for name, accepted in self._promises.abandoned(account.name, self._is_here):
                    self._adopt(account, name, accepted)
        except RemarqueError as error:
            LOG.warning("the store could not be looked through: %s", error)

    def _keep(self) -> None:
        looks = 0
        while not self._stopping.is_set():
            self.look(adopt=looks % ADOPT_EVERY_LOOKS == 0)
            looks += 1
            self._stopping.wait(LOOK_EVERY_S)

    def _is_here(self, name: ImageName) -> bool:
        job = self._desk.find(name)
        return job is not None and not job.snapshot().final

    def _adopt(self, account: Account, name: ImageName, accepted: Accepted) -> None:
        """Keep somebody else's promise, as the next in our queue."""
        try:
            request = StagingRequest(**accepted.request)
            self._desk.submit(
                request,
                account,
                account.tier(accepted.tier),
                deadline_s=self._desk.settings.deadline_s,
                prepare=lambda job: self._promises.make(job, accepted),
            )
        except (TypeError, Refused) as error:
            LOG.warning("image %s cannot be taken over: %s", name, error)
        else:
            LOG.info("image %s was taken over; whoever accepted it is gone", name)
