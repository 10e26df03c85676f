"""One HTTP call with one deadline, on ``http.client``: no proxy, redirect, cookie or netrc is ever used.

A connection is made for every call. Those who call this poll once a second or send whole pictures, and a connection of
its own cannot be found closed by the other end.
"""

import http.client
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote, urlsplit

from orchestrator.clients.deadline import call_deadline
from orchestrator.errors import DeadlineExceeded, ModelUnavailable

CONNECT_TIMEOUT_S = 5.0
_IN_PATHS = "%/:@!$&'()*+,;=~[]"
_IN_QUERIES = _IN_PATHS + "?"


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """An answer of any status; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def exchange(
    method: str, url: str, *, headers: Mapping[str, str], body: bytes = b"", deadline_s: float, limit_bytes: int
) -> HttpAnswer:
    """The answer; :class:`DeadlineExceeded` where it was not whole in time, :class:`ModelUnavailable` where there was
    none or one larger than ``limit_bytes``. Whether the other end acted on the call is not known in either case.
    """
    address = urlsplit(url)
    shown = f"{method} {address.scheme}://{address.netloc}{address.path}"
    if deadline_s <= 0:
        raise DeadlineExceeded(f"{shown} was not made: no time was left")
    with call_deadline(deadline_s) as call:
        connection = _connection(address.scheme, address.netloc, min(deadline_s, CONNECT_TIMEOUT_S))
        try:
            connection.connect()
            connection.sock.settimeout(deadline_s)
            call.watch(connection.sock)
            # What is percent-encoded already stays; the rest of UTF-8 has no place in a request's first line.
            target = quote(address.path or "/", safe=_IN_PATHS)
            target += f"?{quote(address.query, safe=_IN_QUERIES)}" if address.query else ""
            connection.request(method, target, body=body, headers={"Accept-Encoding": "identity", **headers})
            with connection.getresponse() as answer:
                found = answer.read(limit_bytes + 1)
                whole = HttpAnswer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, found)
        except (OSError, http.client.HTTPException) as error:
            if call.expired or isinstance(error, TimeoutError):
                raise DeadlineExceeded(f"{shown} took over {deadline_s:.3g} s") from None
            raise ModelUnavailable(f"{shown} was not answered: {type(error).__name__}") from None
        finally:
            call.watch(None)
            connection.close()
    if call.expired:  # a body without a length looks whole when it is cut
        raise DeadlineExceeded(f"{shown} took over {deadline_s:.3g} s")
    if len(found) > limit_bytes:
        raise ModelUnavailable(f"{shown} was answered with more than {limit_bytes} bytes, the most that is read")
    length = whole.headers.get("content-length", "")
    if length and method != "HEAD" and length != str(len(found)):
        raise ModelUnavailable(f"{shown} was answered with {len(found)} of {length} bytes")
    return whole


def _connection(scheme: str, netloc: str, timeout_s: float) -> http.client.HTTPConnection:
    if scheme == "https":
        return http.client.HTTPSConnection(netloc, timeout=timeout_s, context=_tls())
    return http.client.HTTPConnection(netloc, timeout=timeout_s)


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()
