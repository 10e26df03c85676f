"""The worker's HTTP routes: /healthz, /readyz and /metrics. No logic lives here."""

import json
import threading
from collections.abc import Callable, Mapping

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.errors import ServiceError

START_TIMEOUT_S = 10.0
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def build_app(not_ready: Callable[[], Mapping[str, str]], metrics: Callable[[], bytes]) -> Starlette:
    """The routes. ``not_ready`` names each part that does not work and why; an empty mapping is ready."""

    def healthz(_: Request) -> Response:
        return Response('{"alive": true}', media_type="application/json")

    def readyz(_: Request) -> Response:
        missing = not_ready()
        body = json.dumps({"ready": not missing, "not_ready": dict(missing)}, ensure_ascii=False)
        return Response(body, status_code=503 if missing else 200, media_type="application/json")

    def metrics_page(_: Request) -> Response:
        return Response(metrics(), headers={"content-type": METRICS_TYPE})

    return Starlette(
        routes=[Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics_page)],
    )


class HttpServer:
    """Serves an app from a thread of its own until :meth:`stop`; port 0 takes a free one."""

    def __init__(self, app: Starlette, host: str, port: int) -> None:
        self._server = uvicorn.Server(uvicorn.Config(app, host=host, port=port, log_config=None, access_log=False))
        self._address = f"{host}:{port}"
        self._thread = threading.Thread(target=self._serve, name="http", daemon=True)
        self._failed = threading.Event()

    @property
    def url(self) -> str:
        """Where it answers, once started."""
        host, port = self._server.servers[0].sockets[0].getsockname()[:2]
        return f"http://{host}:{port}"

    def start(self) -> None:
        """Begin to serve; ServiceError where the address cannot be had."""
        self._thread.start()
        waited = threading.Event()
        for _ in range(int(START_TIMEOUT_S / 0.02)):
            if self._server.started:
                return
            if not self._thread.is_alive():
                break
            waited.wait(0.02)
        raise ServiceError(f"HTTP_ADDRESS is {self._address}, which cannot be listened on; choose a free port")

    def stop(self) -> None:
        """Finish the requests under way and close."""
        self._server.should_exit = True
        self._thread.join(timeout=5.0)

    def _serve(self) -> None:
        try:
            self._server.run()
        except SystemExit:  # uvicorn exits the process' way when it cannot bind; here a thread ends
            self._failed.set()
