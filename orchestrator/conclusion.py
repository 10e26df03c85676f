"""What becomes of a job after its attempt: an outcome that is safe, another attempt, or a postponement.

The order is the protocol: outcome committed in the store, event confirmed by the broker, message acked. A crash between
any two of them is repaired by the redelivery, which finds the outcome and repeats the rest.
"""

import logging
import random
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from orchestrator.attempt import Attempt
from orchestrator.clients.queues import ATTEMPT, LIFE, Delivery, carried, death_headers, kept, tried
from orchestrator.denoising import Emit
from orchestrator.errors import BrokerError, Cancelled, RemarqueError, StorageError
from orchestrator.job import Failed, HandedBack, Retried, Succeeded
from orchestrator.ledger import Ledger, Manifest
from orchestrator.outbox import Broker, Outbox
from orchestrator.schema import body_of

RETRY_DELAYS_S = (5.0, 30.0, 300.0)
POSTPONED_S = 30.0
BROKER_PAUSE_S = 1.0
LOG = logging.getLogger(__name__)


def next_delay(error: RemarqueError, attempt: int, max_attempts: int) -> float | None:
    """Seconds until the attempt after ``attempt`` (from 1), None where there is none."""
    if not error.retryable or attempt >= max_attempts:
        return None
    return RETRY_DELAYS_S[min(attempt, len(RETRY_DELAYS_S)) - 1]


class Conclusion:
    """Ends attempts. Every method settles the deliveries it is given, whatever the store and the broker do."""

    def __init__(self, broker: Broker, ledger: Ledger, outbox: Outbox, *, max_attempts: int, listen: Emit) -> None:
        self._broker = broker
        self._ledger = ledger
        self._outbox = outbox
        self._max_attempts = max_attempts
        self._listen = listen

    def ended(self, attempt: Attempt, deliveries: Sequence[Delivery], manifest: Manifest) -> None:
        """The attempt made ``manifest``, or found it: that of a failure may lack the copy for the operator.

        Who committed it may have died before, and a second copy does no harm.
        """
        if _is_failure(manifest) and any(delivery.redelivered for delivery in deliveries):
            self._buried(attempt, deliveries, manifest)
        else:
            self.settled(attempt, deliveries, manifest)

    def settled(self, attempt: Attempt, deliveries: Sequence[Delivery], manifest: Manifest) -> None:
        """The job ended as ``manifest`` says: tell the backend, ack, and clean up."""
        try:
            self._outbox.put(manifest, attempt.trace.traceparent)
        except BrokerError as error:
            self._give_back(deliveries, error)
            self._listen(_back(attempt))
            return
        for delivery in deliveries:
            self._broker.ack(delivery)
        self._listen(_event_of(manifest))
        try:
            self._ledger.clear(attempt.job.generation_id)
        except StorageError as error:
            LOG.warning("generation %d left objects behind: %s", attempt.job.generation_id, error)

    def broken(self, attempt: Attempt, deliveries: Sequence[Delivery], error: RemarqueError) -> None:
        """The attempt raised ``error``: another one later, or the end."""
        delay_s = next_delay(error, attempt.number, self._max_attempts)
        if delay_s is None:
            self.failed(attempt, deliveries, error)
            return
        headers = {ATTEMPT: attempt.number, LIFE: attempt.life}
        if not self._moved(deliveries, self._broker.queues.work, headers, delay_s):
            self._listen(_back(attempt))
            return
        self._listen(
            Retried(
                generation_id=attempt.job.generation_id,
                attempt=attempt.number,
                error_code=error.code,
                error_message=carried(str(error)),
                delay_s=delay_s,
            )
        )

    def failed(self, attempt: Attempt, deliveries: Sequence[Delivery], error: RemarqueError) -> None:
        """Give the job up; where it was completed after all, that outcome stands."""
        ours = _failure(attempt, error)
        try:
            counts = self._ledger.commit(ours)
            self._ledger.reveal(counts)
        except StorageError as unstored:
            LOG.warning("generation %d is postponed: %s", attempt.job.generation_id, unstored)
            headers = {ATTEMPT: attempt.number - 1, LIFE: attempt.life}
            self._moved(deliveries, self._broker.queues.work, headers, POSTPONED_S)
            self._listen(_back(attempt))
            return
        if counts.fingerprint != attempt.fingerprint:
            self.rejected(deliveries, error)
            self._listen(_event_of(ours))
        elif _is_failure(counts):
            self._buried(attempt, deliveries, counts)
        else:
            self.settled(attempt, deliveries, counts)

    def rejected(self, deliveries: Sequence[Delivery], error: RemarqueError) -> None:
        """Dead-letter messages of which the backend is not told: no generation can be named, or it is another's."""
        for delivery in deliveries:
            self._moved([delivery], self._broker.queues.dead, _death(delivery, error.code, str(error)), None)

    def handed_back(self, deliveries: Sequence[Delivery]) -> None:
        """Return the messages, for another worker or the next start."""
        for delivery in deliveries:
            self._broker.requeue(delivery)

    def _buried(self, attempt: Attempt, deliveries: Sequence[Delivery], manifest: Manifest) -> None:
        """A copy for the operator, then the outcome."""
        first, told = deliveries[0], manifest.body
        headers = _death(first, str(told["error_code"]), str(told["error_message"]))
        try:
            self._publish(first, self._broker.queues.dead, headers, None)
        except BrokerError as unconfirmed:
            self._give_back(deliveries, unconfirmed)
            self._listen(_back(attempt))
        else:
            self.settled(attempt, deliveries, manifest)

    def _moved(
        self, deliveries: Sequence[Delivery], target: str, headers: Mapping[str, object], delay_s: float | None
    ) -> bool:
        """One confirmed copy in ``target`` for all deliveries, which are then acked."""
        try:
            self._publish(deliveries[0], target, headers, delay_s)
        except BrokerError as error:
            self._give_back(deliveries, error)
            return False
        for delivery in deliveries:
            self._broker.ack(delivery)
        return True

    def _publish(self, delivery: Delivery, target: str, headers: Mapping[str, object], delay_s: float | None) -> None:
        self._broker.publish(
            target,
            delivery.body,
            message_id=delivery.message_id or "remarque",
            headers=kept(delivery.headers) | dict(headers),
            delay_s=delay_s,
        )

    def _give_back(self, deliveries: Sequence[Delivery], error: BrokerError) -> None:
        """The broker does not confirm: slow down, and have it deliver again what it still knows of."""
        LOG.warning("%d deliveries go back to the queue: %s", len(deliveries), error)
        time.sleep(BROKER_PAUSE_S * random.uniform(0.5, 1.5))
        self.handed_back(deliveries)


