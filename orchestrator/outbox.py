"""Terminal events on their way to the backend: a durable queue, drained with patience.

An event is in the queue, confirmed, before its job is acked, so it outlives this process. A few threads take events out
and call the backend. While the backend is down each of them holds one event and tries it again and again; the rest wait
in the queue. That is the parking: nothing is lost, nothing spins, and the first success lets everything flow. An event
that still fails after :data:`TRIES_IN_HAND` goes to the back, so that no single one blocks the others.
"""

import json
import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from orchestrator.clients.queues import ATTEMPT, NOT_BEFORE, Delivery, Queues, death_headers, early_s, tried
from orchestrator.clients.webhook import Kind, webhook_id
from orchestrator.clients.webhook_retry import MAX_DELAY_S, MAX_RETRY_AFTER_S, retry_delay
from orchestrator.errors import BrokerError, GenerationFailed, WebhookUndelivered
from orchestrator.job import Progress
from orchestrator.ledger import Manifest
from orchestrator.schema import body_of
from orchestrator.trace import HEADER as TRACEPARENT

SENDERS = 4
TRIES_IN_HAND = 6
BACK_OF_QUEUE_S = 30.0
# Brokers close a channel whose delivery is held for half an hour; anything near that waits in the queue instead.
LONGEST_IN_HAND_S = 120.0
LONGEST_WAIT_S = MAX_RETRY_AFTER_S + MAX_DELAY_S
CALL_ENDS_WITHIN_S = 2.0
TraceCall = Callable[[str | None, str, str, float], None]
"""Hears of every call for a terminal event: its traceparent, kind, answer and seconds."""
LOG = logging.getLogger(__name__)


class Sender(Protocol):
    """Makes one call of the backend; WebhookUndelivered where another try may succeed, WebhookRefused where not."""

    def send(
        self,
        kind: Kind,
        body: Mapping[str, object],
        *,
        webhook_id: str,
        webhook_url: str | None = None,
        traceparent: str | None = None,
    ) -> None: ...


class Broker(Protocol):
    """What the outbox and the worker need of the broker."""

    @property
    def queues(self) -> Queues: ...

    def consume(self, queue: str, prefetch: int, on_delivery: Callable[[Delivery], None]) -> None: ...

    def stop_consuming(self, queue: str | None = None) -> None: ...

    def depth(self, queue: str) -> int: ...

    def ack(self, delivery: Delivery) -> None: ...

    def requeue(self, delivery: Delivery) -> None: ...

    def publish(
        self,
        queue: str,
        body: bytes,
        *,
        message_id: str,
        headers: Mapping[str, object] | None = None,
        delay_s: float | None = None,
    ) -> None: ...


