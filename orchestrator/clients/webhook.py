"""Tells the backend how a job goes: the only module that imports requests.

One call of :meth:`WebhookSender.send` is one try. Order, repetition and durability are the caller's;
the error's ``retryable`` says whether there is a next one, :mod:`~orchestrator.clients.webhook_retry` when.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter

from orchestrator.clients.deadline import POOLS, call_deadline, first_bytes
from orchestrator.clients.origins import origin_of
from orchestrator.clients.webhook_retry import parse_retry_after
from orchestrator.clients.webhook_signature import Signer
from orchestrator.config import WebhookSettings
from orchestrator.errors import ConfigError, InvalidInput, WebhookRefused, WebhookUndelivered

Kind = Literal["progress", "complete", "failed"]

CALLS: Mapping[Kind, tuple[str, str]] = {
    "progress": ("PATCH", "/api/webhooks/inference/progress"),
    "complete": ("POST", "/api/webhooks/inference/complete"),
    "failed": ("POST", "/api/webhooks/inference/failed"),
}
_WORTH_REPEATING = frozenset({408, 409, 425, 429})
_EXCERPT_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long one try may take: to connect, between two bytes of the answer, and from beginning to end."""

    connect_s: float = 5.0
    read_s: float = 15.0
    total_s: float = 30.0


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    retry_after: str | None
    excerpt: str


class WebhookSender:
    """Calls the backend; threads share it and its connections. No proxy, cookie, netrc or redirect is ever used."""

    def __init__(
        self,
        settings: WebhookSettings,
        *,
        patience: Patience | None = None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._patience = patience or Patience()
        self._now_s = now_s
        self._verify = True if settings.ca_file is None else str(settings.ca_file)
        self._backend = None if settings.backend_url is None else _base("BACKEND_URL", settings.backend_url)
        self._origins = frozenset(_base("WEBHOOK_ALLOWED_ORIGINS", origin) for origin in settings.allowed_origins)
        self._signer = None if settings.signing_secret is None else Signer.parse(settings.signing_secret)
        self._token = _checked_token(settings.api_token, needed=self._backend is not None or bool(self._origins))
        self._adapter = HTTPAdapter(pool_connections=8, pool_maxsize=32, max_retries=0)
        self._adapter.poolmanager.pool_classes_by_scheme = POOLS

    def close(self) -> None:
        """Closes the idle connections."""
        self._adapter.close()

    def base_url(self, webhook_url: str | None) -> str:
        """Where a job's calls go: ``BACKEND_URL``, else the origin of the message's ``webhook_url`` if it is listed.

        Raises :class:`WebhookRefused`: the token is never sent to a host that only a message chose.
        """
        if self._backend is not None:
            return self._backend
        if webhook_url is None:
            raise WebhookRefused("there is nobody to tell; neither BACKEND_URL nor the message's webhook_url is set")
        try:
            origin = origin_of(webhook_url)
        except InvalidInput as error:
            raise WebhookRefused(f"webhook_url: {error}") from None
        if origin not in self._origins:
            raise WebhookRefused(f"webhook_url is on {origin}, which WEBHOOK_ALLOWED_ORIGINS does not list")
        return origin

    def send(
        self,
        kind: Kind,
        body: Mapping[str, object],
        *,
        webhook_id: str,
        webhook_url: str | None = None,
        traceparent: str | None = None,
    ) -> None:
        """Makes one try; returns once the backend accepted the event.

        Raises :class:`WebhookUndelivered` where another try may succeed and :class:`WebhookRefused` where none will.
        """
        method, path = CALLS[kind]
        url = self.base_url(webhook_url) + path
        data = encode_body(body)
        headers = self._headers(webhook_id, data) | ({} if traceparent is None else {"traceparent": traceparent})
        request = requests.Request(method, url, headers=headers, data=data).prepare()
        answer = self._exchange(request)
        if not 200 <= answer.status < 300:
            raise self._verdict(f"{method} {url}", answer)

    def _headers(self, webhook_id: str, data: bytes) -> dict[str, str]:
        headers = {
            "Authorization": f"Bearer {self._token}",
            "X-Request-Source": "inference-server",
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": "remarque",
        }
        return headers | ({} if self._signer is None else self._signer.headers(webhook_id, data, now_s=self._now_s()))

    def _exchange(self, request: requests.PreparedRequest) -> _Answer:
        patience = self._patience
        with call_deadline(patience.total_s) as call:
            try:
                response = self._adapter.send(
                    request, stream=True, timeout=(patience.connect_s, patience.read_s), verify=self._verify
                )
                try:
                    body = first_bytes(response.raw, _EXCERPT_BYTES)
                finally:
                    response.close()
            except OSError as error:  # the library's own are, and one says so of an authority's file that is gone
                # Not chained: the library's exception carries the request, and with it the token.
                what = f"took over {patience.total_s:g} s" if call.expired else _reason(error)
                raise WebhookUndelivered(f"{request.method} {request.url} was not answered: {what}") from None
        return _Answer(response.status_code, response.headers.get("Retry-After"), self._excerpt(body))

    def _excerpt(self, body: bytes) -> str:
        """The beginning of an answer for a log; a backend that echoes the token does not get it into ours."""
        text = body.decode(errors="replace").replace(self._token or "\0", "[token]")
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:200]

    def _verdict(self, call: str, answer: _Answer) -> WebhookUndelivered:
        said = f"{call} was answered {answer.status}" + (f": {answer.excerpt}" if answer.excerpt else "")
        if answer.status >= 500 or answer.status in _WORTH_REPEATING:
            wait_s = parse_retry_after(answer.retry_after, now_s=self._now_s())
            return WebhookUndelivered(said, status=answer.status, retry_after_s=wait_s)
        if answer.status < 400:
            said = f"{call} was answered {answer.status}, a redirect; the token goes to the configured address only"
        return WebhookRefused(said, status=answer.status)


