"""A job's trace: read from the publisher, handed to the backend, the same on every attempt."""

import pytest

from orchestrator.attempt import Attempt
from orchestrator.job import Job
from orchestrator.trace import trace_of

PUBLISHED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def attempt(number: int = 1, traceparent: str | None = None) -> Attempt:
    job = Job(generation_id=7, task_id="task", prompt="sea")
    return Attempt(job=job, fingerprint="f", number=number, traceparent=traceparent)


def test_the_publishers_trace_is_gone_on_with() -> None:
    trace = attempt(traceparent=PUBLISHED).trace
    assert (trace.trace_id, trace.parent_id) == ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
    assert trace.traceparent == f"00-0af7651916cd43dd8448eb211c80319c-{trace.span_id}-01"
    assert trace.span_id != trace.parent_id


def test_attempts_of_a_job_share_a_trace_and_have_spans_of_their_own() -> None:
    first, second = attempt(1).trace, attempt(2).trace
    assert first.trace_id == second.trace_id
    assert first.span_id != second.span_id
    assert attempt(1).trace == first


def test_what_the_publisher_does_not_sample_is_not_sampled_here() -> None:
    assert trace_of(PUBLISHED[:-2] + "00", job="j", attempt="1").traceparent.endswith("-00")


@pytest.mark.parametrize(
    "header",
    [
        None, 5, "", "00-short-b7ad6b7169203331-01", PUBLISHED.upper(), PUBLISHED + "-more", "ff" + PUBLISHED[2:],
        f"00-{'0' * 32}-b7ad6b7169203331-01", f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01", PUBLISHED + "\n",
    ],
)  # fmt: skip
def test_a_header_that_is_none_begins_a_trace_instead_of_breaking_the_job(header: object) -> None:
    trace = trace_of(header, job="j", attempt="1")
    assert trace.parent_id is None
    assert trace_of(trace.traceparent, job="", attempt="").parent_id == trace.span_id


def test_a_later_version_of_the_header_is_read_as_far_as_it_is_known() -> None:
    assert trace_of("01" + PUBLISHED[2:] + "-more", job="j", attempt="1").parent_id == "b7ad6b7169203331"
