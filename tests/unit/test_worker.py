"""The worker's decisions, with a broker and a store in memory and a runner that does what a test says."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pytest
from fakes.memory import MemoryBroker, MemoryStore

from orchestrator import worker as worker_module
from orchestrator.attempt import Attempt, Control
from orchestrator.clients.queues import LIFE, Delivery
from orchestrator.conclusion import Conclusion
from orchestrator.denoising import Emit
from orchestrator.errors import InvalidInput, ModelUnavailable
from orchestrator.job import Event, Failed, HandedBack, Job, Progress, Retried, Succeeded
from orchestrator.ledger import Ledger, Manifest
from orchestrator.outbox import Outbox
from orchestrator.schema import fingerprint, job_from_message
from orchestrator.worker import Worker, WorkerSettings

Work = Callable[[Attempt, Control], None]


class ScriptedRunner:
    """Does ``work`` and then commits, as the real one would."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.work: Work = lambda attempt, control: None
        self.started: list[int] = []
        self.beside: list[int] = []
        self.prepared: list[int] = []
        self.emit: Emit = lambda event: None
        self._running = 0

    def prepare(self, job: Job) -> None:
        self.prepared.append(job.generation_id)

    def run(self, attempt: Attempt, control: Control, emit: Emit) -> Manifest:
        number = attempt.job.generation_id
        control.check()
        self.started.append(number)
        self._running += 1
        self.beside.append(self._running)
        self.emit = emit
        try:
            emit(milestone(number, 0))
            self.work(attempt, control)
        finally:
            self._running -= 1
        body = {"generation_id": number, "result_url": f"file:///r/generations/gen-{number}.png", "metadata": {}}
        return self.ledger.commit(
            Manifest(generation_id=number, outcome="complete", body=body, fingerprint=attempt.fingerprint)
        )


class House:
    def __init__(self, max_concurrent: int = 2, grace_s: float = 6.0) -> None:
        self.broker, self.store = MemoryBroker(), MemoryStore()
        self.ledger = Ledger(self.store, "file:///r")
        self.runner = ScriptedRunner(self.ledger)
        self.events: list[Event] = []
        self.milestones: list[Progress] = []
        outbox = Outbox(self.broker, None, None, count=lambda *_: None)  # type: ignore[arg-type]
        self.worker = Worker(
            self.broker,
            self.runner,
            self.ledger,
            Conclusion(self.broker, self.ledger, outbox, max_attempts=3, listen=self.events.append),
            settings=WorkerSettings(
                max_concurrent=max_concurrent, fairness_window=40, job_timeout_s=60.0, grace_s=grace_s
            ),
            listen=self.events.append,
            send_progress=lambda event, url, life: self.milestones.append(event),
        )

    def deliver(self, body: bytes | dict[str, object], *, redelivered: bool = False, **headers: object) -> Delivery:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        delivery = self.broker.delivery(data, headers, redelivered=redelivered)
        until(lambda: "image_generation" in self.broker.consumers)
        self.broker.consumers["image_generation"](delivery)
        return delivery

    @contextmanager
    def working(self) -> Iterator[None]:
        thread = threading.Thread(target=self.worker.run)
        thread.start()
        try:
            yield
        finally:
            self.worker.stop()
            thread.join(10.0)
            assert not thread.is_alive()


def until(happened: Callable[[], object], within_s: float = 5.0) -> None:
    end = time.monotonic() + within_s
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def _wait(event: threading.Event) -> None:
    assert event.wait(5.0)


def milestone(generation_id: int, percent: int) -> Progress:
    return Progress(
        generation_id=generation_id, current_step=0, total_steps=1, progress_percent=percent, estimated_seconds=1.0
    )


def message(generation_id: int, **data: object) -> dict[str, object]:
    return {
        "task_id": f"t{generation_id}",
        "type": "image_generation",
        "data": {"generation_id": generation_id, "prompt": "sea", **data},
    }


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.setattr(worker_module, "CANCEL_POLL_S", 0.02)
    return House()


def test_a_job_is_acked_once_its_outcome_is_safe(house: House) -> None:
    with house.working():
        delivery = house.deliver(message(1))
        until(lambda: house.broker.acked)
    assert house.broker.acked == [delivery]
    assert isinstance(house.events[-1], Succeeded)
    assert [event.progress_percent for event in house.milestones] == [0]


