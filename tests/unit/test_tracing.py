"""Stages are timed where somebody listens, and become spans of one trace from the publisher to the webhook."""

import threading
import time

import pytest
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from orchestrator import tracing as tracing_module
from orchestrator.clients.gate import Batch
from orchestrator.job import Event, Failed, HandedBack, Retried, Staged, Started, Stepped, Succeeded
from orchestrator.stages import Stage, listening, stage
from orchestrator.trace import trace_of
from orchestrator.tracing import Tracing

PUBLISHED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE = trace_of(PUBLISHED, job="7", attempt="1")
STARTED = Started(generation_id=7, attempt=1, waited_s=2.0, waited_from="published", trace=TRACE)


class Kept(SpanProcessor):
    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


@pytest.fixture
def kept() -> Kept:
    return Kept()


def spans(kept: Kept, *events: Event) -> dict[str, ReadableSpan]:
    tracing = Tracing(kept)
    for event in events:
        tracing(event)
    return {span.name: span for span in kept.spans}


def test_a_stage_is_told_to_its_threads_listener_alone() -> None:
    heard: list[tuple[Stage, float]] = []

    def elsewhere() -> None:
        with stage("store"):
            pass

    with listening(lambda name, began_s, seconds: heard.append((name, seconds))):
        with stage("text"):
            pass
        other = threading.Thread(target=elsewhere)
        other.start()
        other.join()
    with stage("decode"):
        pass
    assert [name for name, _ in heard] == ["text"]
    assert heard[0][1] >= 0


def test_a_stage_that_breaks_is_told_too() -> None:
    heard: list[Stage] = []
    with listening(lambda name, *_: heard.append(name)), pytest.raises(ValueError), stage("store"):
        raise ValueError
    assert heard == ["store"]


def test_an_attempt_is_a_span_below_the_publishers_with_its_parts_inside(kept: Kept) -> None:
    found = spans(
        kept,
        STARTED,
        Stepped(generation_id=7, seconds=0.1),
        Stepped(generation_id=7, seconds=0.1),
        Staged(generation_id=7, stage="denoise", began_s=1000.0, seconds=0.2),
        Staged(generation_id=7, stage="store", began_s=1001.0, seconds=0.5),
        Succeeded(generation_id=7, result_url="gs://b/a.png"),
    )
    assert set(found) == {"queue", "denoise", "store", "generation"}
    whole = found["generation"]
    assert whole.parent is not None
    assert f"{whole.parent.span_id:016x}" == "b7ad6b7169203331"
    assert f"{whole.context.span_id:016x}" == TRACE.span_id
    assert whole.attributes is not None
    assert (whole.attributes["remarque.outcome"], whole.attributes["remarque.steps"]) == ("complete", 2)
    for name in ("queue", "denoise", "store"):
        assert found[name].parent is not None
        assert found[name].parent.span_id == whole.context.span_id
        assert found[name].context.trace_id == whole.context.trace_id
    store = found["store"]
    assert store.start_time is not None
    assert store.end_time is not None
    assert (store.start_time, store.end_time - store.start_time) == (1001 * 10**9, 5 * 10**8)


@pytest.mark.parametrize(
    ("end", "outcome"),
    [
        (Failed(generation_id=7, error_message="no", error_code="GPU_OOM", retry_count=1), "failed"),
        (Retried(generation_id=7, attempt=1, error_code="GPU_OOM", error_message="no", delay_s=5), "retried"),
        (HandedBack(generation_id=7), "handed back"),
    ],
)
def test_every_end_of_an_attempt_ends_its_span(end: Event, outcome: str, kept: Kept) -> None:
    whole = spans(kept, STARTED, end)["generation"]
    assert whole.attributes is not None
    assert whole.attributes["remarque.outcome"] == outcome
    assert spans(kept, end).keys() == spans(kept).keys()


def test_the_call_of_the_backend_lies_below_its_attempt_wherever_it_is_made(kept: Kept) -> None:
    tracing = Tracing(kept)
    tracing.webhook(TRACE.traceparent, "complete", "undelivered", 0.25)
    tracing.webhook(None, "complete", "accepted", 0.1)
    (call,) = kept.spans
    assert call.parent is not None
    assert f"{call.parent.span_id:016x}" == TRACE.span_id
    assert not call.status.is_ok


def test_a_batch_of_steps_is_a_span_of_its_own_with_its_rows_and_members(kept: Kept) -> None:
    Tracing(kept).batch(Batch("unet", rows=6, members=3, seconds=0.25))
    (batch,) = kept.spans
    assert batch.attributes == {"remarque.model": "unet", "remarque.rows": 6, "remarque.members": 3}
    assert (batch.name, batch.parent) == ("batch", None)


def test_a_batch_links_to_the_attempts_whose_rows_it_held(kept: Kept) -> None:
    other = trace_of(None, job="8", attempt="1")
    Tracing(kept).batch(Batch("unet", rows=4, members=2, seconds=0.25, traces=(TRACE, other)))
    (batch,) = kept.spans
    linked = {(f"{link.context.trace_id:032x}", f"{link.context.span_id:016x}") for link in batch.links}
    assert linked == {(TRACE.trace_id, TRACE.span_id), (other.trace_id, other.span_id)}
    assert f"{batch.context.trace_id:032x}" not in {TRACE.trace_id, other.trace_id}


def test_a_prompt_is_in_no_span(kept: Kept) -> None:
    failed = Failed(generation_id=7, error_message="prompt text", error_code="INVALID_INPUT", retry_count=0)
    spans(kept, STARTED, failed)
    assert all("prompt text" not in span.to_json() for span in kept.spans)


def test_a_collector_that_hangs_delays_the_end_of_the_process_by_no_more_than_was_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released = threading.Event()

    class Hanging(Kept):
        def force_flush(self, timeout_millis: int = 30000) -> bool:
            return released.wait(10)  # as the library does, whatever it is asked for

    monkeypatch.setattr(tracing_module, "FLUSH_MS", 50)
    begun_s = time.monotonic()
    Tracing(Hanging()).close()
    assert time.monotonic() - begun_s < 5
    released.set()
