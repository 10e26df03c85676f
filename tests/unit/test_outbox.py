import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pytest
from fakes.memory import MemoryBroker
from unit.test_worker import until

from orchestrator import outbox as outbox_module
from orchestrator.clients.queues import ATTEMPT, NOT_BEFORE, REASON, Delivery
from orchestrator.errors import WebhookRefused, WebhookUndelivered
from orchestrator.job import Progress
from orchestrator.ledger import Manifest
from orchestrator.outbox import SENDERS, TRIES_IN_HAND, Outbox

MANIFEST = Manifest(
    generation_id=9,
    outcome="complete",
    body={"generation_id": 9, "result_url": "gs://b/gen-9.png", "metadata": {"seed": 0}},
    fingerprint="f",
    webhook_url="https://api.example.com/x",
)


class ScriptedSender:
    def __init__(self) -> None:
        self.answers: list[Exception | None] = []
        self.traceparents: list[str | None] = []
        self.calls: list[tuple[str, Mapping[str, object], str, str | None]] = []

    def send(
        self,
        kind: str,
        body: Mapping[str, object],
        *,
        webhook_id: str,
        webhook_url: str | None = None,
        traceparent: str | None = None,
    ) -> None:
        self.calls.append((kind, body, webhook_id, webhook_url))
        self.traceparents.append(traceparent)
        answer = self.answers.pop(0) if self.answers else None
        if answer is not None:
            raise answer


class Post:
    def __init__(self) -> None:
        self.broker, self.sender = MemoryBroker(), ScriptedSender()
        self.counted: list[tuple[str, str]] = []
        self.outbox = Outbox(
            self.broker, self.sender, self.sender, count=lambda kind, answer: self.counted.append((kind, answer))
        )

    def event(self, headers: Mapping[str, object] | None = None) -> Delivery:
        self.outbox.put(MANIFEST)
        return self.broker.delivery(self.broker.published.pop().body, headers)

    @contextmanager
    def open(self, patience_s: float = 5.0) -> Iterator[Callable[[Delivery], None]]:
        self.outbox.start()
        try:
            yield self.broker.consumers[self.broker.queues.events]
        finally:
            self.outbox.stop(patience_s)


@pytest.fixture
def post(monkeypatch: pytest.MonkeyPatch) -> Post:
    monkeypatch.setattr(outbox_module, "retry_delay", lambda error, tried, rng: error.retry_after_s or 0.0)
    return Post()


def test_an_event_is_the_same_to_the_byte_whoever_puts_it(post: Post) -> None:
    post.outbox.put(MANIFEST)
    post.outbox.put(MANIFEST)
    one, other = post.broker.published
    assert one == other
    assert (one.queue, one.message_id) == ("image_generation.events", json.loads(one.body)["webhook_id"])


def test_a_replayed_job_tells_its_new_outcome_under_a_new_id(post: Post) -> None:
    second = Manifest(generation_id=9, outcome="complete", body={}, fingerprint="f", life=1)
    post.outbox.put(MANIFEST)
    post.outbox.put(second)
    assert len({message.message_id for message in post.broker.published}) == 2


def test_an_accepted_event_is_acked(post: Post) -> None:
    event = post.event()
    with post.open() as deliver:
        deliver(event)
        until(lambda: post.broker.acked)
    ((kind, body, _, url),) = post.sender.calls
    assert (kind, body, url) == ("complete", MANIFEST.body, "https://api.example.com/x")
    assert post.counted == [("complete", "accepted")]


def test_an_event_is_tried_until_it_is_accepted(post: Post) -> None:
    post.sender.answers = [WebhookUndelivered("down"), WebhookUndelivered("500"), None]
    event = post.event()
    with post.open() as deliver:
        deliver(event)
        until(lambda: post.broker.acked)
    assert [answer for _, answer in post.counted] == ["undelivered", "undelivered", "accepted"]
    assert len(set(map(str, post.sender.calls))) == 1


def test_an_event_that_keeps_failing_goes_to_the_back_of_the_queue(post: Post) -> None:
    post.sender.answers = [WebhookUndelivered("down")] * TRIES_IN_HAND
    event = post.event({ATTEMPT: 6})
    with post.open() as deliver:
        deliver(event)
        until(lambda: post.broker.acked)
    (moved,) = post.broker.published
    assert (moved.queue, moved.body, moved.delay_s) == ("image_generation.events", event.body, 30.0)
    assert moved.headers == {ATTEMPT: 6 + TRIES_IN_HAND}


def test_a_backend_that_asks_for_an_hour_gets_its_event_from_the_queue_later(post: Post) -> None:
    post.sender.answers = [WebhookUndelivered("busy", status=429, retry_after_s=3600.0)]
    with post.open() as deliver:
        deliver(post.event())
        until(lambda: post.broker.acked)
    (moved,) = post.broker.published
    assert moved.delay_s == 3600.0
    assert moved.headers[NOT_BEFORE] == pytest.approx(time.time() + 3600.0, abs=5.0)


