"""A real RabbitMQ for tests: ``RABBITMQ_URL``, an installed one, or Debian's packages unpacked into the state folder.

Where there is none of them a laptop skips, saying why, and CI fails.
"""

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

import pika
import pytest
from fakes.proxy import Proxy

from local.rabbitmq import RabbitMQ, private_rabbitmq
from orchestrator.clients.amqp import Endpoint
from orchestrator.clients.queues import Queues
from orchestrator.clients.rabbitmq import Broker
from orchestrator.errors import ServiceError

DELAY_S = 0.3


@dataclass(frozen=True)
class RunningBroker:
    url: str


@contextmanager
def private_or_skip() -> Iterator[RabbitMQ]:
    try:
        broker = private_rabbitmq()
        started = broker.__enter__()
    except ServiceError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"no RabbitMQ: {error}")
        pytest.skip(f"no RabbitMQ: {error}")
    try:
        yield started
    finally:
        broker.__exit__(None, None, None)


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RunningBroker]:
    """A broker that all tests share; give your queues names of your own (fixture ``queues``)."""
    if url := os.environ.get("RABBITMQ_URL"):
        yield RunningBroker(url)
        return
    with private_or_skip() as private:
        yield RunningBroker(private.url)


@pytest.fixture(scope="session")
def killable_rabbitmq() -> Iterator[RabbitMQ]:
    """A private broker for tests that kill it; leave it running."""
    with private_or_skip() as private:
        yield private


@pytest.fixture
def queues(request: pytest.FixtureRequest) -> Iterator[Queues]:
    """Queues of one test, deleted after it wherever the test made them."""
    own = Queues(work=f"test-{uuid.uuid4().hex[:12]}", delays_s=(DELAY_S, 2.0))
    yield own
    for fixture in {"rabbitmq", "killable_rabbitmq"} & set(request.fixturenames):
        with amqp_channel(request.getfixturevalue(fixture).url) as channel:
            for name in (
                own.work,
                own.dead,
                own.events,
                own.probe,
                *(own.delayed(own.work, d)[0] for d in own.delays_s),
            ):
                channel.queue_delete(name)


@contextmanager
def amqp_channel(url: str) -> Iterator[pika.adapters.blocking_connection.BlockingChannel]:
    """What a publisher or an operator does, by pika alone."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        yield connection.channel()
    finally:
        with suppress(pika.exceptions.AMQPError):
            connection.close()


@pytest.fixture
def open_broker() -> Iterator[Callable[..., Broker]]:
    """Makes clients that are closed after the test."""
    opened: list[Broker] = []

    def make(url: str, queues: Queues, **settings: float) -> Broker:
        heartbeat_s = int(settings.pop("heartbeat_s", 20))
        broker = Broker(Endpoint(url, heartbeat_s=heartbeat_s, connect_timeout_s=3), queues=queues, **settings)
        opened.append(broker)
        return broker

    yield make
    for broker in opened:
        broker.close()


@pytest.fixture
def broker_proxy(rabbitmq: RunningBroker) -> Iterator[tuple[Proxy, str]]:
    """A link to the shared broker that can be broken, and the URL through it."""
    parts = urlsplit(rabbitmq.url)
    assert parts.hostname
    with Proxy(parts.hostname, parts.port or 5672) as proxy:
        credentials = f"{parts.username}:{parts.password}@" if parts.username else ""
        yield proxy, f"amqp://{credentials}127.0.0.1:{proxy.port}{parts.path}"
