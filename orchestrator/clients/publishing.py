"""Messages that are known to have arrived: every publish waits for the broker's confirm, and not for ever.

A confirm may never come, on a link that hangs or a broker that died half-way. Then the connection is cut and the same
message, with the same id, goes out again on the next one, until the deadline. Readers must expect it twice.
"""

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.clients.amqp import Channel, Confirmed, Link, properties
from orchestrator.clients.queues import Queues
from orchestrator.errors import BrokerError

Outcome = Literal["confirmed", "refused", "returned", "lost", "silent"]
REFUSED_PAUSE_S = 0.2


@dataclass(frozen=True, slots=True)
class _Message:
    queue: str
    body: bytes
    message_id: str
    properties: Any
    delay_s: float | None


class _Receipt:
    """What becomes of one sending; ``returned`` comes just before the confirm of a message without a queue."""

    def __init__(self, message_id: str) -> None:
        self.message_id = message_id
        self.target = ""
        self.returned = False
        self.outcome: Future[Outcome] = Future()


class Publisher:
    """Publishes over a link of its own, from any thread, with several confirms under way at once."""

    def __init__(self, link: Link, queues: Queues, *, confirm_timeout_s: float, deadline_s: float) -> None:
        self._link = link
        self._queues = queues
        self._confirm_timeout_s = confirm_timeout_s
        self._deadline_s = deadline_s
        self._ready = threading.Event()
        self._why = ""
        # Only the link's thread touches these.
        self._channel: Channel | None = None
        self._tag = 0
        self._under_way: dict[int, _Receipt] = {}
        link.keep_channel(self._on_open, self._on_lost)

    def publish(
        self,
        queue: str,
        body: bytes,
        *,
        message_id: str,
        headers: Mapping[str, object],
        delay_s: float | None = None,
        deadline_s: float | None = None,
    ) -> None:
        """Returns once the broker has the message on disk; :class:`BrokerError` after the deadline."""
        message = _Message(queue, body, message_id, properties(message_id, headers), delay_s)
        allowed_s = self._deadline_s if deadline_s is None else deadline_s
        deadline = time.monotonic() + allowed_s
        outcome: Outcome = "lost"
        while time.monotonic() < deadline:
            outcome = self._send_once(message, deadline)
            if outcome == "confirmed":
                return
            if outcome == "returned":
                raise BrokerError(f"message {message_id} was not queued: there is no queue {queue}")
            time.sleep(max(0.0, min(REFUSED_PAUSE_S, deadline - time.monotonic())))
        why = self._link.blocked or self._why or self._link.failure
        raise BrokerError(
            f"message {message_id} for {queue} was not confirmed within {allowed_s:g} s: {outcome}, {why}"
        )

    def _send_once(self, message: _Message, deadline: float) -> Outcome:
        if not self._ready.wait(max(0.0, deadline - time.monotonic())):
            return "lost"
        epoch = self._link.epoch
        receipt = _Receipt(message.message_id)
        try:
            self._link.post(lambda: self._send(message, receipt))
        except BrokerError:
            return "lost"
        while True:
            left_s = deadline - time.monotonic()
            was_blocked = self._link.blocked
            try:
                return receipt.outcome.result(max(0.0, min(self._confirm_timeout_s, left_s)))
            except TimeoutError:
                if left_s < self._confirm_timeout_s:
                    # Readiness has less patience than a confirm, and others' confirms may be under way on this link.
                    self._why = f"no confirm came within {left_s:.3g} s"
                    return "silent"
                if was_blocked or self._link.blocked:
                    # Another connection would be blocked as well, and the message would be there twice. A broker that
                    # unblocks has a whole wait from then on.
                    continue
                self._why = f"no confirm came within {self._confirm_timeout_s:g} s"
                self._link.drop(epoch, self._why)
                return "silent"

    def _send(self, message: _Message, receipt: _Receipt) -> None:
        channel = self._channel
        if channel is None or not channel.is_open:
            receipt.outcome.set_result("lost")
            return
        # Declared on the way, which the broker takes in order: a delay that nobody needs has no queue, and a queue that
        # an operator deleted is there again.
        target, arguments = message.queue, self._queues.arguments(message.queue)
        if message.delay_s is not None:
            target, arguments = self._queues.delayed(message.queue, message.delay_s)
        if message.delay_s is not None or target in self._queues.lasting:
            channel.queue_declare(target, durable=True, arguments=arguments)
        self._tag += 1
        receipt.target = target
        self._under_way[self._tag] = receipt
        channel.basic_publish("", target, message.body, message.properties, mandatory=True)

    def _on_open(self, channel: Channel) -> None:
        self._channel, self._tag = channel, 0
        channel.confirm_delivery(self._on_confirm)
        channel.add_on_return_callback(self._on_return)
        *first, last = self._queues.lasting
        for queue in first:
            channel.queue_declare(queue, durable=True, arguments=self._queues.arguments(queue))
        channel.queue_declare(last, durable=True, arguments=self._queues.arguments(last), callback=self._on_declared)

    def _on_declared(self, _: Any) -> None:
        self._why = ""
        self._ready.set()

    def _on_lost(self, why: str) -> None:
        self._ready.clear()
        self._channel, self._why = None, why
        under_way, self._under_way = self._under_way, {}
        for receipt in under_way.values():
            receipt.outcome.set_result("lost")

    def _on_return(self, _: Channel, method: Any, message: Any, body: bytes) -> None:
        del body
        for receipt in self._under_way.values():
            if (receipt.target, receipt.message_id) == (method.routing_key, message.message_id):
                receipt.returned = True

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        tags = [t for t in self._under_way if t <= method.delivery_tag] if method.multiple else [method.delivery_tag]
        for tag in tags:
            receipt = self._under_way.pop(tag, None)
            if receipt is not None:
                confirmed: Outcome = "returned" if receipt.returned else "confirmed"
                receipt.outcome.set_result(confirmed if isinstance(method, Confirmed) else "refused")
