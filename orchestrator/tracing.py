"""Spans out of events, for OpenTelemetry: the only module that knows its libraries, and nothing else knows this one.

The attempt's span has the ids that :mod:`~orchestrator.trace` derived, because the backend was told them before the
span was recorded; so spans are written whole, when they end, and no context is carried through the code. Spans of an
attempt whose process dies are lost with it, the next attempt's are in the same trace.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from orchestrator import __version__
from orchestrator.clients.gate import Batch
from orchestrator.job import Event, Failed, HandedBack, Retried, Staged, Started, Stepped, Succeeded
from orchestrator.trace import Trace, trace_of

FLUSH_MS = 3000
_SCOPE = InstrumentationScope("remarque", __version__)
Attributes = Mapping[str, str | int | float | bool]


@dataclass(slots=True)
class _Open:
    """An attempt that runs here."""

    trace: Trace
    began_s: float
    attributes: dict[str, str | int | float | bool]
    steps: int = 0


class Tracing:
    """Hears every event and sends spans; threads may share it. A collector that is away costs spans, never a job."""

    def __init__(self, processor: SpanProcessor) -> None:
        self._processor = processor
        self._ids = RandomIdGenerator()
        self._resource = Resource.create({"service.name": "remarque", "service.version": __version__})
        self._open: dict[int, _Open] = {}

    @classmethod
    def to_collector(cls, url: str) -> "Tracing":
        """Sends to the OTLP/HTTP collector at ``url``, in batches from a thread of its own."""
        return cls(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{url}/v1/traces", timeout=5)))

    def __call__(self, event: Event) -> None:
        """Open, extend or end the attempt's span."""
        if isinstance(event, Started):
            self._begin(event)
            return
        attempt = self._open.get(event.generation_id)
        if attempt is None:
            return
        match event:
            case Stepped():
                attempt.steps += 1
            case Staged():
                steps = {"remarque.steps": attempt.steps} if event.stage == "denoise" else {}
                self._span(attempt.trace, event.stage, event.began_s, event.seconds, steps)
            case Succeeded():
                self._end(event.generation_id, Status(StatusCode.OK), {"remarque.outcome": "complete"})
            case Failed() | Retried():
                outcome = "failed" if isinstance(event, Failed) else "retried"
                told = {"remarque.outcome": outcome, "remarque.error_code": event.error_code}
                self._end(event.generation_id, Status(StatusCode.ERROR, event.error_code), told)
            case HandedBack():
                self._end(event.generation_id, Status(StatusCode.UNSET), {"remarque.outcome": "handed back"})

    def webhook(self, traceparent: str | None, kind: str, answer: str, seconds: float) -> None:
        """The span of one call of the backend, wherever its job ran."""
        if traceparent is None:
            return
        at = trace_of(traceparent, job="", attempt="")
        if at.parent_id is not None:
            under = Trace(at.trace_id, at.parent_id, sampled=at.sampled)
            told = {"remarque.kind": kind, "remarque.answer": answer}
            ok = answer == "accepted"
            self._span(under, "webhook", time.time() - seconds, seconds, told, kind=SpanKind.CLIENT, ok=ok)

    def batch(self, batch: Batch) -> None:
        """The span of one batch of steps. It serves many jobs, so it lies in none of their traces and links to each."""
        trace = Trace(f"{self._ids.generate_trace_id():032x}", f"{self._ids.generate_span_id():016x}")
        told: Attributes = {
            "remarque.model": batch.model,
            "remarque.rows": batch.rows,
            "remarque.members": batch.members,
        }
        links = [Link(_context(each, int(each.span_id, 16))) for each in batch.traces]
        self._whole(trace, "batch", time.time() - batch.seconds, told, SpanKind.CLIENT, links=links)

    def close(self) -> None:
        """Send what is left, for a few seconds.

        In a thread that is left behind: the library (1.45) takes a limit and waits for every batch all the same, 20 s
        for 2000 spans where the collector hangs.
        """
        ending = threading.Thread(target=self._finish, name="traces", daemon=True)
        ending.start()
        ending.join(FLUSH_MS / 1000)

    def _finish(self) -> None:
        self._processor.force_flush(FLUSH_MS)
        self._processor.shutdown()

    def _begin(self, event: Started) -> None:
        if event.trace is None:
            return
        attributes: dict[str, str | int | float | bool] = {
            "remarque.generation_id": event.generation_id,
            "remarque.attempt": event.attempt,
        }
        now_s = time.time()
        if event.waited_s is not None:
            self._span(
                event.trace, "queue", now_s - event.waited_s, event.waited_s, {"remarque.since": event.waited_from}
            )
        self._open[event.generation_id] = _Open(event.trace, now_s, attributes)

    def _end(self, generation_id: int, status: Status, attributes: Attributes) -> None:
        attempt = self._open.pop(generation_id)
        told = {**attempt.attributes, **attributes, "remarque.steps": attempt.steps}
        self._whole(attempt.trace, "generation", attempt.began_s, told, SpanKind.CONSUMER, status)

    def _whole(
        self,
        trace: Trace,
        name: str,
        began_s: float,
        attributes: Attributes,
        kind: SpanKind,
        status: Status | None = None,
        *,
        links: Sequence[Link] = (),
    ) -> None:
        """A span whose own id is the trace's, ended now."""
        parent = None if trace.parent_id is None else _context(trace, int(trace.parent_id, 16), remote=True)
        self._send(
            ReadableSpan(
                name=name,
                context=_context(trace, int(trace.span_id, 16)),
                parent=parent,
                resource=self._resource,
                attributes=dict(attributes),
                links=links,
                kind=kind,
                instrumentation_scope=_SCOPE,
                status=status or Status(StatusCode.UNSET),
                start_time=_ns(began_s),
                end_time=_ns(time.time()),
            )
        )

    def _span(
        self,
        under: Trace,
        name: str,
        began_s: float,
        seconds: float,
        attributes: Attributes,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        ok: bool = True,
    ) -> None:
        self._send(
            ReadableSpan(
                name=name,
                context=_context(under, self._ids.generate_span_id()),
                parent=_context(under, int(under.span_id, 16)),
                resource=self._resource,
                attributes=dict(attributes),
                kind=kind,
                instrumentation_scope=_SCOPE,
                status=Status(StatusCode.UNSET) if ok else Status(StatusCode.ERROR),
                start_time=_ns(began_s),
                end_time=_ns(began_s + seconds),
            )
        )

    def _send(self, span: ReadableSpan) -> None:
        self._processor.on_end(span)


def _context(trace: Trace, span_id: int, *, remote: bool = False) -> SpanContext:
    flags = TraceFlags(TraceFlags.SAMPLED if trace.sampled else TraceFlags.DEFAULT)
    return SpanContext(int(trace.trace_id, 16), span_id, is_remote=remote, trace_flags=flags)


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
