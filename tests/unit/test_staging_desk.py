"""The desk, its jobs, promises, the switch and the gateway, without HTTP, network or a real clock where one is not needed."""

import gc
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from fakes.memory import MemoryStore

from orchestrator.errors import (
    Cancelled,
    Conflict,
    ContentRejected,
    DeadlineExceeded,
    GenerationFailed,
    InferenceDisabled,
    Interrupted,
    InvalidInput,
    ModelUnavailable,
    Overloaded,
    ProviderRefused,
    RateLimited,
    RemarqueError,
    StorageError,
)
from orchestrator.staging.accounts import Account, Accounts
from orchestrator.staging.breaker import Breaker, BreakerSettings
from orchestrator.staging.desk import Desk, DeskSettings
from orchestrator.staging.gateway import Gateway, Lane
from orchestrator.staging.job import StagingJob
from orchestrator.staging.keeper import Keeper
from orchestrator.staging.ledger import Accepted, ImageName, Manifest, StagingLedger
from orchestrator.staging.mock import MockProvider
from orchestrator.staging.promises import Promises
from orchestrator.staging.prompts import Wording
from orchestrator.staging.provider import StagedPicture, Task, Watch
from orchestrator.staging.request import StagingRequest
from orchestrator.staging.retry import RetryBudget
from orchestrator.staging.routing import Mode, Routing
from orchestrator.staging.switch import Switch
from orchestrator.staging_telemetry import StagingTelemetry

ACCOUNT = Account(name="me", token_sha256="0" * 64, tiers=("business", "pro", "free"), prefixes=("up/",))
ROOT = "memory://root"


class ListingStore(MemoryStore):
    """Lists, too."""

    def list(self, uri: str, *, limit: int = 1000) -> tuple[str, ...]:
        self._touch(uri)
        return tuple(sorted(found for found in self.objects if found.startswith(uri)))[:limit]


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


class Bench:
    """A desk whose work is to wait until it is told what to do."""

    def __init__(self, **settings: float) -> None:
        self.store, self.clock, self.telemetry = ListingStore(), Clock(), StagingTelemetry()
        self.ledger = StagingLedger(self.store, ROOT)
        self.promises = Promises(self.ledger, self.clock)
        self.began: list[str] = []
        self.begun = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self.failing: dict[str, BaseException] = {}
        kept = DeskSettings(**({"threads": 1, "most_waiting": 10} | settings))  # type: ignore[arg-type]
        self.desk = Desk(self._run, self.promises, kept, self.telemetry, self.clock)

    def _run(self, job: StagingJob) -> Manifest:
        self.began.append(job.request.image_id)
        self.begun.release()
        assert self.go.acquire(timeout=10)
        job.check()
        if job.request.image_id in self.failing:
            raise self.failing[job.request.image_id]
        key = self.ledger.store_picture(job.name, b"png")
        return self.ledger.commit(job.name, Manifest(fingerprint=job.request.fingerprint, answer={"staged_key": key}))

    def submit(
        self, image_id: str, tier: str = "business", *, promised: bool = False, seed: int | None = None
    ) -> StagingJob:
        prepare = self.promises.make if promised else None
        return self.desk.submit(wish(image_id, seed), ACCOUNT, tier, deadline_s=60, prepare=prepare)  # type: ignore[arg-type]

    def keeper(self, desk: Desk | None = None) -> Keeper:
        switch = Switch(self.store, ROOT, Routing(mode="mock"), ("mock",))
        return Keeper(desk or self.desk, self.ledger, self.promises, Accounts([ACCOUNT]), switch)


def wish(image_id: str, seed: int | None = None) -> StagingRequest:
    return StagingRequest(image_id=image_id, original_key="up/a.jpg", room_type="office", style="modern", seed=seed)


def name(image_id: str) -> ImageName:
    return ImageName(account="me", image_id=image_id)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.go.release(100)
    bench.desk.stop(5)


def test_the_same_wish_twice_at_once_is_one_job(bench: Bench):
    assert bench.submit("a") is bench.submit("a")


