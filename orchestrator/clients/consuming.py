"""Deliveries, and their acks, fenced: an ack reaches the channel that delivered, or nobody.

Delivery tags start at 1 on every channel. An ack that is sent after a reconnect would settle some other message of the
new channel, so each channel has a generation and a delivery remembers it. The broker delivers the lost ones again.
"""

import itertools
import threading
from collections.abc import Callable
from typing import Any

from orchestrator.clients.amqp import Channel, Link
from orchestrator.clients.queues import Delivery, Queues, named, published_s
from orchestrator.errors import BrokerError

CANCEL_TIMEOUT_S = 5.0


class _Subscription:
    def __init__(self, queue: str, prefetch: int, on_delivery: Callable[[Delivery], None]) -> None:
        self.queue = queue
        self.prefetch = prefetch
        self.on_delivery = on_delivery
        self.why = "the broker did not answer yet"
        self.stopping = False
        self.cancelled = threading.Event()
        # Only the link's thread touches these.
        self.generation = 0
        self.consumer_tag: str | None = None


class Consumer:
    """Any number of subscriptions over one link; one channel each."""

    def __init__(self, link: Link, queues: Queues) -> None:
        self._link = link
        self._queues = queues
        self._generations = itertools.count(1)
        self._channels: dict[int, Channel] = {}
        self._subscriptions: list[_Subscription] = []
        self._lock = threading.Lock()
        self.stale_acks = 0

    def consume(self, queue: str, prefetch: int, on_delivery: Callable[[Delivery], None]) -> None:
        """Have deliveries of ``queue`` handed over on the link's thread, at most ``prefetch`` of them unsettled."""
        subscription = _Subscription(queue, prefetch, on_delivery)
        self._subscriptions.append(subscription)
        self._link.keep_channel(
            lambda c: self._subscribe(c, subscription), lambda why: self._unsubscribe(subscription, why)
        )

    def stop(self, queue: str | None = None) -> None:
        """No further deliveries of ``queue``, or of any, now and after reconnects; those handed over can be settled."""
        ending = [subscription for subscription in self._subscriptions if queue in (None, subscription.queue)]
        for subscription in ending:
            subscription.stopping = True
        try:
            self._link.post(lambda: self._cancel(ending))
        except BrokerError:
            return
        for subscription in ending:
            subscription.cancelled.wait(CANCEL_TIMEOUT_S)

    def ack(self, delivery: Delivery) -> None:
        """The message is done; dropped and counted where its channel is gone."""
        self._settle(delivery, lambda channel: channel.basic_ack(delivery.delivery_tag))

    def requeue(self, delivery: Delivery) -> None:
        """Hand the message back, to its old place in the queue if it can be."""
        self._settle(delivery, lambda channel: channel.basic_nack(delivery.delivery_tag, requeue=True))

    def check(self) -> None:
        """Raises :class:`BrokerError` unless every subscription stands."""
        for subscription in self._subscriptions:
            if subscription.why:
                raise BrokerError(f"queue {subscription.queue} is not consumed: {subscription.why}")

    def _settle(self, delivery: Delivery, act: Callable[[Channel], None]) -> None:
        def settle() -> None:
            channel = self._channels.get(delivery.connection_generation)
            if channel is not None and channel.is_open:
                act(channel)
            else:
                self._count_stale()

        try:
            self._link.post(settle)
        except BrokerError:
            self._count_stale()

    def _count_stale(self) -> None:
        with self._lock:
            self.stale_acks += 1

    def _subscribe(self, channel: Channel, subscription: _Subscription) -> None:
        generation = subscription.generation = next(self._generations)
        self._channels[generation] = channel
        if subscription.stopping:
            subscription.cancelled.set()
            return
        queue = subscription.queue

        def on_message(_: Channel, method: Any, properties: Any, body: bytes) -> None:
            if subscription.stopping:
                channel.basic_nack(method.delivery_tag, requeue=True)
                return
            headers, message_id = named(properties.headers), properties.message_id
            tag, stamp = method.delivery_tag, published_s(headers, properties.timestamp)
            subscription.on_delivery(
                Delivery(body, headers, message_id, method.redelivered, queue, tag, generation, stamp)
            )

        def on_standing(_: Any) -> None:
            subscription.why = ""

        channel.add_on_cancel_callback(lambda _: channel.close())  # the queue was deleted: declare it again
        channel.queue_declare(queue, durable=True, arguments=self._queues.arguments(queue))
        channel.basic_qos(prefetch_count=subscription.prefetch)
        subscription.consumer_tag = channel.basic_consume(queue, on_message, callback=on_standing)

    def _unsubscribe(self, subscription: _Subscription, why: str) -> None:
        self._channels.pop(subscription.generation, None)
        subscription.consumer_tag, subscription.why = None, why
        if subscription.stopping:
            subscription.cancelled.set()

    def _cancel(self, ending: list[_Subscription]) -> None:
        for subscription in ending:
            channel = self._channels.get(subscription.generation)
            if channel is None or not channel.is_open or subscription.consumer_tag is None:
                subscription.cancelled.set()
            else:
                channel.basic_cancel(subscription.consumer_tag, callback=_sets(subscription.cancelled))


def _sets(event: threading.Event) -> Callable[[Any], None]:
    return lambda _: event.set()
