"""The predictions protocol against servers that answer nonsense, too much, or from elsewhere."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from orchestrator.clients.exchange import exchange
from orchestrator.clients.predictions import Predictions, PredictionService
from orchestrator.errors import DeadlineExceeded, ModelUnavailable, ProviderRefused, RateLimited, RemarqueError


class Answering(BaseHTTPRequestHandler):
    """Sends its server's answer to whatever is asked, and remembers what was."""

    server: "Saying"

    def do_GET(self) -> None:
        self.server.asked.append((self.command, self.path, dict(self.headers)))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.bodies.append(body)
        status, answer, headers = self.server.answer
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Quiet."""


class Saying(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.answer: tuple[int, bytes, dict[str, str]] = (200, b"{}", {})
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.bodies: list[bytes] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def server() -> Iterator[Saying]:
    saying = Saying()
    threading.Thread(target=saying.serve_forever, args=(0.02,), daemon=True).start()
    yield saying
    saying.shutdown()
    saying.server_close()


def client(server: Saying, model: str = "owner/name:v1") -> Predictions:
    return Predictions(PredictionService(url=server.url, token="secret", model=model))


@pytest.mark.parametrize(
    ("model", "path", "version"),
    [
        ("owner/name:v1", "/predictions", "v1"),
        ("abc123", "/predictions", "abc123"),
        ("owner/name", "/models/owner/name/predictions", None),
    ],
)
def test_a_model_is_named_by_version_or_by_its_page(server: Saying, model: str, path: str, version: str | None):
    server.answer = (201, b'{"id": "p", "status": "starting"}', {})
    client(server, model).create({"seed": 1}, key="k", deadline_s=5)
    assert server.asked[0][:2] == ("POST", path)
    assert server.asked[0][2]["Idempotency-Key"] == "k"
    assert json.loads(server.bodies[0]).get("version") == version


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((200, b"<html>", {}), ModelUnavailable),
        ((200, b"[]", {}), ModelUnavailable),
        ((200, b'{"id": "../../admin", "status": "starting"}', {}), ModelUnavailable),
        ((200, b'{"id": "p", "status": "dreaming"}', {}), ModelUnavailable),
        ((200, b"[" * 100_000, {}), ModelUnavailable),
        ((200, b" " * (9 << 20), {}), ModelUnavailable),
        ((200, b"{}", {"Content-Length": "500"}), ModelUnavailable),
        ((200, b"{}", {"Content-Length": "two"}), ModelUnavailable),
        ((302, b"", {"Location": "http://169.254.169.254/"}), ProviderRefused),
        ((402, b"{}", {}), ProviderRefused),
        ((429, b"{}", {"Retry-After": "7"}), RateLimited),
        ((500, b"{}", {}), ModelUnavailable),
    ],
)
def test_nonsense_is_an_error_of_ours(server: Saying, answer: tuple, error: type[RemarqueError]):
    server.answer = answer
    with pytest.raises(error) as raised:
        client(server).get("p", deadline_s=5)
    assert raised.type is error
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("asked", "least_s", "most_s"),
    [("7", 7.0, 7.0), ("Fri, 31 Dec 2100 23:59:59 GMT", 1e9, 1e10), ("9" * 400, 1e11, 1e12)],
)
def test_when_to_come_back_is_read_as_seconds_or_as_a_date(server: Saying, asked: str, least_s: float, most_s: float):
    server.answer = (429, b"{}", {"Retry-After": asked})
    with pytest.raises(RateLimited) as raised:
        client(server).get("p", deadline_s=5)
    assert raised.value.retry_after_s is not None
    assert least_s <= raised.value.retry_after_s <= most_s


def test_an_output_elsewhere_is_not_fetched_and_the_token_goes_to_no_output(server: Saying):
    server.answer = (200, b"png", {})
    assert client(server).fetch(server.url + "/out.png", deadline_s=5) == b"png"
    assert "Authorization" not in server.asked[0][2]
    for url in (
        "http://169.254.169.254/latest",
        "http://127.0.0.1:1/x.png",
        "file:///etc/passwd",
        "https://user@elsewhere/x",
    ):
        with pytest.raises(ProviderRefused):
            client(server).fetch(url, deadline_s=5)
    assert len(server.asked) == 1


def test_an_output_s_address_may_hold_what_is_no_ascii(server: Saying):
    server.answer = (200, b"png", {})
    assert client(server).fetch(server.url + "/방%20[1].png?sig=a%2Fb/c=&name=방", deadline_s=5) == b"png"
    assert server.asked[0][1] == "/%EB%B0%A9%20[1].png?sig=a%2Fb/c=&name=%EB%B0%A9"


def test_an_uploaded_file_arrives_whole_and_its_address_comes_back(server: Saying):
    server.answer = (201, b'{"urls": {"get": "http://files/1"}}', {})
    assert client(server).upload("image.png", b"\x89PNG\r\n--x", "image/png", deadline_s=5) == "http://files/1"
    assert b"\x89PNG\r\n--x" in server.bodies[0]
    server.answer = (201, b"{}", {})
    with pytest.raises(ModelUnavailable):
        client(server).upload("image.png", b"x", "image/png", deadline_s=5)


def test_no_time_is_no_call_and_nobody_there_is_unavailable(server: Saying):
    with pytest.raises(DeadlineExceeded):
        exchange("GET", server.url, headers={}, deadline_s=0, limit_bytes=10)
    with pytest.raises(ModelUnavailable):
        exchange("GET", "http://127.0.0.1:9/", headers={}, deadline_s=5, limit_bytes=10)
    assert server.asked == []
