"""A TCP link that can be broken while it is in use: it passes, delays, swallows or closes.

::

    with Proxy("127.0.0.1", 5672) as proxy:
        connect_to("127.0.0.1", proxy.port)
        proxy.mode = "blackhole"
"""

import contextlib
import socket
import threading
import time
from typing import Literal, Self

Mode = Literal["pass", "delay", "blackhole", "mute", "close"]
"""blackhole: bytes of both sides are taken and lost; mute: only the server's; close: connections end, new ones too."""


class Proxy:
    """Listens on a free port of loopback and passes connections on to a server.

    A connection that lost bytes never passes any again: its stream would be garbage. New ones follow the mode.
    """

    def __init__(self, host: str, port: int, delay_s: float = 0.1) -> None:
        self._server = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._mode: Mode = "pass"
        self.delay_s = delay_s
        self.port: int = self._listener.getsockname()[1]
        self.accepted = 0

    @property
    def mode(self) -> Mode:
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        self._mode = mode
        if mode == "close":
            self.close_connections()

    def close_connections(self) -> None:
        """End every connection now, in any mode; both sides see it."""
        with self._lock:
            for end in self._open:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.close_connections()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            try:
                server = socket.create_connection(self._server)
            except OSError:
                client.close()
                continue
            link = _Link(self, client, server)
            with self._lock:
                self._open |= {client, server}
            if self._mode == "close":
                self.close_connections()
            threading.Thread(target=link.pump, args=(client, server, False), name="proxy up", daemon=True).start()
            threading.Thread(target=link.pump, args=(server, client, True), name="proxy down", daemon=True).start()

    def forget(self, *ends: socket.socket) -> None:
        """Close what both directions are done with."""
        with self._lock:
            self._open -= set(ends)
        for end in ends:
            end.close()


class _Link:
    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._ends = (client, server)
        self._running = 2
        self._lock = threading.Lock()

    def pump(self, source: socket.socket, sink: socket.socket, from_server: bool) -> None:
        lossy = False
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                lossy |= self._proxy.mode == "blackhole" or (from_server and self._proxy.mode == "mute")
                if self._proxy.mode == "delay":
                    time.sleep(self._proxy.delay_s)
                if not lossy:
                    sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR if not lossy else socket.SHUT_RDWR)
        with self._lock:
            self._running -= 1
            last = self._running == 0
        if last:
            self._proxy.forget(*self._ends)
