"""``https://`` Tritons: a private authority is trusted where ``TRITON_CA_FILE`` names it, and nowhere else."""

import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fakes.tls import private_authority

from orchestrator.app import build_models
from orchestrator.clients.kserve import InferenceServer
from orchestrator.config import from_environ


class Ready(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()
        self.close_connection = True  # without a word of it in the answer, as a proxy whose patience ends

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a server whose every model is ready, and its authority."""
    authority, certificate = private_authority(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    made = ThreadingHTTPServer(("127.0.0.1", 0), Ready)
    made.handle_error = lambda *_: None  # type: ignore[method-assign]
    made.socket = context.wrap_socket(made.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
    yield f"https://localhost:{made.server_port}", authority
    made.shutdown()
    made.server_close()


def test_triton_behind_an_authority_of_ones_own_is_trusted_by_its_file(server: tuple[str, Path]) -> None:
    models = build_models(from_environ({"TRITON_URL": server[0], "TRITON_CA_FILE": str(server[1])}), ["unet"])
    assert models.ready() == ()
    models.close()


def test_triton_of_an_unknown_authority_is_refused(server: tuple[str, Path]) -> None:
    assert build_models(from_environ({"TRITON_URL": server[0]}), ["unet"]).ready() == ("triton",)


def test_a_connection_that_a_proxy_closed_since_its_last_use_is_replaced_without_an_error(
    server: tuple[str, Path],
) -> None:
    client = InferenceServer(server[0], deadline_s=10, ca_file=server[1])
    for _ in range(2):
        assert client.ask("POST", "/v2/models/unet/infer", "a style's vector" * 250_000) == {}
        time.sleep(0.2)
    client.close()