def test_another_wish_under_an_id_in_hand_is_a_conflict(bench: Bench):
    bench.submit("a")
    with pytest.raises(Conflict):
        bench.submit("a", seed=1)


def test_dearer_tiers_go_first_and_cheaper_ones_find_less_room(bench: Bench):
    for n in range(6):
        bench.submit(f"free{n}", "free")
    with pytest.raises(Overloaded) as raised:
        bench.submit("free6", "free")
    assert raised.value.retry_after_s is not None
    bench.submit("pro", "pro")
    bench.submit("business", "business")
    bench.go.release(100)
    bench.desk.start()
    for _ in range(8):
        assert bench.begun.acquire(timeout=10)
    assert bench.began[:3] == ["business", "pro", "free0"]


def test_a_job_that_breaks_unforeseen_is_a_failure_and_the_thread_goes_on(
    bench: Bench, caplog: pytest.LogCaptureFixture
):
    bench.failing["a"] = ZeroDivisionError()
    broken, well = bench.submit("a"), bench.submit("b")
    bench.go.release(2)
    bench.desk.start()
    assert isinstance(broken.done.exception(timeout=10), GenerationFailed)
    assert well.done.result(timeout=10).answer["staged_key"].startswith("staged/me/b/")
    assert "broke" in caplog.text


def test_a_job_that_waited_past_its_deadline_is_not_begun(bench: Bench):
    job = bench.submit("a")
    bench.clock.now_s += 61
    bench.desk.start()
    assert isinstance(job.done.exception(timeout=10), DeadlineExceeded)
    assert bench.began == []


def test_whoever_joins_brings_more_patience(bench: Bench):
    job = bench.submit("a")
    bench.clock.now_s += 50
    bench.submit("a")
    assert job.left_s() == 60


@pytest.mark.parametrize("promised", [True, False])
def test_a_promise_lasts_as_long_as_the_most_patient_of_those_who_joined(bench: Bench, promised: bool):
    bench.desk.submit(wish("a"), ACCOUNT, "pro", deadline_s=2, prepare=None if promised else bench.promises.make)
    bench.submit("a", promised=promised)
    accepted = bench.ledger.accepted(name("a"))
    assert accepted is not None
    assert accepted.until_s == bench.clock() + 60


def test_stopping_sends_back_what_waits_and_finishes_what_runs(bench: Bench):
    bench.desk.start()
    running, waiting = bench.submit("a"), bench.submit("b", promised=True)
    assert bench.begun.acquire(timeout=10)
    bench.go.release()
    bench.desk.stop(10)
    assert running.done.exception() is None
    assert "stops" in str(waiting.done.exception())
    accepted = bench.ledger.accepted(name("b"))
    assert accepted is not None
    assert accepted.until_s == 0
    with pytest.raises(Overloaded):
        bench.submit("c")


def test_another_replica_keeps_a_promise_that_was_let_go(bench: Bench):
    bench.ledger.accept(name("a"), Accepted(request=kept("a"), tier="pro", until_s=0))
    bench.go.release()
    bench.desk.start()
    bench.keeper().look(adopt=True)
    job = bench.desk.find(name("a"))
    assert job is not None
    assert job.tier == "pro"
    job.done.result(timeout=10)
    assert bench.ledger.accepted(name("a")) is None
    assert bench.ledger.find(name("a")) is not None


def test_what_was_promised_to_a_caller_who_is_gone_keeps_nobody_elses_from_being_taken_over(bench: Bench):
    for n in range(100):
        gone = ImageName(account="a-caller-of-old", image_id=str(n))
        bench.ledger.accept(gone, Accepted(request=kept(str(n)), tier="pro", until_s=0))
    bench.ledger.accept(name("a"), Accepted(request=kept("a"), tier="pro", until_s=0))
    bench.keeper().look(adopt=True)
    assert [job.name for job in bench.desk.under_way()] == [name("a")]


def test_a_promise_that_cannot_be_read_keeps_no_other_from_being_taken_over(bench: Bench):
    for image_id in ("a", "b"):
        bench.ledger.accept(name(image_id), Accepted(request=kept(image_id), tier="pro", until_s=0))
    [broken] = [uri for uri in bench.store.objects if uri.endswith("staging-accepted/me/a.json")]
    bench.store.objects[broken] = b"{"
    bench.keeper().look(adopt=True)
    assert [job.name for job in bench.desk.under_way()] == [name("b")]