def encode_body(body: Mapping[str, object]) -> bytes:
    """The body as it is sent: the same bytes for equal bodies, whatever the order of their keys."""
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise WebhookRefused(f"the event cannot be written as JSON: {error}") from None


def webhook_id(generation_id: int, kind: Kind, *, progress_percent: int | None = None, life: int = 0) -> str:
    """The identity of an event, the same on every try of every process, by which a receiver drops repeats.

    ``life`` counts an operator's replays of a job that had failed, whose outcome is news again.
    """
    parts = ["gen", str(generation_id), kind]
    parts += [] if progress_percent is None else [str(progress_percent)]
    parts += [f"life{life}"] if life else []
    return "_".join(parts)


def _base(variable: str, url: str) -> str:
    """A configured URL in canonical spelling: its origin and its path; origins have no path."""
    try:
        origin = origin_of(url)
    except InvalidInput as error:
        raise ConfigError(f"{variable}: {error}") from None
    parts = urlsplit(url)
    path = parts.path.rstrip("/")
    if parts.query or parts.fragment or (path and variable != "BACKEND_URL"):
        raise ConfigError(f"{variable} is {url[:200]!r}; expected is an origin such as https://api.example.com")
    return origin + path


def _checked_token(token: str | None, *, needed: bool) -> str | None:
    if token is None and needed:
        raise ConfigError("INTERNAL_API_TOKEN is not set; webhooks carry it, so it goes with BACKEND_URL")
    if token is not None and not (token.isascii() and token.isprintable() and " " not in token and token):
        raise ConfigError(
            "INTERNAL_API_TOKEN (its value is not shown) is wrong; expected is printable ASCII, no spaces"
        )
    return token


def _reason(error: OSError) -> str:
    if isinstance(error, requests.ConnectTimeout):
        return "no connection in time"
    if isinstance(error, requests.Timeout):
        return "nothing came in time"
    if isinstance(error, requests.exceptions.SSLError):
        return "its TLS certificate or handshake was not accepted"
    if not isinstance(error, requests.RequestException):
        return "WEBHOOK_CA_FILE cannot be read"
    return f"the connection failed ({type(error).__name__})"
