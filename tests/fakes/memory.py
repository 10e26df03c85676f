"""A store and a broker in memory, for tests of what is done with them; both can be told to fail."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from orchestrator.clients.queues import Delivery, Queues
from orchestrator.errors import BrokerError, InvalidInput, ObjectExists, ObjectNotFound, StorageError


class MemoryStore:
    """Objects by URI. While ``broken`` holds a text, every call whose URI contains it raises StorageError."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.broken: str | None = None
        self.writes: list[str] = []
        self.reads: list[str] = []

    def _touch(self, uri: str) -> None:
        if self.broken is not None and self.broken in uri:
            raise StorageError(f"{uri} is out of reach")

    def read(self, uri: str, *, limit_bytes: int) -> bytes:
        self._touch(uri)
        if uri not in self.objects:
            raise ObjectNotFound(f"{uri} is not there")
        if len(self.objects[uri]) > limit_bytes:
            raise InvalidInput(f"{uri} is larger than {limit_bytes} bytes")
        self.reads.append(uri)
        return self.objects[uri]

    def write(self, uri: str, data: bytes, *, content_type: str, cache_control: str, create_only: bool = False) -> None:
        self._touch(uri)
        if create_only and uri in self.objects:
            raise ObjectExists(f"{uri} is taken")
        self.objects[uri] = data
        self.writes.append(uri)

    def exists(self, uri: str) -> bool:
        self._touch(uri)
        return uri in self.objects

    def version(self, uri: str) -> str:
        self._touch(uri)
        if uri not in self.objects:
            raise ObjectNotFound(f"{uri} is not there")
        return hashlib.sha256(self.objects[uri]).hexdigest()

    def delete(self, uri: str) -> None:
        self._touch(uri)
        self.objects.pop(uri, None)


@dataclass(frozen=True)
class Published:
    queue: str
    body: bytes
    message_id: str
    headers: Mapping[str, object]
    delay_s: float | None


@dataclass
class MemoryBroker:
    """Remembers what was published, acked and requeued, in order, in ``log``."""

    queues: Queues = field(default_factory=Queues)
    published: list[Published] = field(default_factory=list)
    acked: list[Delivery] = field(default_factory=list)
    requeued: list[Delivery] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    silent: bool = False
    consumers: dict[str, Callable[[Delivery], None]] = field(default_factory=dict)
    tags: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def delivery(
        self, body: bytes, headers: Mapping[str, object] | None = None, *, redelivered: bool = False
    ) -> Delivery:
        return Delivery(body, headers or {}, "m1", redelivered, self.queues.work, next(self.tags), 1)

    def consume(self, queue: str, prefetch: int, on_delivery: Callable[[Delivery], None]) -> None:
        self.consumers[queue] = on_delivery

    def stop_consuming(self, queue: str | None = None) -> None:
        self.log.append(f"stop {queue}")

    def depth(self, queue: str) -> int:
        return 0

    def ack(self, delivery: Delivery) -> None:
        self.acked.append(delivery)
        self.log.append("ack")

    def requeue(self, delivery: Delivery) -> None:
        self.requeued.append(delivery)
        self.log.append("requeue")

    def publish(
        self,
        queue: str,
        body: bytes,
        *,
        message_id: str,
        headers: Mapping[str, object] | None = None,
        delay_s: float | None = None,
    ) -> None:
        if self.silent:
            raise BrokerError("no confirm came")
        self.published.append(Published(queue, body, message_id, headers or {}, delay_s))
        self.log.append(f"publish {queue}")

    def to(self, queue: str) -> list[Published]:
        return [message for message in self.published if message.queue == queue]
