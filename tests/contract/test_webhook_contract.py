"""Webhooks as the backend sees them, over real HTTP: CONTRACTS of docs/webhooks.md, and a backend that misbehaves."""

import hmac
import socket
import ssl
import time
import traceback
from base64 import b64decode, b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from orchestrator.clients.webhook import Kind, Patience, WebhookSender, webhook_id
from orchestrator.config import WebhookSettings
from orchestrator.errors import WebhookRefused, WebhookUndelivered
from tests.fakes import backend as answers
from tests.fakes.backend import Answer, Backend

TOKEN = "s3cr3t-token"
KEY = b"0123456789abcdef01234567"
COMPLETE = {"generation_id": 456, "result_url": "gs://b/generations/gen-456.png", "metadata": {"seed": 0}}
NOW_S = 1_795_000_000.0


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend(token=TOKEN) as backend:
        yield backend


@pytest.fixture
def sender(backend: Backend) -> Iterator[WebhookSender]:
    made = make_sender(backend.url)
    yield made
    made.close()


def make_sender(
    url: str | None, *, origins: tuple[str, ...] = (), signed: bool = False, patience: Patience | None = None
) -> WebhookSender:
    secret = "whsec_" + b64encode(KEY).decode() if signed else None
    settings = WebhookSettings(backend_url=url, allowed_origins=origins, api_token=TOKEN, signing_secret=secret)
    return WebhookSender(settings, patience=patience, now_s=lambda: NOW_S)


def complete(sender: WebhookSender, webhook_url: str | None = None) -> None:
    sender.send("complete", COMPLETE, webhook_id=webhook_id(456, "complete"), webhook_url=webhook_url)


def failure(sender: WebhookSender) -> WebhookUndelivered:
    with pytest.raises(WebhookUndelivered) as caught:
        complete(sender)
    assert TOKEN not in repr(caught.value)
    assert TOKEN not in "".join(traceback.format_exception(caught.value))
    return caught.value


@pytest.mark.parametrize(
    ("kind", "method", "path"),
    [
        ("progress", "PATCH", "/api/webhooks/inference/progress"),
        ("complete", "POST", "/api/webhooks/inference/complete"),
        ("failed", "POST", "/api/webhooks/inference/failed"),
    ],
)
def test_each_event_has_its_method_and_path(
    backend: Backend, sender: WebhookSender, kind: Kind, method: str, path: str
) -> None:
    sender.send(kind, {"generation_id": 1}, webhook_id="x")
    assert [(call.method, call.path) for call in backend.ledger] == [(method, path)]


def test_the_call_carries_token_source_and_json(backend: Backend, sender: WebhookSender) -> None:
    complete(sender)
    (call,) = backend.ledger
    assert call.headers["authorization"] == f"Bearer {TOKEN}"
    assert call.headers["x-request-source"] == "inference-server"
    assert call.headers["content-type"] == "application/json"
    assert call.body == COMPLETE
    assert "webhook-id" not in call.headers


def test_every_try_has_the_same_bytes_and_the_same_identity(backend: Backend) -> None:
    sender = make_sender(backend.url, signed=True)
    backend.script("complete", answers.status(500), answers.status(503))
    for _ in range(2):
        failure(sender)
    complete(sender)
    sender.close()
    assert len({(call.data, call.webhook_id) for call in backend.ledger}) == 1
    assert backend.outcomes(456) == ["complete"]


def test_the_signature_is_over_the_bytes_that_arrived(backend: Backend) -> None:
    sender = make_sender(backend.url, signed=True)
    complete(sender)
    sender.close()
    (call,) = backend.ledger
    assert call.headers["webhook-id"] == "gen_456_complete"
    assert call.headers["webhook-timestamp"] == "1795000000"
    version, _, signature = call.headers["webhook-signature"].partition(",")
    signed = b"gen_456_complete.1795000000." + call.data
    assert version == "v1"
    assert b64decode(signature) == hmac.digest(KEY, signed, sha256)


def test_a_listed_origin_of_the_message_is_called_by_the_contracts_paths(backend: Backend) -> None:
    sender = make_sender(None, origins=(backend.url,))
    complete(sender, f"{backend.url}/api/webhooks/generation/456/status")
    sender.close()
    assert [call.path for call in backend.ledger] == ["/api/webhooks/inference/complete"]


def test_an_origin_that_is_not_listed_is_not_even_connected_to(backend: Backend) -> None:
    sender = make_sender(None, origins=("https://api.example.com",))
    with pytest.raises(WebhookRefused):
        complete(sender, f"{backend.url}/x")
    assert backend.ledger == []


@pytest.mark.parametrize("code", [200, 201, 202, 204])
def test_every_2xx_is_accepted(backend: Backend, sender: WebhookSender, code: int) -> None:
    backend.script("complete", answers.status(code))
    complete(sender)
    assert len(backend.ledger) == 1


