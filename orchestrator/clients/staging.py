"""The worker's side of the staging service: patient, repeating what is safe, sparing a service in need."""

import json
import time
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from orchestrator.clients.exchange import HttpAnswer, exchange
from orchestrator.clients.webhook_retry import parse_retry_after
from orchestrator.errors import (
    Conflict,
    ContentRejected,
    DeadlineExceeded,
    InvalidInput,
    ModelUnavailable,
    NotFound,
    OutOfMemory,
    RateLimited,
    RemarqueError,
    Unauthorized,
)
from orchestrator.staging.breaker import Breaker, BreakerSettings
from orchestrator.staging.retry import RetryBudget, delay_s

ANSWER_LIMIT_BYTES = 1 << 20
# A try that has less time than this left is not begun.
LEAST_S = 0.5
# What the server adds to the wait it is asked for, on the way there and back.
MARGIN_S = 1.0
_ERRORS: Mapping[str, type[RemarqueError]] = {
    "invalid_input": InvalidInput,
    "not_found": NotFound,
    "content_rejected": ContentRejected,
    "timeout": DeadlineExceeded,
    "oom": OutOfMemory,
    "provider_transient": ModelUnavailable,
    "rate_limited": RateLimited,
}


class StagingClient:
    """Calls one service; threads share it. A repeat carries the same ``image_id`` and is therefore safe."""

    def __init__(
        self,
        url: str,
        *,
        token: str,
        attempts: int = 4,
        breaker: BreakerSettings | None = None,
        rng: Random | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._url = url.rstrip("/")
        self._token = token
        self._attempts = attempts
        self._breaker = Breaker(breaker or BreakerSettings(), time.monotonic)
        self._budget = RetryBudget()
        self._rng = rng or Random()
        self._sleep = sleep

    def infer(self, request: Mapping[str, object], *, deadline_s: float) -> dict[str, Any]:
        """The answer to a request, as ``POST /infer`` gives it, within ``deadline_s`` and a few tries.

        Raises:
            Refused: InvalidInput, NotFound, Conflict, ContentRejected or Unauthorized; repeating will not help.
            DeadlineExceeded: the time is up.
            RemarqueError: what the last try met, ModelUnavailable where the breaker kept it from being made.
        """
        body = json.dumps(dict(request), ensure_ascii=False, allow_nan=False).encode()
        until_s = time.monotonic() + deadline_s
        self._budget.earn()
        for attempt in range(1, self._attempts + 1):
            try:
                return self._tried(body, until_s - time.monotonic())
            except RemarqueError as error:
                asked_s = error.retry_after_s if isinstance(error, RateLimited) else None
                wait_s = delay_s(attempt, asked_s, self._rng)
                in_time = wait_s + LEAST_S < until_s - time.monotonic()
                if not error.retryable or attempt == self._attempts or not in_time or not self._budget.spend():
                    raise
            self._sleep(wait_s)
        raise AssertionError("the last attempt returns or raises")

    def _tried(self, body: bytes, left_s: float) -> dict[str, Any]:
        number = self._breaker.admit()
        if number is None:
            raise ModelUnavailable(
                f"the staging service keeps failing; it is left alone for {self._breaker.wait_s():.0f} s"
            )
        try:
            answer = self._answer(body, left_s)
            found = _read(answer)
        except RemarqueError as error:
            # A refusal is an answer: the service works. A full queue is not the moment to send it more.
            self._breaker.report(number, succeeded=not error.retryable)
            raise
        self._breaker.report(number, succeeded=True)
        return found

    def _answer(self, body: bytes, left_s: float) -> HttpAnswer:
        return exchange(
            "POST",
            f"{self._url}/infer",
            headers={
                "Authorization": f"Bearer {self._token}",
                "Content-Type": "application/json",
                "Accept": "application/json, application/problem+json",
                "Prefer": f"wait={max(1, round(left_s - MARGIN_S))}",
            },
            body=body,
            deadline_s=left_s,
            limit_bytes=ANSWER_LIMIT_BYTES,
        )


def _read(answer: HttpAnswer) -> dict[str, Any]:
    try:
        document = json.loads(answer.body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise ModelUnavailable(f"the staging service answered {answer.status} with what is no JSON object")
    if answer.status == 200:
        return document
    raise _error(answer, document)


def _error(answer: HttpAnswer, document: Mapping[str, Any]) -> RemarqueError:
    said = f"{answer.status}: {str(document.get('detail') or document)[:300]}"
    if answer.status == 401:
        return Unauthorized(said)
    if answer.status == 409:
        return Conflict(said)
    kind = _ERRORS.get(str(document.get("code")), ModelUnavailable)
    if issubclass(kind, RateLimited):
        asked_s = parse_retry_after(answer.headers.get("retry-after"), now_s=time.time())
        return RateLimited(said, retry_after_s=asked_s)
    return kind(said)
