"""The Replicate-style predictions protocol: create, look, cancel, upload a file, fetch an output.

Only addresses below the configured one are ever sent the token; outputs are fetched without it, and from listed
origins only, since an answer could name any host of our network.
"""

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote
from uuid import uuid4

from orchestrator.clients.exchange import HttpAnswer, exchange
from orchestrator.clients.origins import origin_of
from orchestrator.clients.webhook_retry import parse_retry_after
from orchestrator.errors import InvalidInput, ModelUnavailable, ProviderRefused, RateLimited

PredictionStatus = Literal["running", "succeeded", "failed", "canceled"]
DOCUMENT_LIMIT_BYTES = 8 << 20  # small outputs come inside the document, as data URLs
OUTPUT_LIMIT_BYTES = 64 << 20
CANCEL_DEADLINE_S = 5.0
_STATUSES: Mapping[str, PredictionStatus] = {
    "starting": "running",
    "queued": "running",
    "processing": "running",
    "succeeded": "succeeded",
    "failed": "failed",
    "canceled": "canceled",
    "aborted": "canceled",
}
_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionService:
    """Where predictions are made and with which model: ``owner/name``, ``owner/name:version`` or a bare version."""

    url: str
    token: str = field(repr=False)
    model: str
    output_origins: tuple[str, ...] = ()
    webhook_url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One run of the model; ``output_urls`` are of ``https:`` or ``data:``, ``predict_s`` is what is billed."""

    id: str
    status: PredictionStatus
    output_urls: tuple[str, ...] = ()
    error: str = ""
    predict_s: float = 0.0


class Predictions:
    """One provider; threads share it. What repeating may mend is ModelUnavailable, DeadlineExceeded or RateLimited."""

    def __init__(self, service: PredictionService) -> None:
        self._service = service
        self._origins = frozenset(origin_of(origin) for origin in (service.url, *service.output_origins))

    def create(self, inputs: Mapping[str, object], *, key: str, deadline_s: float) -> Prediction:
        """Begin a run. Providers that know ``Idempotency-Key`` answer a repeat with the run it began the first time."""
        model, _, version = self._service.model.partition(":")
        named = "/" in model and not version
        body: dict[str, object] = {"input": dict(inputs)} | ({} if named else {"version": version or model})
        if self._service.webhook_url is not None:
            body |= {"webhook": self._service.webhook_url, "webhook_events_filter": ["completed"]}
        path = f"/models/{quote(model)}/predictions" if named else "/predictions"
        headers = {"Content-Type": "application/json", "Idempotency-Key": key}
        return _prediction(self._call("POST", path, headers, json.dumps(body).encode(), deadline_s))

    def get(self, prediction_id: str, *, deadline_s: float) -> Prediction:
        """How a run stands."""
        return _prediction(self._call("GET", f"/predictions/{prediction_id}", {}, b"", deadline_s))

    def cancel(self, prediction_id: str) -> None:
        """Ask for a run to end; one that has ended is no error."""
        self._call("POST", f"/predictions/{prediction_id}/cancel", {}, b"", CANCEL_DEADLINE_S)

    def upload(self, name: str, data: bytes, content_type: str, *, deadline_s: float) -> str:
        """The address under which the model finds a file that is too large for a data URL."""
        mark = uuid4().hex
        head = f'--{mark}\r\nContent-Disposition: form-data; name="content"; filename="{name}"\r\n'
        body = f"{head}Content-Type: {content_type}\r\n\r\n".encode() + data + f"\r\n--{mark}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={mark}"}
        document = self._call("POST", "/files", headers, body, deadline_s)
        urls = document.get("urls")
        url = urls.get("get") if isinstance(urls, dict) else None
        if not isinstance(url, str):
            raise ModelUnavailable("the provider took a file and did not say where it lies")
        return url

    def fetch(self, url: str, *, deadline_s: float) -> bytes:
        """The bytes of an output; refuses addresses on origins that are not listed."""
        try:
            listed = origin_of(url) in self._origins
        except InvalidInput as error:
            raise ProviderRefused(f"the provider's output has an address that is not read: {error}") from None
        if not listed:
            raise ProviderRefused(
                f"the provider's output lies on {origin_of(url)}; MANAGED_OUTPUT_ORIGINS does not list it"
            )
        answer = exchange("GET", url, headers={}, deadline_s=deadline_s, limit_bytes=OUTPUT_LIMIT_BYTES)
        if answer.status != 200:
            _refuse("the provider's output", answer)
        return answer.body

    def _call(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, deadline_s: float
    ) -> Mapping[str, Any]:
        answer = exchange(
            method,
            self._service.url + path,
            headers={"Authorization": f"Bearer {self._service.token}", "Accept": "application/json", **headers},
            body=body,
            deadline_s=deadline_s,
            limit_bytes=DOCUMENT_LIMIT_BYTES,
        )
        if not 200 <= answer.status < 300:
            _refuse(f"{method} {path}", answer)
        try:
            document = json.loads(answer.body or b"{}")
        except (ValueError, RecursionError):
            raise ModelUnavailable(f"{method} {path} was answered with what is not JSON") from None
        if not isinstance(document, dict):
            raise ModelUnavailable(f"{method} {path} was answered with JSON that is no object")
        return document


def _refuse(what: str, answer: HttpAnswer) -> None:
    if answer.status == 429:
        wait_s = parse_retry_after(answer.headers.get("retry-after"), now_s=time.time())
        raise RateLimited(f"{what} was answered 429", retry_after_s=wait_s)
    if answer.status >= 500 or answer.status in (408, 409, 425):
        raise ModelUnavailable(f"{what} was answered {answer.status}")
    raise ProviderRefused(f"{what} was answered {answer.status}")


def _prediction(document: Mapping[str, Any]) -> Prediction:
    found, status = document.get("id"), _STATUSES.get(str(document.get("status")))
    if not isinstance(found, str) or not _ID.fullmatch(found) or status is None:
        raise ModelUnavailable("the provider answered with a prediction that has no id or a status nobody knows")
    output = document.get("output")
    urls = output if isinstance(output, list) else [output]
    metrics = document.get("metrics")
    predict_s = metrics.get("predict_time") if isinstance(metrics, dict) else None
    return Prediction(
        id=found,
        status=status,
        output_urls=tuple(url for url in urls if isinstance(url, str)),
        error=str(document.get("error") or "")[:300],
        predict_s=float(predict_s) if isinstance(predict_s, int | float) and predict_s > 0 else 0.0,
    )