def test_a_promise_that_its_keeper_may_still_hold_is_left_alone(bench: Bench):
    bench.ledger.accept(name("a"), Accepted(request=kept("a"), tier="pro", until_s=bench.clock() + 5))
    keeper = bench.keeper()
    keeper.look(adopt=True)
    assert bench.desk.find(name("a")) is None
    bench.clock.now_s += 36
    keeper.look(adopt=True)
    assert bench.desk.find(name("a")) is not None


def test_a_promise_that_ended_three_processes_is_given_up(bench: Bench):
    bench.ledger.accept(name("a"), Accepted(request=kept("a"), tier="pro", until_s=0, adoptions=3))
    bench.keeper().look(adopt=True)
    failure = bench.ledger.failure(name("a"))
    assert failure is not None
    assert failure.code == "GENERATION_FAILED"
    assert bench.ledger.promises("me") == []


def test_stops_in_order_are_not_counted_as_deaths(bench: Bench):
    bench.ledger.accept(name("a"), Accepted(request=kept("a"), tier="pro", until_s=0))
    for _ in range(5):
        replica = Desk(bench._run, bench.promises, DeskSettings(), bench.telemetry, bench.clock)
        bench.keeper(replica).look(adopt=True)
        replica.stop(0)
    accepted = bench.ledger.accepted(name("a"))
    assert accepted is not None
    assert (accepted.adoptions, accepted.until_s) == (0, 0)


def test_a_death_is_counted(bench: Bench):
    bench.ledger.accept(name("a"), Accepted(request=kept("a"), tier="pro", until_s=bench.clock() - 60, adoptions=1))
    bench.keeper().look(adopt=True)
    accepted = bench.ledger.accepted(name("a"))
    assert accepted is not None
    assert accepted.adoptions == 2


def test_a_promise_that_was_let_go_and_cancelled_is_not_taken_over(bench: Bench):
    bench.ledger.accept(name("a"), Accepted(request=kept("a"), tier="pro", until_s=0))
    bench.ledger.request_cancel(name("a"))
    bench.keeper().look(adopt=True)
    assert bench.desk.find(name("a")) is None
    failure = bench.ledger.failure(name("a"))
    assert failure is not None
    assert failure.code == "CANCELLED"


def test_a_cancel_that_comes_while_a_promise_is_taken_over_is_not_lost(bench: Bench):
    adopted = Accepted(request=kept("a"), tier="pro", until_s=0)
    bench.ledger.request_cancel(name("a"))
    job = bench.desk.submit(
        wish("a"), ACCOUNT, "pro", deadline_s=60, prepare=lambda job: bench.promises.make(job, adopted)
    )
    bench.keeper().look(adopt=False)
    bench.desk.start()
    assert isinstance(job.done.exception(timeout=10), Cancelled)


def test_a_new_promise_does_not_inherit_an_old_cancel(bench: Bench):
    bench.ledger.request_cancel(name("a"))
    bench.submit("a", promised=True)
    assert not bench.ledger.cancel_requested(name("a"))


def test_a_cancelled_job_is_cancelled_even_where_the_process_stops(bench: Bench):
    job = bench.submit("a")
    job.cancel()
    job.interrupt()
    with pytest.raises(Cancelled):
        job.check()


def test_a_cancel_that_another_replica_took_ends_the_job_here(bench: Bench):
    job = bench.submit("a", promised=True)
    bench.ledger.request_cancel(name("a"))
    bench.keeper().look(adopt=False)
    bench.desk.start()
    assert isinstance(job.done.exception(timeout=10), Cancelled)
    assert job.snapshot().status == "cancelled"


def test_why_a_promise_was_not_kept_is_written_down_without_addresses_of_our_network(bench: Bench):
    bench.failing["a"] = ModelUnavailable("POST http://10.0.0.7:9/internal was not answered")
    job = bench.submit("a", promised=True)
    bench.go.release()
    bench.desk.start()
    job.done.exception(timeout=10)
    failure = bench.ledger.failure(name("a"))
    assert failure is not None
    assert failure.code == "MODEL_UNAVAILABLE"
    assert "10.0.0.7" not in failure.message


