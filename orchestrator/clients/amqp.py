"""One AMQP connection, kept open by a thread of its own; the only module that knows pika.

A :class:`Link` connects, serves its channels, and connects again with growing, jittered pauses. Everything that touches
a channel runs on the link's thread, handed over by :meth:`Link.post`; that thread never waits for a job, so heartbeats
flow while jobs run.
"""

import contextlib
import logging
import random
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pika
import pika.data
import pika.exceptions
from pika.channel import Channel as Channel
from pika.spec import Basic

from orchestrator.errors import BrokerError, ConfigError

log = logging.getLogger(__name__)

Confirmed = Basic.Ack

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
STABLE_S = 10.0
CHANNEL_PAUSE_S = 1.0
CLOSE_TIMEOUT_S = 2.0
DATE_AND_FLOAT_BYTES = {b"T": 8, b"d": 8, b"f": 4}
_decoded: Callable[[bytes, int], tuple[Any, int]] = pika.data.decode_value


def _decoded_or_none(encoded: bytes, offset: int) -> tuple[Any, int]:
    """A header's value and where the next begins; None for a value that pika cannot make a Python object of.

    It would raise where it reads the socket and so cut the connection of every worker in turn. JavaScript's
    milliseconds are the year 57882, Go's zero time is no year at all, and of floats pika makes whole numbers, which
    beyond 64 bits could not be sent on.
    """
    try:
        value, after = _decoded(encoded, offset)
        return (None if isinstance(value, int) and value.bit_length() > 63 else value), after
    except (ValueError, OverflowError, OSError, RecursionError):
        kind, after = encoded[offset : offset + 1], offset + 1
        if kind in DATE_AND_FLOAT_BYTES:
            return None, after + DATE_AND_FLOAT_BYTES[kind]
        if kind in (b"A", b"F"):  # nested deeper than Python calls itself
            return None, after + 4 + int(struct.unpack_from(">I", encoded, after)[0])
        raise


pika.data.decode_value = _decoded_or_none


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the broker is; the URL holds a password and stays out of every text."""

    url: str = field(repr=False)
    ca_file: Path | None = None
    heartbeat_s: int = 20
    connect_timeout_s: float = 10.0


def parameters(endpoint: Endpoint, name: str) -> pika.ConnectionParameters:
    """What pika needs; ``name`` is what operators see in the broker's list of connections."""
    scheme = endpoint.url.partition("://")[0]
    if scheme not in ("amqp", "amqps"):
        raise ConfigError(
            "RABBITMQ_URL is not an AMQP address; amqp://USER:PASSWORD@HOST:PORT/VHOST or amqps:// is read"
        )
    if endpoint.ca_file is not None and scheme != "amqps":
        raise ConfigError(f"{endpoint.ca_file} is given to check the broker, but RABBITMQ_URL is amqp://; use amqps://")
    try:
        made = pika.URLParameters(endpoint.url)
        if scheme == "amqps":
            context = ssl.create_default_context(cafile=endpoint.ca_file)
            made.ssl_options = pika.SSLOptions(context, made.host)
    except OSError as error:
        raise ConfigError(
            f"{endpoint.ca_file} cannot be used to check the broker: {error.strerror or error}"
        ) from error
    except (ValueError, TypeError):
        # Without the cause, whose text may quote the password.
        raise ConfigError(
            "RABBITMQ_URL is not a valid AMQP address; amqp://USER:PASSWORD@HOST:PORT/VHOST is read"
        ) from None
    made.heartbeat = endpoint.heartbeat_s
    made.socket_timeout = made.stack_timeout = endpoint.connect_timeout_s
    made.connection_attempts = 1
    made.client_properties = {"connection_name": name}
    return made


def properties(message_id: str, headers: Mapping[str, object]) -> pika.BasicProperties:
    """Of a persistent JSON message; refuses what AMQP cannot carry here, not on the link's thread."""
    made = pika.BasicProperties(
        content_type="application/json",
        delivery_mode=pika.DeliveryMode.Persistent.value,
        message_id=message_id,
        headers=dict(headers),
    )
    try:
        made.encode()
    except (pika.exceptions.AMQPError, ValueError, TypeError, OverflowError, RecursionError, struct.error) as error:
        raise BrokerError(f"message {message_id} has headers that AMQP cannot carry: {error}") from error
    return made


def backoff_s(failures: int, draw: float) -> float:
    """The pause after so many failures in a row: full jitter, ``draw`` in [0, 1), over a doubling ceiling."""
    return draw * min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failures, 10))


def reason(error: BaseException) -> str:
    """The innermost cause that pika wrapped, in words."""
    while True:
        nested = getattr(error, "exceptions", None) or (getattr(error, "exception", None), *error.args)
        inner = next((e for e in reversed(nested) if isinstance(e, BaseException)), None)
        if inner is None:
            break
        error = inner
    if isinstance(error, pika.exceptions.ConnectionClosed | pika.exceptions.ChannelClosed):
        return f"{error.reply_text} ({error.reply_code})"
    text = error.args[0] if error.args and isinstance(error.args[0], str) else str(error)
    return text or type(error).__name__


@dataclass(eq=False, slots=True)
class _Kept:
    on_open: Callable[[Channel], None]
    on_lost: Callable[[str], None]
    asked_of: Any = None
    """The connection that has, or was asked for, this channel."""


