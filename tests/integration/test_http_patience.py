"""How long the HTTP server waits for a request: not for ever, and as long as it takes to answer one."""

import http.client
import socket
import time
from collections.abc import Iterator

import pytest

from orchestrator import api
from orchestrator.api import HttpServer, build_app

HEAD_S = 0.3
SLOW_S = 0.8


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    monkeypatch.setattr(api, "HEAD_TIMEOUT_S", HEAD_S)

    def slowly() -> dict[str, str]:
        time.sleep(SLOW_S)
        return {}

    server = HttpServer(build_app(slowly, lambda: b""), "127.0.0.1", 0)
    server.start()
    host, _, port = server.url.removeprefix("http://").partition(":")
    yield host, int(port)
    server.stop()


def hung_up(link: socket.socket, drip: bytes, within_s: float = 5.0) -> bool:
    """Whether the server ends the connection while ``drip`` is sent again and again."""
    link.settimeout(0.05)
    until_s = time.monotonic() + within_s
    while time.monotonic() < until_s:
        try:
            if drip:
                link.sendall(drip)
            if not link.recv(65536):
                return True
        except TimeoutError:
            continue
        except ConnectionError:
            return True
    return False


@pytest.mark.parametrize(
    ("begun", "drip"),
    [
        (b"", b""),
        (b"GET /healthz HTTP/1.1\r\n", b"X-A: b\r\n"),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", b"G"),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n", b"b"),
    ],
    ids=["nothing", "headers without end", "the next request", "a body nobody reads"],
)
def test_who_sends_half_a_request_is_hung_up_on(address: tuple[str, int], begun: bytes, drip: bytes) -> None:
    with socket.create_connection(address) as link:
        link.sendall(begun)
        assert hung_up(link, drip)


def test_an_answer_may_take_longer_than_a_head_and_the_connection_serves_on(address: tuple[str, int]) -> None:
    kept = http.client.HTTPConnection(*address, timeout=5)
    kept.connect()
    link = kept.sock
    for _ in range(2):
        kept.request("GET", "/readyz")
        with kept.getresponse() as answer:
            assert answer.status == 200
            answer.read()
    assert kept.sock is link
    kept.close()