@pytest.mark.parametrize("code", [408, 409, 425, 429, 500, 502, 503, 504, 599])
def test_what_may_get_better_is_undelivered_and_retryable(backend: Backend, sender: WebhookSender, code: int) -> None:
    backend.script("complete", answers.status(code))
    error = failure(sender)
    assert (error.retryable, error.status, error.retry_after_s) == (True, code, None)


@pytest.mark.parametrize("code", [400, 401, 403, 404, 405, 410, 413, 422, 451])
def test_what_will_not_get_better_is_refused(backend: Backend, sender: WebhookSender, code: int) -> None:
    backend.script("complete", answers.status(code, body=b'{"error": "no\n such\x1b[31m job"}'))
    error = failure(sender)
    assert (type(error), error.retryable, error.status) == (WebhookRefused, False, code)
    assert str(error).endswith(f'was answered {code}: {{"error": "no such [31m job"}}')


def test_a_wrong_token_is_refused_and_not_shown(backend: Backend, sender: WebhookSender) -> None:
    backend.token = "another"
    assert failure(sender).status == 401


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_is_refused_and_the_token_goes_nowhere(backend: Backend, sender: WebhookSender, code: int) -> None:
    with Backend(token=TOKEN) as elsewhere:
        backend.script("complete", Answer(status=code, headers={"Location": elsewhere.url}, processed=False))
        error = failure(sender)
        assert (error.retryable, error.status) == (False, code)
        assert "redirect" in str(error)
        assert elsewhere.ledger == []


@pytest.mark.parametrize(("value", "seconds"), [("7", 7.0), ("Wed, 18 Nov 2026 11:07:40 GMT", 60.0), ("soon", None)])
def test_retry_after_comes_with_the_error(
    backend: Backend, sender: WebhookSender, value: str, seconds: float | None
) -> None:
    backend.script("complete", answers.status(429, retry_after=value), answers.status(503, retry_after=value))
    assert failure(sender).retry_after_s == seconds
    assert failure(sender).retry_after_s == seconds


def test_a_backend_that_is_down_is_retryable_and_works_once_it_is_back(backend: Backend, sender: WebhookSender) -> None:
    complete(sender)
    backend.stop()
    error = failure(sender)
    assert (error.retryable, error.status) == (True, None)
    backend.start()
    complete(sender)
    assert backend.outcomes(456) == ["complete"]


def test_done_and_then_500_is_repeated_and_counts_once(backend: Backend, sender: WebhookSender) -> None:
    backend.script("complete", answers.DONE_THEN_500, answers.DONE_THEN_CUT)
    failure(sender)
    failure(sender)
    complete(sender)
    assert len(backend.ledger) == 3
    assert backend.outcomes(456) == ["complete"]


def test_a_connection_that_is_cut_is_retryable(backend: Backend, sender: WebhookSender) -> None:
    backend.script("complete", answers.DOWN)
    assert "connection failed" in str(failure(sender))


def test_a_backend_that_says_nothing_is_given_up_after_the_read_timeout(backend: Backend) -> None:
    sender = make_sender(backend.url, patience=Patience(read_s=0.4))
    backend.script("complete", answers.slow(30))
    begun_s = time.monotonic()
    assert "nothing came in time" in str(failure(sender))
    sender.close()
    assert time.monotonic() - begun_s < 5


def test_a_backend_that_trickles_is_cut_off_at_the_deadline(backend: Backend) -> None:
    sender = make_sender(backend.url, patience=Patience(total_s=0.6))
    backend.script("complete", answers.trickle(0.1))  # never silent for the read timeout of 15 s
    begun_s = time.monotonic()
    assert "took over 0.6 s" in str(failure(sender))
    sender.close()
    assert 0.5 < time.monotonic() - begun_s < 5


def test_the_status_counts_even_where_the_rest_of_the_answer_never_comes(backend: Backend) -> None:
    sender = make_sender(backend.url, patience=Patience(read_s=0.3))
    backend.script("complete", Answer(status=502, stall_s=30, body=b"x"), Answer(status=200, stall_s=30, body=b"x"))
    assert failure(sender).status == 502
    complete(sender)
    sender.close()


def test_a_host_that_drops_packets_is_given_up_after_the_connect_timeout() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for client in waiting:  # fills the queue of connections, so that the next one is not answered
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        sender = make_sender(f"http://127.0.0.1:{full.getsockname()[1]}", patience=Patience(connect_s=0.5))
        begun_s = time.monotonic()
        assert "no connection in time" in str(failure(sender))
        assert time.monotonic() - begun_s < 5
        for client in waiting:
            client.close()


