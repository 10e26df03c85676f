"""One HTTP/1.1 connection, as thin as a step needs it: bytes out in one system call, bytes in, nothing parsed twice.

``http.client`` spends 0.5 ms of processor time on a call, most of it on headers that nobody reads; this takes 0.1 ms
(docs/throughput.md). A message may be written by one thread and its answer read by another: see ``clients/gate.py``.
"""

import select
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import SplitResult

_HEAD_LIMIT_BYTES = 65536
_PORTS = {"http": 80, "https": 443}
_KEPT_ALIVE = {socket.TCP_KEEPIDLE: 15, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}
"""Seconds, seconds and probes: half a minute until a machine that vanished without a word is given up."""

Part = bytes | memoryview
"""Bytes to send; a view is one of single bytes."""


class BrokenAnswer(ValueError):
    """What came is not the HTTP that this module reads."""


@dataclass(frozen=True, slots=True)
class Response:
    """``headers`` in lower case; ``content`` belongs to whoever gets it and may be written to."""

    status: int
    headers: Mapping[bytes, bytes]
    content: memoryview


class Connection:
    """A socket that is open to ``address``; one exchange at a time.

    Every method raises TimeoutError when it is later than ``end`` (of ``time.monotonic``), ConnectionError when the
    other end went away and OSError for what else befalls a socket; a TimeoutError with an errno is the kernel's, which
    gave up on the other end.
    """

    def __init__(self, address: SplitResult, timeout_s: float, trusted: ssl.SSLContext | None) -> None:
        host, port = address.hostname or "", address.port or _PORTS[address.scheme]
        plain = socket.create_connection((host, port), timeout_s)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEPT_ALIVE.items():
            plain.setsockopt(socket.IPPROTO_TCP, option, value)
        self._socket = plain if trusted is None else trusted.wrap_socket(plain, server_hostname=host)
        if trusted is None:
            # With a timeout every call becomes three to the system: one that sets it, one that polls, and the call.
            plain.setblocking(False)
        self._readable = select.poll()
        self._readable.register(self._socket, select.POLLIN)
        self._received = bytearray(_HEAD_LIMIT_BYTES)
        self.reusable = True

    def send(self, end: float, parts: Sequence[Part]) -> None:
        """Write ``parts``, one after the other."""
        left_s = _left(end)
        if isinstance(self._socket, ssl.SSLSocket):
            self._socket.settimeout(left_s)
            self._socket.sendall(b"".join(parts))
            return
        try:
            sent = self._socket.sendmsg(parts)
        except BlockingIOError:
            sent = 0
        for part in parts:
            if sent < len(part):
                self._send_all(memoryview(part)[sent:], end)
            sent = max(0, sent - len(part))

    def wait(self, end: float, timeout_s: float) -> bool:
        """Whether something can be read, after at most ``timeout_s``; the end of the connection counts."""
        if isinstance(self._socket, ssl.SSLSocket) and self._socket.pending():
            return True
        return bool(self._readable.poll(1000 * min(timeout_s, _left(end))))

    def receive(self, end: float) -> Response:
        """The answer, read to its end."""
        buffer, filled, head_end = self._received, 0, -1
        while head_end < 0:
            if filled == len(buffer):
                raise BrokenAnswer(f"headers longer than {_HEAD_LIMIT_BYTES} bytes")
            filled += self._read(memoryview(buffer)[filled:], end)
            head_end = buffer.find(b"\r\n\r\n", 0, filled)
        status, headers = _parsed(bytes(buffer[:head_end]))
        self.reusable = headers.get(b"connection", b"").lower() != b"close"
        come = bytes(buffer[head_end + 4 : filled])
        if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
            return Response(status, headers, self._chunks(come, end))
        if b"content-length" not in headers:
            raise BrokenAnswer("an answer without a length")
        return Response(status, headers, self._rest(come, int(headers[b"content-length"]), end))

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _rest(self, come: bytes, length: int, end: float) -> memoryview:
        """``length`` bytes of which ``come`` were read already."""
        if len(come) > length:
            raise BrokenAnswer(f"{len(come)} bytes came where {length} were announced")
        content = memoryview(bytearray(length))
        content[: len(come)] = come
        filled = len(come)
        while filled < length:
            filled += self._read(content[filled:], end)
        return content

    def _chunks(self, come: bytes, end: float) -> memoryview:
        """What a proxy cut into chunks, put together. Triton itself never does."""
        content, pending = bytearray(), bytearray(come)
        while True:
            line = self._line(pending, end)
            size = int(line.partition(b";")[0], 16)
            while len(pending) < size + 2:
                self._more(pending, end)
            content += pending[:size]
            del pending[: size + 2]
            if size == 0:
                return memoryview(content)

    def _line(self, pending: bytearray, end: float) -> bytes:
        while (cut := pending.find(b"\r\n")) < 0:
            self._more(pending, end)
        line = bytes(pending[:cut])
        del pending[: cut + 2]
        return line

    def _more(self, pending: bytearray, end: float) -> None:
        got = self._read(memoryview(self._received), end)
        pending += self._received[:got]

    def _send_all(self, data: memoryview, end: float) -> None:
        writable = select.poll()
        writable.register(self._socket, select.POLLOUT)
        while data:
            writable.poll(1000 * _left(end))
            with suppress(BlockingIOError):
                data = data[self._socket.send(data) :]

    def _read(self, into: memoryview, end: float) -> int:
        left_s = _left(end)
        if isinstance(self._socket, ssl.SSLSocket):
            self._socket.settimeout(left_s)
        while True:
            try:
                got = self._socket.recv_into(into)
                break
            except BlockingIOError:
                self._readable.poll(1000 * _left(end))
        if got == 0:
            raise ConnectionResetError("the connection was closed by the other end")
        return got


def _parsed(head: bytes) -> tuple[int, dict[bytes, bytes]]:
    first, *lines = head.split(b"\r\n")
    version, _, rest = first.partition(b" ")
    if version != b"HTTP/1.1":
        raise BrokenAnswer(f"an answer that begins with {first[:40]!r}")
    headers = {}
    for line in lines:
        name, _, value = line.partition(b":")
        headers[name.lower()] = value.strip()
    return int(rest[:3]), headers


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