def _death(delivery: Delivery, reason: str, error: str) -> dict[str, object]:
    return death_headers(delivery, reason=reason, error=error, attempts=tried(delivery) + 1, now=datetime.now(UTC))


def _back(attempt: Attempt) -> HandedBack:
    """Tells those who listen that the attempt is over and its job is not."""
    return HandedBack(generation_id=attempt.job.generation_id)


def _is_failure(manifest: Manifest) -> bool:
    """Whether an operator may want to replay the job; one that was cancelled ended as it should."""
    return manifest.outcome == "failed" and manifest.body["error_code"] != Cancelled.code


def _failure(attempt: Attempt, error: RemarqueError) -> Manifest:
    event = Failed(
        generation_id=attempt.job.generation_id,
        error_message=carried(str(error)),
        error_code=error.code,
        retry_count=attempt.number - 1,
    )
    return Manifest(
        generation_id=attempt.job.generation_id,
        outcome="failed",
        body=body_of(event),
        fingerprint=attempt.fingerprint,
        life=attempt.life,
        webhook_url=attempt.job.webhook_url,
    )


def _event_of(manifest: Manifest) -> Succeeded | Failed:
    """The event for those who listen, out of the webhook's body."""
    body: Mapping[str, Any] = manifest.body
    if manifest.outcome == "complete":
        return Succeeded(generation_id=manifest.generation_id, result_url=body["result_url"], metadata=body["metadata"])
    return Failed(
        generation_id=manifest.generation_id,
        error_message=body["error_message"],
        error_code=body["error_code"],
        retry_count=body["retry_count"],
    )
