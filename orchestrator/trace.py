"""The W3C trace that a job belongs to (https://www.w3.org/TR/trace-context), without a tracing library.

It is read from the message's ``traceparent`` header and handed on to the backend whether or not anybody records spans
here. A job without one gets a trace of its own, the same on every attempt, so that attempts are seen side by side.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

HEADER = "traceparent"
_WRITTEN = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True, slots=True)
class Trace:
    """One attempt's place: ids in hexadecimal, ``parent_id`` the publisher's span where it told one."""

    trace_id: str
    span_id: str
    parent_id: str | None = None
    sampled: bool = True

    @property
    def traceparent(self) -> str:
        """The header for whoever is called next."""
        return f"00-{self.trace_id}-{self.span_id}-{int(self.sampled):02x}"


_HERE: ContextVar[Trace | None] = ContextVar("trace of the attempt that this thread works on", default=None)


@contextmanager
def working_on(trace: Trace) -> Iterator[None]:
    """What this thread does while this lasts is done for that attempt."""
    token = _HERE.set(trace)
    try:
        yield
    finally:
        _HERE.reset(token)


def trace_here() -> Trace | None:
    """The attempt that this thread works on, where it works on one."""
    return _HERE.get()


def trace_of(traceparent: object, *, job: str, attempt: str) -> Trace:
    """The trace that a header names, or one derived from ``job``; a header that is not well-formed counts as none."""
    written = _WRITTEN.fullmatch(traceparent) if isinstance(traceparent, str) else None
    if written is None or written[1] == "ff" or (written[5] and written[1] == "00") or not _told(written):
        return Trace(_derived(f"trace {job}", 32), _derived(f"span {job} {attempt}", 16))
    span_id = _derived(f"span {written[2]} {job} {attempt}", 16)
    return Trace(written[2], span_id, parent_id=written[3], sampled=bool(int(written[4], 16) & 1))


def _told(written: re.Match[str]) -> bool:
    """All zeros mean no id."""
    return bool(int(written[2], 16)) and bool(int(written[3], 16))


def _derived(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:digits]
