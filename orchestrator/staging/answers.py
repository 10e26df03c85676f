"""Calls and answers of the HTTP service, without the framework that carries them."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from orchestrator.staging.accounts import Account
from orchestrator.staging.job import Snapshot
from orchestrator.staging.ledger import Manifest
from orchestrator.staging.problems import CONTENT_TYPE, Problem

Method = Literal["GET", "POST", "PUT", "DELETE"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request that was let in; header names are in lower case, ``parameters`` come from the path."""

    headers: Mapping[str, str]
    parameters: Mapping[str, str]
    body: bytes
    account: Account | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A finished answer; ``document`` becomes JSON, None is an empty body."""

    status: int
    document: Mapping[str, Any] | None
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"

    def plus(self, headers: Mapping[str, str]) -> "Answer":
        """The same with more headers."""
        return replace(self, headers={**headers, **self.headers})


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """An answer that waits for a staging: ``then`` once it ended, ``late`` where ``timeout_s`` pass before."""

    done: Future[Manifest]
    timeout_s: float
    then: Callable[[Future[Manifest]], Answer]
    late: Callable[[], Answer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Following:
    """A stream of server-sent events: one per snapshot until a final one, or one that has no document."""

    after: Callable[[int], Future[Snapshot]]
    document: Callable[[Snapshot], Mapping[str, Any] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Looking:
    """A stream of server-sent events of what others work on: ``look`` reads its status document again and again, until
    that is final or None.
    """

    look: Callable[[], Mapping[str, Any] | None]


Outcome = Answer | Pending | Following | Looking


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One route. ``authorize`` sees the headers before any of the body is read; ``limit_bytes`` 0 means no body."""

    method: Method
    path: str
    authorize: Callable[[Mapping[str, str]], Account | None]
    handle: Callable[[Call], Outcome]
    limit_bytes: int = 0


def refusal(problem: Problem) -> Answer:
    """The answer that a problem is."""
    return Answer(
        status=problem.status, document=problem.document(), headers=problem.headers, content_type=CONTENT_TYPE
    )
