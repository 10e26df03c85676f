"""A small backend for the demo: accepts the webhooks and prints one line for each."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MAX_BODY_BYTES = 1 << 20


class Receiver:
    """Listens on 127.0.0.1 and hands every accepted webhook to ``heard`` as (last part of the path, body).

    Calls without the bearer token ``token`` are answered 401 and not handed on.
    """

    def __init__(self, token: str, heard: Callable[[str, dict[str, Any]], None]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def handle_call(self) -> None:
                size = int(self.headers.get("Content-Length", "0"))
                body = self.rfile.read(min(size, MAX_BODY_BYTES))
                accepted = self.headers.get("Authorization") == f"Bearer {token}"
                self.send_response(204 if accepted else 401)
                self.end_headers()
                if accepted:
                    heard(self.path.rpartition("/")[2], json.loads(body))

            do_POST = do_PATCH = handle_call  # noqa: N815  http.server's names

            def log_message(self, *args: object) -> None:
                """The demo prints what it hears; the request line adds nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="receiver", daemon=True)

    @property
    def url(self) -> str:
        """The backend's base URL."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Receiver":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