def test_what_a_job_needs_is_fetched_while_it_waits() -> None:
    house = House(max_concurrent=1)
    first_may_end = threading.Event()
    house.runner.work = lambda attempt, control: _wait(first_may_end)
    with house.working():
        house.deliver(message(1))
        house.deliver(message(2))
        until(lambda: house.runner.prepared == [1, 2])
        assert house.runner.started == [1]
        first_may_end.set()
        until(lambda: len(house.broker.acked) == 2)


def test_no_more_jobs_run_at_once_than_allowed(house: House) -> None:
    house.runner.work = lambda attempt, control: time.sleep(0.02)
    with house.working():
        for number in range(1, 8):
            house.deliver(message(number))
        until(lambda: len(house.broker.acked) == 7)
    assert max(house.runner.beside) == 2


def test_a_second_delivery_of_a_running_job_joins_it(house: House) -> None:
    go = threading.Event()
    house.runner.work = lambda attempt, control: _wait(go)
    with house.working():
        first = house.deliver(message(1))
        until(lambda: house.runner.started)
        second = house.deliver(message(1))
        time.sleep(0.05)
        go.set()
        until(lambda: len(house.broker.acked) == 2)
    assert house.runner.started == [1]
    assert house.broker.acked == [first, second]


def test_another_payload_under_a_running_id_is_dead_lettered(house: House) -> None:
    go = threading.Event()
    house.runner.work = lambda attempt, control: _wait(go)
    with house.working():
        house.deliver(message(1))
        until(lambda: house.runner.started)
        house.deliver(message(1, seed=9))
        until(lambda: house.broker.to("image_generation.dead"))
        go.set()
        until(lambda: len(house.broker.acked) == 2)
    assert [m.queue for m in house.broker.published] == ["image_generation.dead", "image_generation.events"]


def test_a_message_that_names_no_generation_is_dead_lettered_with_the_reason(house: House) -> None:
    with house.working():
        house.deliver(b"{broken")
        until(lambda: house.broker.acked)
    (dead,) = house.broker.published
    assert (dead.queue, dead.headers["x-reason"]) == ("image_generation.dead", "INVALID_INPUT")
    assert "not JSON" in str(dead.headers["x-error"])


def test_an_unknown_type_is_dead_lettered_and_tells_no_backend(house: House) -> None:
    with house.working():
        house.deliver(message(1) | {"type": "video"})
        until(lambda: house.broker.acked)
    assert [m.queue for m in house.broker.published] == ["image_generation.dead"]


def test_a_broken_job_that_names_its_generation_fails_it(house: House) -> None:
    with house.working():
        house.deliver(message(4, seed="many"))
        until(lambda: house.broker.acked)
    assert house.events == [
        Failed(
            generation_id=4,
            error_message="data.seed is a string; a number is expected",
            error_code="INVALID_INPUT",
            retry_count=0,
        )
    ]