def test_a_cancel_ends_at_once_what_waits_for_a_thread(bench: Bench):
    job = bench.submit("a", promised=True)
    bench.desk.cancel(job)
    assert job.snapshot().status == "cancelled"
    assert bench.desk.waiting == 0
    assert bench.ledger.accepted(name("a")) is None
    assert bench.submit("a", seed=1) is not job


def test_nobody_joins_a_job_that_is_being_cancelled(bench: Bench):
    job = bench.submit("a")
    bench.desk.start()
    assert bench.begun.acquire(timeout=10)
    bench.desk.cancel(job)
    for seed in (None, 1):
        with pytest.raises(Overloaded, match="being cancelled") as raised:
            bench.submit("a", promised=True, seed=seed)
        assert raised.value.retry_after_s == 1
    bench.go.release()
    assert isinstance(job.done.exception(timeout=10), Cancelled)


def test_a_promise_that_cannot_be_written_down_is_not_made(bench: Bench):
    bench.store.broken = "staging-accepted"
    with pytest.raises(StorageError):
        bench.submit("a", promised=True)
    bench.store.broken = None
    assert isinstance(bench.submit("a"), StagingJob)


def test_of_two_attempts_at_an_image_one_counts_and_the_others_picture_is_gone():
    store = ListingStore()
    ledger = StagingLedger(store, ROOT)
    manifests = [
        Manifest(fingerprint="f", answer={"staged_key": ledger.store_picture(name("a"), b"png")}) for _ in range(2)
    ]
    assert [ledger.commit(name("a"), manifest) for manifest in manifests] == [manifests[0]] * 2
    assert sum(uri.endswith(".png") for uri in store.objects) == 1


def test_a_follower_hears_every_later_state_and_the_end():
    job = StagingJob(wish("a"), ACCOUNT, "pro", until_s=10, clock=lambda: 0.0)
    seen = [job.after(-1).result(timeout=1)]
    later = job.after(seen[0].version)
    job.start()
    seen.append(later.result(timeout=1))
    job.fail(Cancelled("no"))
    seen.append(job.after(seen[1].version).result(timeout=1))
    assert [snapshot.status for snapshot in seen] == ["queued", "running", "cancelled"]


def test_a_job_that_failed_keeps_no_picture_in_memory(bench: Bench):
    class Photograph:
        """Something large."""

    def work(job: StagingJob) -> Manifest:
        photograph = Photograph()
        seen.append(weakref.ref(photograph))
        try:
            raise StorageError("the store was away")
        except StorageError as error:
            raise GenerationFailed("it broke") from error

    seen: list[weakref.ref[Photograph]] = []
    desk = Desk(work, bench.promises, DeskSettings(threads=1), bench.telemetry, bench.clock)
    job = desk.submit(wish("a"), ACCOUNT, "pro", deadline_s=60)
    desk.start()
    assert isinstance(job.done.exception(timeout=10), GenerationFailed)
    desk.stop(5)
    gc.collect()
    assert desk.find(name("a")) is job
    assert seen[0]() is None


def kept(image_id: str) -> dict[str, object]:
    return {"image_id": image_id, "original_key": "up/a.jpg", "room_type": "office", "style": "modern"}


# The switch


def test_what_one_replica_is_told_the_others_take_over():
    store = ListingStore()
    one, two = (Switch(store, ROOT, Routing(mode="mock"), ("mock", "managed")) for _ in range(2))
    one.set({"mode": "managed", "canary_mode": "mock", "canary_percent": 5})
    two.refresh()
    assert two.current() == one.current()
    one.reset()
    two.refresh()
    assert two.current() == Routing(mode="mock")


def test_a_change_at_one_replica_keeps_what_another_was_told_just_before():
    store = ListingStore()
    one, two = (Switch(store, ROOT, Routing(mode="mock"), ("mock",)) for _ in range(2))
    one.set({"enabled": False})
    assert two.set({"canary_salt": "x"}).enabled is False


