"""HTTP: health and metrics of every process, and whatever routes a service brings. No logic lives here.

The only module that imports ``starlette`` and ``uvicorn``.
"""

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from orchestrator.errors import RemarqueError, ServiceError
from orchestrator.staging.answers import Answer, Call, Endpoint, Following, Looking, Outcome, Pending, refusal
from orchestrator.staging.job import FINAL
from orchestrator.staging.problems import Problem, ProblemCode, problem, problem_of

START_TIMEOUT_S = 10.0
HEAD_TIMEOUT_S = 10.0
BODY_TIMEOUT_S = 10.0
# Proxies close streams that are silent for a minute.
HEARTBEAT_S = 15.0
# Between two looks at a record that another replica writes.
LOOK_EVERY_S = 2.0
STILL_HERE = ": still here\n\n"
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LOG = logging.getLogger(__name__)


def build_app(
    not_ready: Callable[[], Mapping[str, str]], metrics: Callable[[], bytes], endpoints: Sequence[Endpoint] = ()
) -> Starlette:
    """The routes. ``not_ready`` names each part that does not work and why; an empty mapping is ready."""

    async def healthz(_: Request) -> Response:
        # Needs no thread: a store that hangs may hold all of those, and the process is alive all the same.
        return Response('{"alive": true}', media_type="application/json")

    def readyz(_: Request) -> Response:
        missing = not_ready()
        body = json.dumps({"ready": not missing, "not_ready": dict(missing)}, ensure_ascii=False)
        return Response(body, status_code=503 if missing else 200, media_type="application/json")

    async def metrics_page(_: Request) -> Response:
        return Response(metrics(), headers={"content-type": METRICS_TYPE})

    app = Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", metrics_page),
            *(Route(path, _Resource(path, endpoints)) for path in dict.fromkeys(e.path for e in endpoints)),
        ],
        exception_handlers={HTTPException: _no_route},
    )
    app.router.redirect_slashes = False
    return app


class _Resource:
    """Everything that one path answers, as an ASGI application of its own."""

    def __init__(self, path: str, endpoints: Sequence[Endpoint]) -> None:
        self._methods = {one.method: one for one in endpoints if one.path == path}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        endpoint = next((one for name, one in self._methods.items() if name == request.method), None)
        if endpoint is None:
            refused = _refused(405, "Method not allowed", f"{request.method} is not served here")
            response = _sent(refused.plus({"Allow": ", ".join(self._methods)}))
        else:
            try:
                response = await _answered(endpoint, request)
            except ClientDisconnect:
                return
        await response(scope, receive, send)


async def _answered(endpoint: Endpoint, request: Request) -> Response:
    """The whole of one call; whatever happens, the caller gets a problem it can read."""
    try:
        account = endpoint.authorize(request.headers)
        body = await _body(request, endpoint.limit_bytes)
        if isinstance(body, Answer):
            return _sent(body.plus(_hanging_up(endpoint, request)))
        call = Call(headers=_joined(request), parameters=request.path_params, body=body, account=account)
        return await _settled(await run_in_threadpool(endpoint.handle, call))
    except RemarqueError as error:
        return _sent(refusal(problem_of(error)).plus(_hanging_up(endpoint, request)))
    except ClientDisconnect:
        raise
    except Exception:
        LOG.exception("%s %s broke", endpoint.method, endpoint.path)
        fault = problem("GENERATION_FAILED", "the service broke; its log says more")
        return _sent(refusal(Problem(status=500, code=fault.code, title="Fault of the service", detail=fault.detail)))


async def _body(request: Request, limit_bytes: int) -> bytes | Answer:
    """The body, or the refusal of one that is too large, too slow or no JSON; no more than the limit is ever held."""
    if not limit_bytes:
        return b""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        return _refused(415, "Not JSON", f"the body is {kind[:60]!r}; application/json is served")
    large = _refused(413, "Body too large", f"the body is over {limit_bytes} bytes, the most that is read")
    stated = request.headers.get("content-length", "0")
    if not stated.isdigit() or int(stated) > limit_bytes:
        return large
    held = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                held += chunk
                if len(held) > limit_bytes:
                    return large
    except TimeoutError:
        return _refused(408, "Body too slow", f"the body did not come within {BODY_TIMEOUT_S:.0f} s", "timeout")
    return bytes(held)