def test_a_huge_answer_is_not_read(backend: Backend, sender: WebhookSender) -> None:
    backend.script("complete", answers.huge(50_000_000, 400), answers.huge(50_000_000))
    begun_s = time.monotonic()
    assert len(str(failure(sender))) < 400
    complete(sender)
    assert time.monotonic() - begun_s < 10


def test_a_backend_that_echoes_the_token_does_not_get_it_into_our_messages(
    backend: Backend, sender: WebhookSender
) -> None:
    backend.script("complete", answers.status(403, body=f"bad header: Bearer {TOKEN}".encode()))
    assert str(failure(sender)).endswith("bad header: Bearer [token]")


def test_no_cookie_is_kept(backend: Backend, sender: WebhookSender) -> None:
    backend.script("complete", Answer(headers={"Set-Cookie": "a=b; Path=/"}))
    complete(sender)
    complete(sender)
    assert "cookie" not in backend.ledger[1].headers


def test_neither_proxies_nor_netrc_of_the_environment_are_used(
    backend: Backend, sender: WebhookSender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    complete(sender)
    assert backend.ledger[0].authorized


def test_calls_after_one_another_share_a_connection(backend: Backend, sender: WebhookSender) -> None:
    backend.script("complete", answers.status(500, body=b"sorry"))
    failure(sender)
    complete(sender)
    complete(sender)
    assert len({call.port for call in backend.ledger}) == 1


def test_sixteen_threads_share_a_sender(backend: Backend, sender: WebhookSender) -> None:
    with ThreadPoolExecutor(16) as pool:
        for number in range(64):
            pool.submit(sender.send, "failed", {"generation_id": number}, webhook_id=webhook_id(number, "failed"))
    assert sorted(call.body["generation_id"] for call in backend.ledger) == list(range(64))


class _Ok(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Nothing to say."""


def certify(folder: Path) -> Path:
    """A self-signed certificate for localhost and its key, in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path = folder / "localhost.pem"
    path.write_bytes(private + certificate.public_bytes(Encoding.PEM))
    return path


@pytest.fixture
def tls_backend(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    certificate = certify(tmp_path)
    server = HTTPServer(("127.0.0.1", 0), _Ok)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"https://localhost:{server.server_port}", certificate
    server.shutdown()
    server.server_close()


def test_a_certificate_nobody_vouches_for_is_not_accepted(tls_backend: tuple[str, Path]) -> None:
    sender = make_sender(tls_backend[0])
    assert "TLS" in str(failure(sender))
    sender.close()


def test_a_call_carries_the_jobs_trace(backend: Backend) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    sender = make_sender(backend.url)
    sender.send("complete", COMPLETE, webhook_id=webhook_id(456, "complete"), traceparent=trace)
    sender.close()
    assert backend.ledger[0].headers["traceparent"] == trace


def test_a_private_authority_can_be_named(tls_backend: tuple[str, Path]) -> None:
    settings = WebhookSettings(backend_url=tls_backend[0], allowed_origins=(), api_token=TOKEN, signing_secret=None)
    sender = WebhookSender(replace(settings, ca_file=tls_backend[1]))
    complete(sender)
    sender.close()


def test_the_verification_that_the_documentation_shows_accepts_ours_and_nothing_else(backend: Backend) -> None:
    page = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text()
    shown: dict[str, Any] = {}
    exec(page.partition("```python\n")[2].partition("```")[0], shown)
    secret = "whsec_" + b64encode(KEY).decode()
    sender = make_sender(backend.url, signed=True)
    complete(sender)
    sender.close()
    (call,) = backend.ledger
    long_ago_s = 10 * 365 * 86400
    shown["verify"](secret, call.headers, call.data, tolerance_s=long_ago_s)
    for headers, body, tolerance_s in (
        (call.headers, call.data + b" ", long_ago_s),
        (call.headers | {"webhook-id": "gen_457_complete"}, call.data, long_ago_s),
        (call.headers | {"webhook-timestamp": "1795000001"}, call.data, long_ago_s),
        (call.headers, call.data, -1),
    ):
        with pytest.raises(ValueError, match=r"signature|timestamp"):
            shown["verify"](secret, headers, body, tolerance_s=tolerance_s)


def test_an_authority_s_file_that_is_gone_costs_a_try_and_no_event(tls_backend: tuple[str, Path]) -> None:
    settings = WebhookSettings(backend_url=tls_backend[0], allowed_origins=(), api_token=TOKEN, signing_secret=None)
    sender = WebhookSender(replace(settings, ca_file=tls_backend[1]))
    tls_backend[1].unlink()  # a secret that is mounted anew
    error = failure(sender)
    assert error.retryable
    assert "WEBHOOK_CA_FILE cannot be read" in str(error)
    sender.close()