def test_an_event_that_comes_before_its_time_is_moved_on_and_the_backend_is_not_called(post: Post) -> None:
    event = post.event({ATTEMPT: 6, NOT_BEFORE: int(time.time()) + 3300, "traceparent": "t"})
    with post.open() as deliver:
        deliver(event)
        until(lambda: post.broker.acked)
    (moved,) = post.broker.published
    assert (moved.queue, moved.body, post.sender.calls) == ("image_generation.events", event.body, [])
    assert moved.delay_s == pytest.approx(3300.0, abs=5.0)
    assert moved.headers == event.headers | {NOT_BEFORE: pytest.approx(event.headers[NOT_BEFORE], abs=1)}


def test_the_last_stretch_of_a_wait_needs_no_further_one(post: Post) -> None:
    event = post.event({NOT_BEFORE: int(time.time()) + 200})
    with post.open() as deliver:
        deliver(event)
        until(lambda: post.broker.acked)
    (moved,) = post.broker.published
    assert (moved.delay_s, NOT_BEFORE in moved.headers) == (pytest.approx(200.0, abs=5.0), False)


@pytest.mark.parametrize("not_before", [0, 2**62, "tomorrow", None])
def test_an_event_whose_time_has_come_or_is_no_time_is_delivered(post: Post, not_before: object) -> None:
    with post.open() as deliver:
        deliver(post.event({NOT_BEFORE: not_before}))
        until(lambda: post.broker.acked)
    assert len(post.sender.calls) == 1


def test_an_event_refused_for_good_is_kept_among_the_dead(post: Post) -> None:
    post.sender.answers = [WebhookRefused("answered 410", status=410)]
    event = post.event()
    with post.open() as deliver:
        deliver(event)
        until(lambda: post.broker.acked)
    (dead,) = post.broker.published
    assert (dead.queue, dead.body, dead.headers[REASON]) == ("image_generation.dead", event.body, "WEBHOOK_REFUSED")
    assert post.counted == [("complete", "refused")]


@pytest.mark.parametrize("body", [b"no JSON", b"[]", b'{"kind": "complete"}'])
def test_what_is_no_event_is_kept_among_the_dead_and_holds_up_no_other(post: Post, body: bytes) -> None:
    strangers = [post.broker.delivery(body, {}) for _ in range(2 * SENDERS)]
    with post.open() as deliver:
        for stranger in strangers:
            deliver(stranger)
        deliver(post.event())
        until(lambda: len(post.broker.acked) == 1 + len(strangers))
    assert [dead.headers[REASON] for dead in post.broker.published] == ["GENERATION_FAILED"] * len(strangers)
    assert post.counted == [("complete", "accepted")]


def test_a_refused_event_that_cannot_be_kept_stays_where_it_is(post: Post) -> None:
    post.sender.answers = [WebhookRefused("answered 410", status=410)]
    event = post.event()
    post.broker.silent = True
    with post.open() as deliver:
        deliver(event)
        until(lambda: post.broker.requeued)
    assert post.broker.acked == []


def test_stopping_puts_an_undelivered_event_back(post: Post) -> None:
    post.sender.answers = [WebhookUndelivered("down", retry_after_s=60.0)]
    event = post.event()
    with post.open(patience_s=0.0) as deliver:
        deliver(event)
        until(lambda: post.sender.calls)
    assert post.broker.requeued == [event]


def test_stopping_first_delivers_what_is_left(post: Post) -> None:
    post.sender.answers = [WebhookUndelivered("busy", retry_after_s=0.1)]
    event = post.event()
    with post.open() as deliver:
        deliver(event)
    assert post.broker.acked == [event]


@pytest.mark.parametrize(
    ("answer", "counted"),
    [(None, "accepted"), (WebhookUndelivered("down"), "undelivered"), (WebhookRefused("no"), "refused")],
)
def test_a_milestone_is_tried_once_whatever_comes(post: Post, answer: Exception | None, counted: str) -> None:
    post.sender.answers = [answer]
    milestone = Progress(generation_id=9, current_step=25, total_steps=50, progress_percent=50, estimated_seconds=2.0)
    post.outbox.send_progress(milestone, None, 0)
    assert len(post.sender.calls) == 1
    assert post.counted == [("progress", counted)]


def test_the_backend_is_told_the_jobs_trace_on_every_try(post: Post) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    post.outbox.put(MANIFEST, trace)
    message = post.broker.published.pop()
    assert message.headers == {"traceparent": trace}
    post.sender.answers = [WebhookUndelivered("down"), None]
    with post.open() as deliver:
        deliver(post.broker.delivery(message.body, message.headers))
        until(lambda: post.broker.acked)
    assert post.sender.traceparents == [trace, trace]


def test_an_event_that_goes_to_the_back_of_the_queue_keeps_its_trace(post: Post) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    post.sender.answers = [WebhookUndelivered("down")] * TRIES_IN_HAND
    event = post.event({"traceparent": trace})
    with post.open() as deliver:
        deliver(event)
        until(lambda: post.broker.acked)
    assert post.broker.published[-1].headers["traceparent"] == trace
