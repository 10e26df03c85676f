"""The broker as the worker sees it: deliveries in, acks and confirmed messages out.

Two connections, each with a thread: deliveries and acks on one, publishing on the other, because a broker that is short
of memory stops reading from connections that publish, and acks must still get through then.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from orchestrator.clients.amqp import Channel, Endpoint, Link, blocking_channel
from orchestrator.clients.consuming import Consumer
from orchestrator.clients.publishing import Publisher
from orchestrator.clients.queues import Delivery, Queues, named

READY_DEADLINE_S = 3.0


class Broker:
    """A RabbitMQ that may come and go; every method can be called from any thread."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        queues: Queues | None = None,
        confirm_timeout_s: float = 5.0,
        deadline_s: float = 30.0,
        name: str = "remarque",
    ) -> None:
        self.queues = queues or Queues()
        self._endpoint = endpoint
        self._receiving = Link(endpoint, f"{name} consumer")
        self._sending = Link(endpoint, f"{name} publisher")
        self._consumer = Consumer(self._receiving, self.queues)
        self._publisher = Publisher(
            self._sending, self.queues, confirm_timeout_s=confirm_timeout_s, deadline_s=deadline_s
        )

    @property
    def stale_acks(self) -> int:
        """Acks that came after their connection was lost and were dropped; the broker delivers those messages again."""
        return self._consumer.stale_acks

    def start(self) -> None:
        """Connect in the background; a broker that is not there yet is waited for."""
        self._receiving.start()
        self._sending.start()

    def consume(self, queue: str, prefetch: int, on_delivery: Callable[[Delivery], None]) -> None:
        """Hand each delivery to ``on_delivery``, on the connection's thread: it must return at once and not raise."""
        self._consumer.consume(queue, prefetch, on_delivery)

    def stop_consuming(self, queue: str | None = None) -> None:
        """Returns when nothing more of ``queue``, or of any, will come; what came can still be acked or requeued."""
        self._consumer.stop(queue)

    def ack(self, delivery: Delivery) -> None:
        """The message is done; without effect, and counted, where its connection is gone."""
        self._consumer.ack(delivery)

    def requeue(self, delivery: Delivery) -> None:
        """Hand the message back for another worker, uncounted."""
        self._consumer.requeue(delivery)

    def publish(
        self,
        queue: str,
        body: bytes,
        *,
        message_id: str,
        headers: Mapping[str, object] | None = None,
        delay_s: float | None = None,
    ) -> None:
        """Returns after the broker's confirm; :class:`~orchestrator.errors.BrokerError` after the deadline.

        With ``delay_s`` the message reaches ``queue`` after the next longer of the fixed delays.
        """
        self._publisher.publish(queue, body, message_id=message_id, headers=headers or {}, delay_s=delay_s)

    def depth(self, queue: str) -> int:
        """How many messages wait in ``queue``, those with a consumer not counted."""
        with blocking_channel(self._endpoint) as channel:
            count: int = channel.queue_declare(queue, durable=True, passive=True).method.message_count
            return count

    def ready(self) -> None:
        """Raises :class:`~orchestrator.errors.BrokerError` unless deliveries can come and a publish is confirmed."""
        self._receiving.check()
        self._consumer.check()
        self._publisher.publish(self.queues.probe, b"{}", message_id="probe", headers={}, deadline_s=READY_DEADLINE_S)

    def close(self) -> None:
        """Send what was settled, then end both connections; unsettled deliveries go back to their queues."""
        self._receiving.close()
        self._sending.close()

    @contextmanager
    def browse(self, queue: str) -> Iterator["Browser"]:
        """Look through ``queue``; whatever is not removed is back in its old order at the end."""
        with blocking_channel(self._endpoint) as channel:
            # A queue that no worker has made yet is an empty one.
            channel.queue_declare(queue, durable=True, arguments=self.queues.arguments(queue))
            yield Browser(channel, queue)


class Browser:
    """Messages of one queue, oldest first, held while one looks at them."""

    def __init__(self, channel: Channel, queue: str) -> None:
        self._channel = channel
        self._queue = queue

    def __iter__(self) -> Iterator[Delivery]:
        """What was there when the look began, not what comes meanwhile."""
        left = 1
        while left > 0:
            method, properties, body = self._channel.basic_get(self._queue)
            if method is None:
                return
            left = method.message_count if method.delivery_tag == 1 else left - 1
            headers, message_id = named(properties.headers), properties.message_id
            yield Delivery(body, headers, message_id, method.redelivered, self._queue, method.delivery_tag, 0)

    def remove(self, delivery: Delivery) -> None:
        """Take it out of the queue for good."""
        self._channel.basic_ack(delivery.delivery_tag)

    def purge(self) -> int:
        """Remove every message that was not yet looked at; how many that were."""
        count: int = self._channel.queue_purge(self._queue).method.message_count
        return count
