"""An end to HTTP calls that trickle: the only module that imports urllib3.

A read timeout starts anew with every byte, so a server that sends one byte a second holds a caller for hours. Here a
timer shuts the call's socket when the whole answer takes too long.
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, Timer, local

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse, HTTPResponse

_here = local()


class Call:
    """One call of one thread; ``expired`` says whether it was cut off."""

    def __init__(self) -> None:
        self.expired = False
        self._socket: socket.socket | None = None
        self._lock = Lock()

    def watch(self, connected: socket.socket | None) -> None:
        """Names the socket that carries the call."""
        with self._lock:
            self._socket = connected
            if self.expired:
                self._shut()

    def expire(self) -> None:
        """Cuts the call off, now or as soon as its socket is known."""
        with self._lock:
            self.expired = True
            self._shut()

    def _shut(self) -> None:
        if self._socket is not None:
            try:
                # Past TLS on purpose: SSLSocket.shutdown would pull the session from under the reading thread.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
            except OSError:
                return  # closed in the meantime


@contextmanager
def call_deadline(total_s: float) -> Iterator[Call]:
    """Cuts the calling thread's HTTP call off after ``total_s`` seconds; the reader then sees a broken connection."""
    call = Call()
    timer = Timer(total_s, call.expire)
    timer.daemon = True
    _here.call = call
    timer.start()
    try:
        yield call
    finally:
        timer.cancel()
        call.watch(None)
        _here.call = None


def first_bytes(response: BaseHTTPResponse, limit_bytes: int) -> bytes:
    """Up to ``limit_bytes`` of a urllib3 response's body as it came, not decompressed; what a broken one still gave."""
    try:
        return response.read(limit_bytes, decode_content=False)
    except (HTTPError, OSError):
        return b""


def _announce(connected: socket.socket | None) -> None:
    call: Call | None = getattr(_here, "call", None)
    if call is not None:
        call.watch(connected)


class _PlainConnection(HTTPConnection):
    def getresponse(self) -> HTTPResponse:  # type: ignore[override]
        _announce(self.sock)
        return super().getresponse()


class _TlsConnection(HTTPSConnection):
    def getresponse(self) -> HTTPResponse:  # type: ignore[override]
        _announce(self.sock)
        return super().getresponse()


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _PlainConnection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


POOLS = {"http": _PlainPool, "https": _TlsPool}
