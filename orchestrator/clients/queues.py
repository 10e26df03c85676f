"""The queues, what lies in them, and the headers that travel along: AMQP's words without an AMQP library.

``image_generation`` belongs to the publishers, who declare it durable and without arguments; another argument from our
side is a ``PRECONDITION_FAILED`` for whoever comes second. Everything else is arranged in queues of our own, whose
names begin with it: ``.dead`` for what was given up, ``.events`` for terminal events on their way to the backend,
``.probe`` for the readiness check, and ``.retry.5s`` and so on for messages that come back later.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

ATTEMPT = "x-attempt"
"""How often a job was tried. Ours, because brokers differ in what they count."""
LIFE = "x-life"
"""How often an operator replayed a job that was given up."""
NOT_BEFORE = "x-not-before"
"""When an event may be tried again, in seconds since 1970, where that is later than the longest delay."""
REASON = "x-reason"
ERROR = "x-error"
ATTEMPTS = "x-attempts"
FIRST_DEATH = "x-first-death"
ORIGIN = "x-origin"
"""The queue that a dead message came from and goes back to."""
MAX_ERROR_CHARS = 1000
MAX_COUNT = 1_000_000
COPIES = ("CC", "BCC")


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message as the broker handed it over; tag and generation say whom an ack concerns.

    ``published_s`` (since 1970) is the publisher's or the broker's stamp, where there is one.
    """

    body: bytes
    headers: Mapping[str, object]
    message_id: str | None
    redelivered: bool
    queue: str
    delivery_tag: int
    connection_generation: int
    published_s: float | None = None


def carried(text: str) -> str:
    """An error's sentence as headers and webhooks carry it: cut, and with ``?`` for what UTF-8 has no bytes for.

    Errors quote the files of strangers, and JSON can spell half of a surrogate pair.
    """
    return text[:MAX_ERROR_CHARS].encode("utf-8", "replace").decode()


def death_headers(delivery: Delivery, *, reason: str, error: str, attempts: int, now: datetime) -> dict[str, object]:
    """Headers for ``.dead``: why, from where, how often it was tried, and when it died first, replays included."""
    return {
        REASON: reason,
        ERROR: carried(error),
        ATTEMPTS: attempts,
        ORIGIN: delivery.queue,
        LIFE: life(delivery),
        FIRST_DEATH: delivery.headers.get(FIRST_DEATH) or now.astimezone(UTC).isoformat(timespec="seconds"),
    }


def replay_headers(dead: Delivery) -> dict[str, object]:
    """Headers for one more life: attempts are counted from the start again."""
    kept = {FIRST_DEATH: dead.headers[FIRST_DEATH]} if FIRST_DEATH in dead.headers else {}
    return kept | {LIFE: life(dead) + 1}


def published_s(headers: Mapping[str, object], timestamp: object) -> float | None:
    """When a message was published: RabbitMQ's interceptor stamps milliseconds, AMQP's own property holds seconds."""
    stamp = headers.get("timestamp_in_ms")
    if isinstance(stamp, int) and stamp > 0:
        return stamp / 1000
    return float(timestamp) if isinstance(timestamp, int) and timestamp > 0 else None


def tried(delivery: Delivery) -> int:
    """0 for a message that never came back."""
    return _count(delivery.headers.get(ATTEMPT))


def life(delivery: Delivery) -> int:
    """0 for a message that no operator replayed."""
    return _count(delivery.headers.get(LIFE))


def _count(value: object) -> int:
    """Publishers may write any number; one more than AMQP's largest could not be sent on."""
    return min(value, MAX_COUNT) if isinstance(value, int) and value > 0 else 0


def named(headers: Mapping[Any, object] | None) -> dict[str, object]:
    """The headers whose names are text; pika gives the bytes of other names, which nothing here asks for."""
    return {name: value for name, value in (headers or {}).items() if isinstance(name, str)}


def kept(headers: Mapping[str, object]) -> dict[str, object]:
    """The publisher's headers that go along with a retry or a dead letter.

    Not the broker's history, and no ``CC`` or ``BCC``: by those the broker would copy each of ours to further queues.
    """
    return {name: value for name, value in headers.items() if not name.startswith("x-death") and name not in COPIES}


def early_s(delivery: Delivery, *, now_s: float, longest_s: float) -> float:
    """How many seconds too soon it came; 0 also where the header names a time that nobody of ours would."""
    value = delivery.headers.get(NOT_BEFORE)
    left_s = value - now_s if isinstance(value, int) else 0.0
    return left_s if 0.0 < left_s <= longest_s else 0.0


@dataclass(frozen=True, slots=True)
class Queues:
    """The names and arguments of all queues around the one that publishers write to."""

    work: str = "image_generation"
    delays_s: tuple[float, ...] = (5, 30, 300)

    @property
    def dead(self) -> str:
        return f"{self.work}.dead"

    @property
    def events(self) -> str:
        return f"{self.work}.events"

    @property
    def probe(self) -> str:
        return f"{self.work}.probe"

    @property
    def lasting(self) -> tuple[str, ...]:
        """Those that are there before anything lies in them."""
        return (self.work, self.dead, self.events, self.probe)

    def arguments(self, queue: str) -> dict[str, object] | None:
        """What ``queue`` is declared with, always durable: nothing at all for the publishers' own."""
        if queue == self.probe:
            return {"x-max-length": 1, "x-message-ttl": 60_000}
        return None

    def delayed(self, queue: str, delay_s: float) -> tuple[str, dict[str, object]]:
        """The waiting room from which messages go to ``queue``, and its arguments.

        One queue per fixed delay, since RabbitMQ expires messages only at a queue's head: a long delay in front would
        hold up every short one behind it. The next longer delay is taken, or the longest there is.
        """
        chosen_s = min((d for d in self.delays_s if d >= delay_s), default=max(self.delays_s))
        arguments: dict[str, object] = {
            "x-message-ttl": round(chosen_s * 1000),
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": queue,
        }
        return f"{queue}.retry.{chosen_s:g}s", arguments
