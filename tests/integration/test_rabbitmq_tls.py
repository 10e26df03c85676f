"""``amqps://``: the broker's certificate and name are checked, against an authority of one's own if need be."""

import asyncio
import datetime
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from integration.broker import RunningBroker

from orchestrator.clients.amqp import Endpoint
from orchestrator.clients.queues import Queues
from orchestrator.clients.rabbitmq import Broker
from orchestrator.errors import BrokerError

Connect = Callable[[str, Path | None], Broker]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and certificate of ``localhost`` in one file, its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain)
    path.write_bytes(private + built.public_bytes(encoding))
    return path


@pytest.fixture(scope="module")
def tls_port(rabbitmq: RunningBroker, certificate: Path) -> Iterator[int]:
    """A port that speaks TLS for the shared broker."""
    upstream = urlsplit(rabbitmq.url)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to, back = await asyncio.open_connection(upstream.hostname, upstream.port)
        await asyncio.gather(pump(reader, back), pump(to, writer), return_exceptions=True)

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    start = asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    server = asyncio.run_coroutine_threadsafe(start, loop).result(10)
    yield server.sockets[0].getsockname()[1]
    loop.call_soon_threadsafe(server.close)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


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