class Outbox:
    """Puts outcomes into the durable queue, and empties that queue into the backend."""

    def __init__(
        self,
        broker: Broker,
        sender: Sender,
        milestone_sender: Sender,
        *,
        count: Callable[[str, str], None],
        trace: TraceCall | None = None,
    ) -> None:
        self._broker = broker
        self._sender = sender
        self._milestone_sender = milestone_sender
        self._count = count
        self._trace = trace
        self._deliveries: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._drain, name=f"webhook-{i}", daemon=True) for i in range(SENDERS)]
        self._in_hand: set[int] = set()
        self._stopping = threading.Event()
        self._rng = random.Random()

    def start(self) -> None:
        """Begin to deliver what the queue holds."""
        for thread in self._threads:
            thread.start()
        self._broker.consume(self._broker.queues.events, SENDERS, self._receive)

    def stop(self, patience_s: float) -> None:
        """Deliver what is left for ``patience_s`` and finish the calls under way; the rest stays in the queue."""
        until_s = time.monotonic() + patience_s
        while time.monotonic() < until_s and not self._is_empty():
            time.sleep(0.05)
        self._stopping.set()
        for _ in self._threads:
            self._deliveries.put(None)
        for thread in self._threads:
            thread.join(CALL_ENDS_WITHIN_S)

    def _is_empty(self) -> bool:
        """Whether no event waits, in the queue or here."""
        try:
            return not self._in_hand and self._broker.depth(self._broker.queues.events) == 0
        except BrokerError:
            return True

    def put(self, manifest: Manifest, traceparent: str | None = None) -> None:
        """Returns once the broker has the outcome for good; :class:`BrokerError` otherwise.

        ``manifest`` may have been read back: the event is the same to the byte whoever sends it.
        """
        event = {
            "kind": manifest.outcome,
            "generation_id": manifest.generation_id,
            "webhook_url": manifest.webhook_url,
            "webhook_id": webhook_id(manifest.generation_id, manifest.outcome, life=manifest.life),
            "body": dict(manifest.body),
        }
        data = json.dumps(event, ensure_ascii=False, sort_keys=True).encode()
        headers = None if traceparent is None else {TRACEPARENT: traceparent}
        self._broker.publish(self._broker.queues.events, data, message_id=str(event["webhook_id"]), headers=headers)

    def send_progress(self, event: Progress, webhook_url: str | None, life: int) -> None:
        """One try, best effort: a milestone that is not accepted is counted and forgotten."""
        identity = webhook_id(event.generation_id, "progress", progress_percent=event.progress_percent, life=life)
        try:
            self._milestone_sender.send("progress", body_of(event), webhook_id=identity, webhook_url=webhook_url)
        except WebhookUndelivered as error:
            self._count("progress", "undelivered" if error.retryable else "refused")
            what = f"generation {event.generation_id}: milestone {event.progress_percent} %"
            LOG.info("%s was not delivered: %s", what, error)
        else:
            self._count("progress", "accepted")

    def _receive(self, delivery: Delivery) -> None:
        self._in_hand.add(delivery.delivery_tag)
        self._deliveries.put(delivery)

    def _drain(self) -> None:
        while (delivery := self._deliveries.get()) is not None:
            if self._stopping.is_set():
                self._broker.requeue(delivery)
            else:
                try:
                    self._settle(delivery)
                except Exception as error:  # left to itself, the event would end every thread that it comes to
                    LOG.exception("an event broke the outbox")
                    why = f"the event broke the outbox inside the server ({type(error).__name__})"
                    self._bury(delivery, GenerationFailed.code, why)
            self._in_hand.discard(delivery.delivery_tag)

    def _settle(self, delivery: Delivery) -> None:
        """See one event through: accepted, refused for good, put back, or to the back of the queue."""
        left_s = early_s(delivery, now_s=time.time(), longest_s=LONGEST_WAIT_S)
        if left_s > 0:
            self._put_off(delivery, tried(delivery), left_s)
            return
        event = json.loads(delivery.body)
        delay_s = BACK_OF_QUEUE_S
        for turn in range(1, TRIES_IN_HAND + 1):
            error = self._try(event, delivery)
            if error is None:
                self._broker.ack(delivery)
                return
            if not error.retryable:
                LOG.error("generation %d: %s webhook is given up", event["generation_id"], event["kind"])
                self._bury(delivery, "WEBHOOK_REFUSED", str(error))
                return
            delay_s = retry_delay(error, tried(delivery) + turn, self._rng)
            if delay_s > LONGEST_IN_HAND_S:
                break
            if self._stopping.wait(delay_s):
                self._broker.requeue(delivery)
                return
        self._put_off(delivery, tried(delivery) + TRIES_IN_HAND, max(delay_s, BACK_OF_QUEUE_S))

    def _put_off(self, delivery: Delivery, tries: int, delay_s: float) -> None:
        """To the back of the queue, as often as the longest delay that the broker knows falls short."""
        headers: dict[str, object] = {ATTEMPT: tries}
        if TRACEPARENT in delivery.headers:
            headers[TRACEPARENT] = delivery.headers[TRACEPARENT]
        if delay_s > max(self._broker.queues.delays_s):
            headers[NOT_BEFORE] = int(time.time() + delay_s)
        self._move(delivery, self._broker.queues.events, headers, delay_s)

    def _try(self, event: Mapping[str, Any], delivery: Delivery) -> WebhookUndelivered | None:
        """One call; what went wrong, if anything did."""
        kind: Kind = event["kind"]
        told = delivery.headers.get(TRACEPARENT)
        traceparent, begun_s = told if isinstance(told, str) else None, time.monotonic()
        failure: WebhookUndelivered | None = None
        try:
            self._sender.send(
                kind,
                event["body"],
                webhook_id=event["webhook_id"],
                webhook_url=event["webhook_url"],
                traceparent=traceparent,
            )
        except WebhookUndelivered as error:
            failure = error
            LOG.warning("generation %d: %s webhook was not delivered: %s", event["generation_id"], kind, error)
        answer = "accepted" if failure is None else "undelivered" if failure.retryable else "refused"
        self._count(kind, answer)
        if self._trace is not None:
            self._trace(traceparent, kind, answer, time.monotonic() - begun_s)
        return failure

    def _bury(self, delivery: Delivery, reason: str, error: str) -> None:
        """Keep the event where an operator finds it."""
        attempts = tried(delivery) + 1
        headers = death_headers(delivery, reason=reason, error=error, attempts=attempts, now=datetime.now(UTC))
        self._move(delivery, self._broker.queues.dead, headers, None)

    def _move(self, delivery: Delivery, target: str, headers: Mapping[str, object], delay_s: float | None) -> None:
        """Confirmed there before it is acked here; where the broker fails it is simply delivered again."""
        try:
            self._broker.publish(
                target, delivery.body, message_id=delivery.message_id or "event", headers=headers, delay_s=delay_s
            )
        except BrokerError as error:
            LOG.warning("an event could not be moved to %s: %s", target, error)
            self._broker.requeue(delivery)
        else:
            self._broker.ack(delivery)
