import json

import pytest
from fakes.memory import MemoryBroker, MemoryStore

from orchestrator import conclusion as conclusion_module
from orchestrator.attempt import Attempt
from orchestrator.clients.queues import ATTEMPT, ERROR, LIFE, MAX_ERROR_CHARS, REASON
from orchestrator.conclusion import Conclusion, next_delay
from orchestrator.errors import Cancelled, InvalidInput, LoraIncompatible, ModelUnavailable, OutOfMemory, StorageError
from orchestrator.job import Event, Failed, HandedBack, Job, Retried
from orchestrator.ledger import Ledger, Manifest
from orchestrator.outbox import Outbox


class Desk:
    """A conclusion with everything around it in memory."""

    def __init__(self) -> None:
        self.broker, self.store = MemoryBroker(), MemoryStore()
        self.ledger = Ledger(self.store, "file:///r")
        self.events: list[Event] = []
        outbox = Outbox(self.broker, None, None, count=lambda *_: None)  # type: ignore[arg-type]
        self.conclusion = Conclusion(self.broker, self.ledger, outbox, max_attempts=3, listen=self.events.append)
        self.delivery = self.broker.delivery(b"{}", {"x-kept": "yes"})

    def attempt(self, number: int = 1, life: int = 0, fingerprint: str = "f") -> Attempt:
        job = Job(generation_id=5, task_id="t", prompt="sea", webhook_url="https://a.example")
        return Attempt(job=job, fingerprint=fingerprint, number=number, life=life)


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(conclusion_module, "BROKER_PAUSE_S", 0.0)
    return Desk()


@pytest.mark.parametrize(("attempt", "delay_s"), [(1, 5.0), (2, 30.0), (3, 300.0), (4, 300.0)])
def test_delays_grow_with_the_attempts(attempt: int, delay_s: float) -> None:
    assert next_delay(OutOfMemory("full"), attempt, 10) == delay_s


def test_there_is_no_attempt_after_the_last_or_after_a_refusal() -> None:
    assert next_delay(OutOfMemory("full"), 3, 3) is None
    assert next_delay(InvalidInput("no"), 1, 3) is None


def test_an_outcome_is_told_before_its_message_is_acked(desk: Desk) -> None:
    manifest = Manifest(generation_id=5, outcome="failed", body=_failed_body(), fingerprint="f")
    desk.conclusion.settled(desk.attempt(), [desk.delivery], manifest)
    assert desk.broker.log == ["publish image_generation.events", "ack"]


def test_an_event_that_is_not_confirmed_keeps_its_message_unacked(desk: Desk) -> None:
    desk.broker.silent = True
    manifest = Manifest(generation_id=5, outcome="failed", body=_failed_body(), fingerprint="f")
    desk.conclusion.settled(desk.attempt(), [desk.delivery], manifest)
    assert desk.broker.log == ["requeue"]


def test_a_broken_attempt_comes_back_later_with_its_count(desk: Desk) -> None:
    desk.conclusion.broken(desk.attempt(number=2, life=1), [desk.delivery], ModelUnavailable("Triton is away"))
    (retry,) = desk.broker.published
    assert (retry.queue, retry.delay_s, retry.body) == ("image_generation", 30.0, b"{}")
    assert retry.headers == {"x-kept": "yes", ATTEMPT: 2, LIFE: 1}
    assert desk.broker.log[-1] == "ack"
    (event,) = desk.events
    assert isinstance(event, Retried)


def test_the_last_attempt_fails_the_job_and_keeps_it_for_the_operator(desk: Desk) -> None:
    desk.conclusion.broken(desk.attempt(number=3), [desk.delivery], ModelUnavailable("Triton is away"))
    (dead,), (event,) = desk.broker.to("image_generation.dead"), desk.broker.to("image_generation.events")
    assert (dead.body, dead.headers[REASON]) == (b"{}", "MODEL_UNAVAILABLE")
    assert b'"retry_count": 2' in event.body
    assert desk.broker.log == ["publish image_generation.dead", "publish image_generation.events", "ack"]
    assert desk.events == [
        Failed(generation_id=5, error_message="Triton is away", error_code="MODEL_UNAVAILABLE", retry_count=2)
    ]


def test_a_cancelled_job_is_told_and_not_kept_among_the_dead(desk: Desk) -> None:
    desk.conclusion.failed(desk.attempt(), [desk.delivery], Cancelled("on request"))
    assert desk.broker.to("image_generation.dead") == []
    assert len(desk.broker.to("image_generation.events")) == 1


def test_a_job_that_was_completed_elsewhere_never_fails(desk: Desk) -> None:
    body = {"generation_id": 5, "result_url": "file:///r/generations/gen-5.png", "metadata": {"seed": 1}}
    done = Manifest(generation_id=5, outcome="complete", body=body, fingerprint="f")
    desk.ledger.commit(done)
    desk.conclusion.broken(desk.attempt(number=3), [desk.delivery], ModelUnavailable("Triton is away"))
    (event,) = desk.broker.published
    assert b'"kind": "complete"' in event.body


