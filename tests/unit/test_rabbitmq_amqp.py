"""What the AMQP connection is made of, without a broker."""

import struct
from decimal import Decimal
from pathlib import Path

import pika
import pika.frame
import pytest
from pika.adapters.utils.connection_workflow import AMQPConnectionWorkflowFailed, AMQPConnectorSocketConnectError

from orchestrator.clients.amqp import (
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    Endpoint,
    backoff_s,
    parameters,
    properties,
    reason,
)
from orchestrator.errors import BrokerError, ConfigError


def test_pauses_between_connections_double_up_to_a_ceiling() -> None:
    almost_one = 1 - 1e-9
    ceilings = [backoff_s(failures, almost_one) for failures in range(1, 12)]
    assert ceilings[0] == pytest.approx(2 * FIRST_PAUSE_S)
    assert ceilings[1] == pytest.approx(2 * ceilings[0])
    assert max(ceilings) == ceilings[-1] == pytest.approx(LONGEST_PAUSE_S)


def test_pauses_use_their_whole_range_so_that_workers_do_not_return_together() -> None:
    assert backoff_s(8, 0.0) == 0.0
    assert backoff_s(8, 0.5) == pytest.approx(LONGEST_PAUSE_S / 2)


def test_password_is_in_no_repr() -> None:
    assert "s3cr3t" not in repr(Endpoint("amqp://user:s3cr3t@host/"))


@pytest.mark.parametrize("url", ["http://user:s3cr3t@host/", "amqp://user:s3cr3t@host:port/", "s3cr3t"])
def test_address_that_is_none_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(ConfigError, match="RABBITMQ_URL") as caught:
        parameters(Endpoint(url), "name")
    assert "s3cr3t" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_url_sets_host_port_vhost_and_credentials() -> None:
    made = parameters(Endpoint("amqp://user:pass@host:1234/art", heartbeat_s=7), "name")
    assert (made.host, made.port, made.virtual_host, made.heartbeat) == ("host", 1234, "art", 7)
    assert (made.credentials.username, made.ssl_options) == ("user", None)


def test_amqps_checks_the_brokers_name_and_certificate() -> None:
    made = parameters(Endpoint("amqps://user:pass@host/"), "name")
    assert made.port == 5671
    assert made.ssl_options.server_hostname == "host"
    assert made.ssl_options.context.check_hostname


def test_authority_file_without_tls_is_refused() -> None:
    with pytest.raises(ConfigError, match="use amqps"):
        parameters(Endpoint("amqp://host/", ca_file=Path("ca.pem")), "name")


def test_authority_file_that_is_none_is_named(tmp_path: Path) -> None:
    for content in (None, "not a certificate"):
        if content is not None:
            (tmp_path / "ca.pem").write_text(content)
        with pytest.raises(ConfigError, match=r"ca\.pem"):
            parameters(Endpoint("amqps://host/", ca_file=tmp_path / "ca.pem"), "name")


def test_messages_are_persistent() -> None:
    made = properties("m-1", {"x-attempt": 1})
    assert (made.delivery_mode, made.message_id, made.headers) == (2, "m-1", {"x-attempt": 1})


@pytest.mark.parametrize(
    ("message_id", "headers"),
    [("m", {"a": object()}), ("m" * 300, {}), ("m", {"k" * 300: 1}), ("m", {"a": 2**63}), ("m", {"a": Decimal(2**40)})],
)
def test_headers_that_amqp_cannot_carry_fail_in_the_callers_thread(message_id: str, headers: dict[str, object]) -> None:
    with pytest.raises(BrokerError, match="cannot carry"):
        properties(message_id, headers)


def test_headers_that_python_cannot_hold_are_none_and_cost_no_connection() -> None:
    too_deep = b"V"
    for _ in range(2000):
        too_deep = b"A" + struct.pack(">I", len(too_deep)) + too_deep
    headers = heard(
        {
            "javascript": b"T" + struct.pack(">Q", 1_764_400_000_000),
            "go": b"T" + struct.pack(">q", -62_135_596_800),
            "nan": b"d" + struct.pack(">d", float("nan")),
            "infinity": b"f" + struct.pack(">f", float("inf")),
            "huge": b"d" + struct.pack(">d", 1e30),
            "in a list": b"A" + struct.pack(">IcQ", 9, b"T", 2**64 - 1),
            "deep": too_deep,
            "x-attempt": b"I" + struct.pack(">i", 2),
        }
    )
    properties("m", headers)
    assert isinstance(headers.pop("deep"), list)
    assert headers == {
        "javascript": None,
        "go": None,
        "nan": None,
        "infinity": None,
        "huge": None,
        "in a list": [None],
        "x-attempt": 2,
    }


def heard(raw: dict[str, bytes]) -> dict[str, object]:
    """The headers of a content header frame in which each value stands as its own bytes."""
    table = b"".join(bytes([len(name)]) + name.encode() + value for name, value in raw.items())
    flags = struct.pack(">H", pika.BasicProperties.FLAG_HEADERS)
    payload = struct.pack(">HHQ", 60, 0, 2) + flags + struct.pack(">I", len(table)) + table
    _, frame = pika.frame.decode_frame(struct.pack(">BHI", 2, 1, len(payload)) + payload + b"\xce")
    headers: dict[str, object] = frame.properties.headers
    return headers


def test_reason_is_the_innermost_cause() -> None:
    refused = ConnectionRefusedError(111, "Connection refused")
    wrapped = pika.exceptions.AMQPConnectionError(
        AMQPConnectionWorkflowFailed([AMQPConnectorSocketConnectError(refused)])
    )
    assert reason(wrapped) == "[Errno 111] Connection refused"
    assert reason(pika.exceptions.ConnectionClosedByBroker(320, "CONNECTION_FORCED")) == "CONNECTION_FORCED (320)"
    assert reason(pika.exceptions.StreamLostError("Transport indicated EOF")) == "Transport indicated EOF"
    assert reason(ValueError()) == "ValueError"