def _joined(request: Request) -> dict[str, str]:
    """The headers; what came in several lines is one list, as RFC 9110 has it."""
    return {name: ", ".join(request.headers.getlist(name)) for name in request.headers}


def _hanging_up(endpoint: Endpoint, request: Request) -> dict[str, str]:
    """Ends the connection where more of a body may follow than anybody wants to read."""
    stated = request.headers.get("content-length", "0")
    short = "transfer-encoding" not in request.headers and stated.isdigit() and int(stated) <= endpoint.limit_bytes
    return {} if short else {"Connection": "close"}


async def _settled(outcome: Outcome) -> Response:
    """The response, once what it waits for happened; no thread is held meanwhile."""
    if isinstance(outcome, Following | Looking):
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        events = _events(outcome) if isinstance(outcome, Following) else _looks(outcome)
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)
    if isinstance(outcome, Pending):
        outcome = outcome.then(outcome.done) if await _ended(outcome) else outcome.late()
    return _sent(outcome)


async def _ended(pending: Pending) -> bool:
    """Whether the staging ended in time. Who waits only listens: giving up must not end it for the others."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def notify(_: object) -> None:
        with suppress(RuntimeError):  # the server stopped in the meantime
            loop.call_soon_threadsafe(ended.set)

    pending.done.add_done_callback(notify)
    try:
        async with asyncio.timeout(pending.timeout_s):
            await ended.wait()
    except TimeoutError:
        return False
    return True


async def _events(following: Following) -> AsyncIterator[str]:
    version = -1
    while True:
        try:
            async with asyncio.timeout(HEARTBEAT_S):
                snapshot = await asyncio.wrap_future(following.after(version))
        except TimeoutError:
            yield STILL_HERE
            continue
        version = snapshot.version
        document = following.document(snapshot)
        if document is None:
            return
        yield _event(version, document, final=snapshot.final)
        if snapshot.final:
            return


async def _looks(looking: Looking) -> AsyncIterator[str]:
    """An event for each change of the record. Where it can be read no more the stream ends early: clients reconnect."""
    version, told = 0, None
    with suppress(RemarqueError):
        while (document := await run_in_threadpool(looking.look)) is not None:
            final = document["status"] in FINAL
            yield STILL_HERE if document == told else _event(version, document, final=final)
            if final:
                return
            version, told = version + (document != told), document
            await asyncio.sleep(LOOK_EVERY_S)


def _event(version: int, document: Mapping[str, object], *, final: bool) -> str:
    data = json.dumps(document, ensure_ascii=False)
    return f"event: {'end' if final else 'progress'}\nid: {version}\ndata: {data}\n\n"


def _no_route(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "it is registered for these alone"
    code: ProblemCode = "not_found" if error.status_code == 404 else "invalid_input"
    return _sent(
        _refused(error.status_code, "No such route", "nothing is served there", code).plus(error.headers or {})
    )


def _refused(status: int, title: str, detail: str, code: ProblemCode = "invalid_input") -> Answer:
    return refusal(Problem(status=status, code=code, title=title, detail=detail))


def _sent(answer: Answer) -> Response:
    body = b"" if answer.document is None else json.dumps(answer.document, ensure_ascii=False).encode()
    headers = {"Cache-Control": "no-store", **answer.headers}
    kind = None if answer.document is None else answer.content_type
    return Response(body, status_code=answer.status, headers=headers, media_type=kind)


class _Impatient(H11Protocol):
    """Hangs up on whoever sends half a request and no more: uvicorn waits for a head for ever, a byte at a time.

    Each such connection holds a descriptor, of which the broker, the store and Triton need some too.
    """

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_watching()

    def _watch(self) -> None:
        """The clock runs from the first byte, or none, to the end of the head; what comes after an answer is one more.

        Between requests uvicorn has a clock of its own, and bodies are timed where they are read.
        """
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering:
            self._stop_watching()
        elif self._late is None:
            self._late = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _stop_watching(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


class HttpServer:
    """Serves an app from a thread of its own until :meth:`stop`; port 0 takes a free one."""

    def __init__(self, app: Starlette, host: str, port: int) -> None:
        config = uvicorn.Config(app, host=host, port=port, http=_Impatient, log_config=None, access_log=False)
        self._server = uvicorn.Server(config)
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