def test_the_same_id_with_another_payload_is_dead_lettered_and_the_first_outcome_stands(desk: Desk) -> None:
    first = Manifest(generation_id=5, outcome="complete", body={}, fingerprint="first")
    desk.ledger.commit(first)
    desk.conclusion.broken(desk.attempt(fingerprint="second"), [desk.delivery], InvalidInput("used before"))
    assert [message.queue for message in desk.broker.published] == ["image_generation.dead"]
    assert desk.ledger.find(5) == first


def test_a_failure_that_cannot_be_stored_is_postponed_without_counting(desk: Desk) -> None:
    desk.store.broken = "generations"
    desk.conclusion.broken(desk.attempt(number=3), [desk.delivery], StorageError("the bucket answers 403"))
    (postponed,) = desk.broker.published
    assert (postponed.queue, postponed.headers[ATTEMPT]) == ("image_generation", 2)
    assert desk.events == [HandedBack(generation_id=5)]


def test_every_attempt_that_does_not_end_here_is_said_to_be_over(desk: Desk) -> None:
    outcome = Manifest(generation_id=5, outcome="failed", body=_failed_body(), fingerprint="f")
    desk.broker.silent = True
    desk.conclusion.settled(desk.attempt(), [desk.delivery], outcome)
    desk.conclusion.broken(desk.attempt(), [desk.delivery], OutOfMemory("full"))
    desk.conclusion.failed(desk.attempt(3), [desk.delivery], OutOfMemory("full"))  # committed, its copy unconfirmed
    assert desk.events == [HandedBack(generation_id=5)] * 3


def test_a_job_under_an_id_that_is_taken_is_counted_as_failed(desk: Desk) -> None:
    desk.ledger.commit(Manifest(generation_id=5, outcome="failed", body=_failed_body(), fingerprint="another"))
    desk.conclusion.failed(desk.attempt(), [desk.delivery], InvalidInput("other parameters"))
    (event,) = desk.events
    assert isinstance(event, Failed)
    assert event.error_code == "INVALID_INPUT"


def test_an_outcome_stands_even_where_cleaning_up_fails(desk: Desk) -> None:
    desk.store.broken = "checkpoints"
    manifest = Manifest(generation_id=5, outcome="failed", body=_failed_body(), fingerprint="f")
    desk.conclusion.settled(desk.attempt(), [desk.delivery], manifest)
    assert desk.broker.log[-1] == "ack"


def test_a_failure_that_a_redelivery_finds_is_kept_for_the_operator(desk: Desk) -> None:
    again = desk.broker.delivery(b"{}", redelivered=True)
    manifest = Manifest(generation_id=5, outcome="failed", body=_failed_body(), fingerprint="f")
    desk.conclusion.ended(desk.attempt(), [again], manifest)
    assert desk.broker.log == ["publish image_generation.dead", "publish image_generation.events", "ack"]
    (dead,) = desk.broker.to("image_generation.dead")
    assert (dead.headers[REASON], dead.headers[ERROR]) == ("TIMEOUT", "no")


@pytest.mark.parametrize(("redelivered", "code"), [(False, "TIMEOUT"), (True, "CANCELLED")])
def test_a_failure_that_was_kept_or_cancelled_is_only_told_again(desk: Desk, redelivered: bool, code: str) -> None:
    again = desk.broker.delivery(b"{}", redelivered=redelivered)
    body = _failed_body() | {"error_code": code}
    desk.conclusion.ended(
        desk.attempt(), [again], Manifest(generation_id=5, outcome="failed", body=body, fingerprint="f")
    )
    assert desk.broker.log == ["publish image_generation.events", "ack"]


def test_a_failure_is_told_even_where_its_text_is_none(desk: Desk) -> None:
    desk.conclusion.broken(desk.attempt(), [desk.delivery], LoraIncompatible("r is '\ud800'"))
    (dead,), (event,) = desk.broker.to("image_generation.dead"), desk.broker.to("image_generation.events")
    assert dead.headers[ERROR] == "r is '?'"
    assert json.loads(event.body)["body"]["error_message"] == "r is '?'"
    assert desk.broker.log[-1] == "ack"


def test_a_failure_is_told_in_no_more_characters_than_a_header_holds(desk: Desk) -> None:
    desk.conclusion.broken(desk.attempt(), [desk.delivery], InvalidInput("e" * 50_000))
    (event,) = desk.broker.to("image_generation.events")
    assert len(json.loads(event.body)["body"]["error_message"]) == MAX_ERROR_CHARS


def test_every_delivery_of_a_job_is_settled_by_one_outcome(desk: Desk) -> None:
    again = desk.broker.delivery(b"{}")
    manifest = Manifest(generation_id=5, outcome="failed", body=_failed_body(), fingerprint="f")
    desk.conclusion.settled(desk.attempt(), [desk.delivery, again], manifest)
    assert desk.broker.acked == [desk.delivery, again]
    assert len(desk.broker.published) == 1


def _failed_body() -> dict[str, object]:
    return {"generation_id": 5, "error_message": "no", "error_code": "TIMEOUT", "retry_count": 0}