class Link:
    """A connection that comes back, with the channels that were asked for."""

    def __init__(self, endpoint: Endpoint, name: str) -> None:
        self._parameters = parameters(endpoint, name)
        self._name = name
        self._kept: list[_Kept] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._connection: Any = None
        self._opened_at: float | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.epoch = 0
        self.failure = "it was not tried yet"
        self.blocked = ""

    def start(self) -> None:
        """Returns at once; the first connection is made, or tried again and again, in the background."""
        logging.getLogger("pika").setLevel(logging.CRITICAL)  # it logs each loss five times; we log it once
        self._thread.start()

    def keep_channel(self, on_open: Callable[[Channel], None], on_lost: Callable[[str], None]) -> None:
        """Have a channel opened now, and again after each loss; both are called on the link's thread."""
        kept = _Kept(on_open, on_lost)
        with self._lock:
            self._kept.append(kept)
        self._hand_over(lambda: self._open_channel(kept))

    def post(self, act: Callable[[], None]) -> None:
        """Run ``act`` on the link's thread, soon; lost with the connection if that breaks first."""
        if self._opened_at is None or not self._hand_over(act):
            raise BrokerError(f"the broker is not connected: {self.failure}")

    def drop(self, epoch: int, why: str) -> None:
        """Cut the connection of that epoch without the goodbye that a dead peer would never answer."""
        self._hand_over(lambda: self._terminate(why) if self.epoch == epoch else None)

    def check(self) -> None:
        """Raises :class:`BrokerError` unless the connection is open."""
        if not self._thread.is_alive() or self._opened_at is None:
            raise BrokerError(f"the broker is not connected: {self.failure}")

    def close(self) -> None:
        """Say goodbye, or cut the connection where that is not answered; what was posted before still runs."""
        with self._lock:
            self._closing.set()
        for end in (self._say_goodbye, lambda: self._terminate("closing was not answered")):
            if self._thread.is_alive():
                self._hand_over(end)
                self._thread.join(CLOSE_TIMEOUT_S)

    def _hand_over(self, act: Callable[[], None]) -> bool:
        """Whether there is a loop that will run ``act``; the lock keeps that loop from being closed meanwhile."""
        with self._lock:
            if self._connection is None:
                return False
            self._connection.ioloop.add_callback_threadsafe(act)
            return True

    def _say_goodbye(self) -> None:
        if self._connection.is_open:
            self._connection.close()

    def _terminate(self, why: str) -> None:
        # Not while it opens: pika's abort of that fails, and the connect timeout ends it anyway.
        if self._opened_at is not None and not self._connection.is_closed:
            # What pika's own heartbeat checker calls; a public close() waits for the peer's answer.
            self._connection._terminate_stream(pika.exceptions.AMQPHeartbeatTimeout(why))

    def _run(self) -> None:
        failures = 0
        while not self._closing.is_set():
            lived_s = self._serve_one_connection()
            failures = 0 if lived_s > STABLE_S else failures + 1
            if not self._closing.is_set():
                pause_s = backoff_s(failures, random.random())
                log.warning("%s lost its broker: %s; tries again in %.1f s", self._name, self.failure, pause_s)
                self._closing.wait(pause_s)

    def _serve_one_connection(self) -> float:
        """From the first byte to the last; how many seconds it was open."""
        with self._lock:
            if self._closing.is_set():
                return 0.0
            connection = self._connection = pika.SelectConnection(
                self._parameters,
                on_open_callback=self._on_open,
                on_open_error_callback=self._on_end,
                on_close_callback=self._on_end,
            )
        try:
            connection.ioloop.start()
        finally:  # also when a callback raised and ends this thread: posting then fails instead of vanishing
            with self._lock:
                opened_at, self._opened_at, self._connection = self._opened_at, None, None
            connection.ioloop.close()
        return 0.0 if opened_at is None else time.monotonic() - opened_at

    def _on_open(self, connection: Any) -> None:
        with self._lock:
            self.epoch += 1
            self.blocked = ""
            self._opened_at = time.monotonic()
        connection.add_on_connection_blocked_callback(self._on_blocked)
        connection.add_on_connection_unblocked_callback(self._on_unblocked)
        log.info("%s connected to its broker", self._name)
        if self._closing.is_set():
            self._say_goodbye()
        for kept in tuple(self._kept):
            self._open_channel(kept)

    def _on_blocked(self, _: Any, frame: Any) -> None:
        self.blocked = f"the broker blocks publishers: {frame.method.reason}"
        log.warning("%s was blocked by its broker: %s", self._name, frame.method.reason)

    def _on_unblocked(self, _: Any, frame: Any) -> None:
        del frame
        self.blocked = ""
        log.info("%s was unblocked by its broker", self._name)

    def _on_end(self, connection: Any, error: BaseException) -> None:
        self.failure = reason(error)
        connection.ioloop.stop()

    def _open_channel(self, kept: _Kept) -> None:
        connection = self._connection
        if not connection.is_open or kept.asked_of is connection:
            return
        kept.asked_of = connection

        def opened(channel: Channel) -> None:
            channel.add_on_close_callback(closed)
            kept.on_open(channel)

        def closed(_: Channel, error: BaseException) -> None:
            kept.asked_of = None
            kept.on_lost(reason(error))
            if connection.is_open:
                log.warning("%s lost a channel: %s", self._name, reason(error))
                connection.ioloop.call_later(CHANNEL_PAUSE_S, lambda: self._open_channel(kept))

        connection.channel(on_open_callback=opened)


@contextlib.contextmanager
def blocking_channel(endpoint: Endpoint) -> Iterator[Any]:
    """A channel on a connection of its own for one look at a queue, closed afterwards."""
    try:
        connection = pika.BlockingConnection(parameters(endpoint, "remarque look"))
    except (pika.exceptions.AMQPError, OSError) as error:
        raise BrokerError(f"the broker is not connected: {reason(error)}") from error
    try:
        yield connection.channel()
    except pika.exceptions.AMQPError as error:
        raise BrokerError(f"the broker refused: {reason(error)}") from error
    finally:
        if connection.is_open:
            connection.close()
