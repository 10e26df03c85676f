"""``amqps://``: the broker's certificate and name are checked, against an authority of one's own if need be."""

from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from fakes.tls import private_authority, tls_in_front_of
from integration.broker import RunningBroker

from orchestrator.clients.amqp import Endpoint
from orchestrator.clients.queues import Queues
from orchestrator.clients.rabbitmq import Broker
from orchestrator.errors import BrokerError

Connect = Callable[[str, Path | None], Broker]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return private_authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def certificate(authority: tuple[Path, Path]) -> Path:
    """What signed the broker's certificate."""
    return authority[0]


@pytest.fixture(scope="module")
def tls_port(rabbitmq: RunningBroker, authority: tuple[Path, Path]) -> Iterator[int]:
    """A port that speaks TLS for the shared broker."""
    upstream = urlsplit(rabbitmq.url)
    with tls_in_front_of(str(upstream.hostname), int(upstream.port or 5672), authority[1]) as port:
        yield port


@pytest.fixture
def connect(rabbitmq: RunningBroker, queues: Queues, tls_port: int) -> Iterator[Connect]:
    opened: list[Broker] = []

    def make(host: str, ca_file: Path | None) -> Broker:
        credentials = urlsplit(rabbitmq.url).netloc.rpartition("@")[0]
        broker = Broker(
            Endpoint(f"amqps://{credentials}@{host}:{tls_port}/", ca_file=ca_file), queues=queues, deadline_s=10
        )
        opened.append(broker)
        broker.start()
        return broker

    yield make
    for broker in opened:
        broker.close()


def test_broker_behind_an_authority_of_ones_own_is_trusted_by_its_file(
    connect: Connect, certificate: Path, queues: Queues
) -> None:
    broker = connect("localhost", certificate)
    broker.publish(queues.work, b"{}", message_id="m")
    assert broker.depth(queues.work) == 1


def test_broker_of_an_unknown_authority_is_refused(connect: Connect, queues: Queues) -> None:
    with pytest.raises(BrokerError, match="CERTIFICATE_VERIFY_FAILED"):
        connect("localhost", None).depth(queues.work)


def test_broker_under_another_name_is_refused(connect: Connect, certificate: Path, queues: Queues) -> None:
    with pytest.raises(BrokerError, match="IP address mismatch"):
        connect("127.0.0.1", certificate).depth(queues.work)