def test_a_message_that_breaks_the_reader_ends_no_worker(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def reader(read: Mapping[str, object]) -> Job:
        if read["task_id"] == "t4":
            raise KeyError("nobody thought of this")
        return job_from_message(read)

    monkeypatch.setattr(worker_module, "request_from_message", reader)
    with house.working():
        house.deliver(message(4))
        house.deliver(message(5))
        until(lambda: len(house.broker.acked) == 2)
    (failed,) = [event for event in house.events if isinstance(event, Failed)]
    assert (failed.generation_id, failed.error_code) == (4, "GENERATION_FAILED")
    assert [one.queue for one in house.broker.published].count("image_generation.dead") == 1
    assert house.runner.started == [5]


def test_a_job_whose_end_cannot_be_settled_comes_again_after_a_pause(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "UNSETTLED_PAUSE_S", 0.1)
    monkeypatch.setattr(house.broker, "publish", _breaks)
    with house.working():
        begun_s = time.monotonic()
        delivery = house.deliver(message(1))
        until(lambda: house.broker.requeued)
    assert house.broker.requeued == [delivery]
    assert time.monotonic() - begun_s >= 0.1


@pytest.mark.parametrize(
    "broken",
    [
        message(4) | {"webhook_url": "https://a.example/\ud800"},
        message(int("9" * 1100)),
        message(int("9" * 300)),
    ],
)
def test_a_refused_message_is_dead_lettered_whatever_it_names(house: House, broken: dict[str, object]) -> None:
    with house.working():
        house.deliver(broken)
        until(lambda: house.broker.acked)
    (dead,) = house.broker.to("image_generation.dead")
    assert dead.headers["x-reason"] == "INVALID_INPUT"


def test_a_refused_message_is_dead_lettered_even_where_its_failure_cannot_be_written(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(house.ledger, "commit", _breaks)
    with house.working():
        house.deliver(message(4, seed="many"))
        until(lambda: house.broker.acked)
    (dead,) = house.broker.published
    assert (dead.queue, dead.headers["x-reason"]) == ("image_generation.dead", "INVALID_INPUT")


def test_a_message_that_nothing_can_be_done_with_comes_again_and_is_not_held(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "UNSETTLED_PAUSE_S", 0.01)
    monkeypatch.setattr(house.broker, "publish", _breaks)
    with house.working():
        delivery = house.deliver(b"{broken")
        until(lambda: house.broker.requeued)
    assert house.broker.requeued == [delivery]


def test_an_attempt_that_breaks_is_repeated_later(house: House) -> None:
    def broken(attempt: Attempt, control: Control) -> None:
        raise ModelUnavailable("Triton is away")

    house.runner.work = broken
    with house.working():
        house.deliver(message(1))
        until(lambda: house.broker.acked)
    assert house.broker.published[0].delay_s == 5.0
    assert isinstance(house.events[-1], Retried)


def test_an_error_nobody_foresaw_counts_as_a_broken_attempt(house: House) -> None:
    def broken(attempt: Attempt, control: Control) -> None:
        raise ZeroDivisionError

    house.runner.work = broken
    with house.working():
        house.deliver(message(1))
        until(lambda: house.broker.acked)
    (retried,) = [event for event in house.events if isinstance(event, Retried)]
    assert (retried.error_code, "ZeroDivisionError" in retried.error_message) == ("GENERATION_FAILED", True)


def test_a_refused_job_is_not_repeated(house: House) -> None:
    def refused(attempt: Attempt, control: Control) -> None:
        raise InvalidInput("width is 1100 px")

    house.runner.work = refused
    with house.working():
        house.deliver(message(1))
        until(lambda: house.broker.acked)
    assert [m.queue for m in house.broker.published] == ["image_generation.dead", "image_generation.events"]


def test_a_failure_whose_worker_died_before_its_dead_copy_is_kept_by_the_redelivery(house: House) -> None:
    body = {"generation_id": 1, "error_message": "no", "error_code": "TIMEOUT", "retry_count": 2}
    failed = Manifest(
        generation_id=1, outcome="failed", body=body, fingerprint=fingerprint(message(1)), webhook_url=None
    )
    house.ledger.commit(failed)
    with house.working():
        house.deliver(message(1), redelivered=True)
        until(lambda: house.broker.acked)
    assert [m.queue for m in house.broker.published] == ["image_generation.dead", "image_generation.events"]


def test_a_cancel_reaches_a_job_that_runs_here(house: House) -> None:
    house.runner.work = lambda attempt, control: _until_stopped(control)
    with house.working():
        house.deliver(message(1))
        until(lambda: house.runner.started)
        house.deliver({"type": "cancel", "data": {"generation_id": 1}})
        until(lambda: len(house.broker.acked) == 2)
    assert [event.error_code for event in house.events if isinstance(event, Failed)] == ["CANCELLED"]


def test_a_cancel_outlives_an_attempt_that_breaks(house: House) -> None:
    def broken(attempt: Attempt, control: Control) -> None:
        _wait(control.cancelled)
        raise ModelUnavailable("Triton is away")

    house.runner.work = broken
    with house.working():
        house.deliver(message(1))
        until(lambda: house.runner.started)
        house.deliver({"type": "cancel", "data": {"generation_id": 1}})
        until(lambda: len(house.broker.acked) == 2)
        (retry,) = house.broker.to("image_generation")
        house.deliver(retry.body, **retry.headers)
        until(lambda: len(house.broker.acked) == 3)
    assert [event.error_code for event in house.events if isinstance(event, Failed)] == ["CANCELLED"]


def test_a_cancel_of_a_job_that_waits_here_outlives_this_worker() -> None:
    house = House(max_concurrent=1, grace_s=0.2)
    house.runner.work = lambda attempt, control: _until_stopped(control)
    with house.working():
        house.deliver(message(1))
        until(lambda: house.runner.started)
        waiting = house.deliver(message(2))
        cancel = house.deliver({"type": "cancel", "data": {"generation_id": 2}})
        until(lambda: house.broker.acked)
    assert house.broker.acked == [cancel]
    assert waiting in house.broker.requeued
    assert house.ledger.cancel_requested(2)


def test_a_cancel_is_acked_only_once_it_is_kept(house: House) -> None:
    may_end = threading.Event()
    house.runner.work = lambda attempt, control: _wait(may_end)
    with house.working():
        job = house.deliver(message(1))
        until(lambda: house.runner.started)
        house.store.broken = "cancels"
        cancel = house.deliver({"type": "cancel", "data": {"generation_id": 1}})
        until(lambda: cancel in house.broker.requeued)
        house.store.broken = None
        may_end.set()
        until(lambda: house.broker.acked)
    assert house.broker.acked == [job]


def test_a_cancel_for_a_job_elsewhere_is_left_in_the_store(house: House) -> None:
    with house.working():
        house.deliver({"type": "cancel", "data": {"generation_id": 77}})
        until(lambda: house.broker.acked)
    assert house.ledger.cancel_requested(77)


def test_a_cancel_left_by_another_worker_is_found(house: House) -> None:
    house.runner.work = lambda attempt, control: _until_stopped(control)
    with house.working():
        house.deliver(message(1))
        until(lambda: house.runner.started)
        house.ledger.request_cancel(1)
        until(lambda: house.broker.acked)
    assert [event.error_code for event in house.events if isinstance(event, Failed)] == ["CANCELLED"]


def test_a_job_that_ends_at_another_worker_ends_here_and_reports_nothing_after(house: House) -> None:
    def slower(attempt: Attempt, control: Control) -> None:
        body = {"generation_id": 1, "result_url": "file:///r/generations/gen-1.png", "metadata": {}}
        house.ledger.commit(Manifest(generation_id=1, outcome="complete", body=body, fingerprint=attempt.fingerprint))
        _wait(control.cancelled)
        house.runner.emit(milestone(1, 75))
        control.check()

    house.runner.work = slower
    with house.working():
        house.deliver(message(1))
        until(lambda: house.broker.acked)
    assert [event.progress_percent for event in house.milestones] == [0]
    assert isinstance(house.events[-1], Succeeded)
    assert [m.queue for m in house.broker.published] == ["image_generation.events"]


def test_a_replayed_job_is_not_ended_by_the_failure_of_its_earlier_life(house: House) -> None:
    def slow(attempt: Attempt, control: Control) -> None:
        time.sleep(0.2)
        control.check()
        house.ledger.reopen(failed)

    body = {"generation_id": 1, "error_message": "no", "error_code": "TIMEOUT", "retry_count": 2}
    failed = Manifest(generation_id=1, outcome="failed", body=body, fingerprint=fingerprint(message(1)))
    house.ledger.commit(failed)
    house.runner.work = slow
    with house.working():
        house.deliver(message(1), **{LIFE: 1})
        until(lambda: house.broker.acked)
    assert isinstance(house.events[-1], Succeeded)


def test_a_job_cancelled_before_it_was_delivered_never_runs(house: House) -> None:
    house.ledger.request_cancel(1)
    with house.working():
        house.deliver(message(1))
        until(lambda: house.broker.acked)
    assert [event.error_code for event in house.events if isinstance(event, Failed)] == ["CANCELLED"]
    assert house.runner.started == []


def test_stopping_hands_back_what_has_not_begun_and_interrupts_what_cannot_finish() -> None:
    house = House(max_concurrent=1, grace_s=0.2)
    house.runner.work = lambda attempt, control: _until_stopped(control)
    with house.working():
        running = house.deliver(message(1))
        until(lambda: house.runner.started)
        waiting = house.deliver(message(2))
        time.sleep(0.05)
    assert house.broker.requeued == [waiting, running]
    assert house.broker.log[0] == "stop image_generation"
    assert isinstance(house.events[-1], HandedBack)


def test_stopping_lets_a_job_finish_that_can(house: House) -> None:
    house.runner.work = lambda attempt, control: time.sleep(0.1)
    with house.working():
        house.deliver(message(1))
        until(lambda: house.runner.started)
    assert len(house.broker.acked) == 1
    assert house.broker.requeued == []


def _wait(event: threading.Event) -> None:
    assert event.wait(5.0)


def _breaks(*args: object, **kwargs: object) -> None:
    raise ZeroDivisionError


def _until_stopped(control: Control) -> None:
    while True:
        control.check()
        time.sleep(0.005)