def test_a_change_replaces_a_document_that_cannot_be_read():
    store = ListingStore()
    store.objects[f"{ROOT}/staging-routing.json"] = b"{"
    assert Switch(store, ROOT, Routing(mode="mock"), ("mock",)).set({"enabled": False}).enabled is False


def test_a_provider_that_is_not_set_up_cannot_be_chosen():
    switch = Switch(ListingStore(), ROOT, Routing(mode="mock"), ("mock",))
    with pytest.raises(InvalidInput, match="managed is not set up"):
        switch.set({"mode": "managed"})


def test_a_broken_document_and_a_store_that_is_away_change_nothing():
    store = ListingStore()
    switch = Switch(store, ROOT, Routing(mode="mock"), ("mock", "managed"))
    switch.set({"enabled": False})
    for data in (b"{", b"[]", b'{"mode": "gpu"}', b'{"mode": "self"}'):
        store.objects[f"{ROOT}/staging-routing.json"] = data
        switch.refresh()
        assert switch.current().enabled is False
    store.broken = "routing"
    switch.refresh()
    assert switch.current().enabled is False


# The gateway


class Scripted:
    """A provider that fails as told, then works."""

    def __init__(self, *failures: RemarqueError) -> None:
        self.failures = list(failures)
        self.calls = 0

    def stage(self, task: Task, watch: Watch) -> StagedPicture:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        return StagedPicture(pixels=task.picture, provider="managed", model_rev="v1")

    def not_ready(self) -> str | None:
        return None


class Patient:
    """A watch without a clock."""

    def __init__(self, left_s: float = 1000.0) -> None:
        self.left = left_s
        self.ended: RemarqueError | None = None

    def check(self) -> None:
        if self.ended is not None:
            raise self.ended

    def wait(self, seconds: float) -> None:
        self.left -= seconds

    def nudge(self) -> None: ...

    def left_s(self) -> float:
        return self.left

    def report(self, percent: int) -> None: ...


TASK = Task(
    key="k",
    picture=np.zeros((64, 64, 3), np.uint8),
    mask=np.ones((64, 64), np.bool_),
    wording=Wording("a", "b"),
    seed=1,
    strength=0.5,
    guidance_scale=6,
)
DOWN = ModelUnavailable("down")


def gateway(
    provider: Scripted,
    routing: Routing | None = None,
    attempts: int = 3,
    breaker: Breaker | None = None,
    deadline_s: float = 120.0,
) -> Gateway:
    wall = breaker or Breaker(BreakerSettings(), lambda: 0.0)
    lanes: dict[Mode, Lane] = {
        "managed": Lane(provider, wall, RetryBudget()),
        "mock": Lane(MockProvider(0), Breaker(BreakerSettings(), lambda: 0.0), RetryBudget()),
    }
    chosen = routing or Routing(mode="managed", fallback="refuse")
    return Gateway(lanes, lambda: chosen, StagingTelemetry(), attempts=attempts, deadline_s=deadline_s, rng=Random(1))


def test_a_provider_that_fails_twice_is_called_a_third_time():
    provider = Scripted(DOWN, RateLimited("busy", retry_after_s=1))
    assert gateway(provider).stage("a", TASK, Patient()).model_rev == "v1"
    assert provider.calls == 3


@pytest.mark.parametrize("error", [ContentRejected("no"), ProviderRefused("no")])
def test_what_repeating_does_not_mend_is_not_repeated(error: RemarqueError):
    provider = Scripted(*[error] * 3)
    with pytest.raises(type(error)):
        gateway(provider).stage("a", TASK, Patient())
    assert provider.calls == 1


def test_a_providers_rate_is_no_affair_of_the_caller():
    with pytest.raises(ModelUnavailable):
        gateway(Scripted(*[RateLimited("busy")] * 3)).stage("a", TASK, Patient())


def test_no_retry_is_begun_that_would_end_past_the_deadline():
    provider = Scripted(RateLimited("busy", retry_after_s=20), DOWN)
    with pytest.raises(ModelUnavailable):
        gateway(provider).stage("a", TASK, Patient(left_s=10))
    assert provider.calls == 1


