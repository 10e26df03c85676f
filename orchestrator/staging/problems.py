"""Errors as callers of the HTTP service see them: status, code and sentence of ``application/problem+json``."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from orchestrator.errors import Interrupted, RateLimited, Refused, RemarqueError

ProblemCode = Literal[
    "invalid_input", "not_found", "timeout", "oom", "provider_transient", "rate_limited", "content_rejected"
]
CONTENT_TYPE: Final = "application/problem+json"
RETRY_AFTER_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One refusal. ``code`` is one of the seven that clients know, ``title`` tells those of one code apart."""

    status: int
    code: ProblemCode
    title: str
    detail: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, object]:
        """The body."""
        return {
            "type": f"urn:remarque:problem:{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
        }


# By the code of an error: status, code and title. What is not listed is a fault of ours.
_KNOWN: Final[Mapping[str, tuple[int, ProblemCode, str]]] = {
    "INVALID_INPUT": (400, "invalid_input", "Invalid input"),
    "UNAUTHORIZED": (401, "invalid_input", "Not authorized"),
    "NOT_FOUND": (404, "not_found", "Not found"),
    "CONFLICT": (409, "invalid_input", "Used with other parameters"),
    "CANCELLED": (409, "invalid_input", "Cancelled"),
    "CONTENT_REJECTED": (422, "content_rejected", "Content rejected"),
    "RATE_LIMITED": (429, "rate_limited", "Too many requests"),
    "OVERLOADED": (503, "rate_limited", "Too much work"),
    "GPU_OOM": (503, "oom", "Out of memory"),
    "MODEL_UNAVAILABLE": (503, "provider_transient", "Provider unavailable"),
    "STORAGE_ERROR": (503, "provider_transient", "Store unavailable"),
    "TIMEOUT": (504, "timeout", "Not done in time"),
}
_SENTENCES: Final[Mapping[str, str]] = {
    "GPU_OOM": "the picture did not fit into the accelerator's memory; send the request again later",
    "MODEL_UNAVAILABLE": "no provider can stage it now; send the request again later",
    "STORAGE_ERROR": "the object store did not answer; send the request again later",
    "TIMEOUT": "it was not done within the request's deadline; send the request again",
}
_SENTENCE: Final = "the staging broke; send the request again later"
_FAULT: Final[tuple[int, ProblemCode, str]] = (503, "provider_transient", "Staging failed")


def problem_of(error: RemarqueError) -> Problem:
    """The refusal that an error becomes. What broke on our side is named, not described: a store's or a provider's
    sentence may hold an address of our network, and the log has it.
    """
    asked_s = error.retry_after_s if isinstance(error, RateLimited) else None
    own_words = isinstance(error, Refused | RateLimited | Interrupted)
    return problem(error.code, str(error) if own_words else _SENTENCES.get(error.code, _SENTENCE), asked_s)


def problem(error_code: str, detail: str, retry_after_s: float | None = None) -> Problem:
    """The refusal for a code of :mod:`orchestrator.errors`; what may go better later says when."""
    status, code, title = _KNOWN.get(error_code, _FAULT)
    headers = {}
    if status in (429, 503):
        headers["Retry-After"] = str(math.ceil(RETRY_AFTER_S if retry_after_s is None else max(1.0, retry_after_s)))
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="remarque"'
    return Problem(status=status, code=code, title=title, detail=detail, headers=headers)