def test_a_failing_provider_is_replaced_by_a_mock_that_says_so():
    staged = gateway(Scripted(*[DOWN] * 3), Routing(mode="managed")).stage("a", TASK, Patient())
    assert staged.mock
    assert staged.warnings == ("made by mock instead of managed: managed could not stage it (MODEL_UNAVAILABLE)",)


def test_a_failing_canary_is_replaced_by_the_main_provider():
    routing = Routing(mode="mock", canary_mode="managed", canary_percent=100)
    staged = gateway(Scripted(*[DOWN] * 3), routing).stage("a", TASK, Patient())
    assert staged.warnings[0].startswith("made by mock instead of managed")


def test_refused_content_is_not_handed_to_the_mock():
    with pytest.raises(ContentRejected):
        gateway(Scripted(ContentRejected("no")), Routing(mode="managed")).stage("a", TASK, Patient())


def test_the_kill_switch_refuses_or_mocks_and_calls_nobody():
    provider = Scripted()
    with pytest.raises(InferenceDisabled):
        gateway(provider, Routing(mode="managed", enabled=False, fallback="refuse")).stage("a", TASK, Patient())
    assert gateway(provider, Routing(mode="managed", enabled=False)).stage("a", TASK, Patient()).mock
    assert provider.calls == 0


def test_a_cancelled_job_is_neither_repeated_nor_mocked():
    watch, provider = Patient(), Scripted(DOWN)
    watch.ended = Cancelled("stop")
    with pytest.raises(Cancelled):
        gateway(provider, Routing(mode="managed")).stage("a", TASK, watch)
    assert provider.calls == 1


def test_an_open_breaker_keeps_the_provider_from_being_called():
    breaker = Breaker(BreakerSettings(window=2, least_calls=2), lambda: 0.0)
    provider = Scripted(*[DOWN] * 9)
    found = gateway(provider, attempts=9, breaker=breaker)
    for _ in range(3):
        with pytest.raises(ModelUnavailable):
            found.stage("a", TASK, Patient())
    assert provider.calls == 2


def breaker_after(error: RemarqueError, watch: Patient, deadline_s: float = 120.0) -> str:
    """The state of a breaker that opens at the second failure, after two calls that ended like this."""
    breaker = Breaker(BreakerSettings(window=2, least_calls=2), lambda: 0.0)
    found = gateway(Scripted(error, error), attempts=1, breaker=breaker, deadline_s=deadline_s)
    for _ in range(2):
        with pytest.raises(type(error)):
            found.stage("a", TASK, watch)
    return breaker.state


def test_a_callers_short_deadline_does_not_open_the_breaker_for_everybody():
    assert breaker_after(DeadlineExceeded("not done in time"), Patient(left_s=1.9)) == "closed"


def test_a_process_that_stops_does_not_open_the_breaker():
    assert breaker_after(Interrupted("the service stops"), Patient()) == "closed"


@pytest.mark.parametrize(("left_s", "deadline_s"), [(30.0, 120.0), (0.0, 0.0)])
def test_a_provider_that_had_its_whole_time_and_was_not_done_opens_the_breaker(left_s: float, deadline_s: float):
    assert breaker_after(DeadlineExceeded("not done in time"), Patient(left_s), deadline_s) == "open"


@pytest.mark.parametrize("height_px", [1, 3, 8, 12, 16, 24, 64])
@pytest.mark.parametrize("width_px", [1, 3, 8, 12, 16, 24, 64])
def test_the_mock_draws_in_the_smallest_mask(height_px: int, width_px: int):
    mask = np.zeros((64, 64), np.bool_)
    mask[:height_px, :width_px] = True
    for seed in range(20):
        staged = MockProvider(0).stage(replace(TASK, mask=mask, seed=seed), Patient())
        assert staged.pixels.shape == TASK.picture.shape


def test_the_mock_draws_inside_the_mask_and_the_same_for_a_seed():
    provider = MockProvider(0)
    one, two = (provider.stage(TASK, Patient()).pixels for _ in range(2))
    assert np.array_equal(one, two)
    assert one.any()
