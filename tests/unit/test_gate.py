"""Who goes when: jobs as threads before a gate, a server that answers when the test says so, and a clock of its own."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from orchestrator.clients.gate import PATIENCE, PATIENCE_MAX_S, PATIENCE_MIN_S, Batch, Gate, Limits
from orchestrator.trace import Trace, trace_here, working_on


class Line:
    """Jobs that want a step; ``sent`` is what went through the gate, in order."""

    def __init__(self, group: int = 8, under_way: int = 16) -> None:
        self.now_s = 0.0
        self.limits = Limits(group, under_way)
        self.batches: list[Batch] = []
        self.traces: dict[str, Trace] = {}
        self.gate = Gate("unet", lambda: self.limits, self.batches.append, clock=lambda: self.now_s)
        self.sent: list[str] = []
        self.failed: dict[str, BaseException] = {}
        self.answers: dict[str, threading.Event] = {}
        self.threads: dict[str, threading.Thread] = {}
        self.broken: set[str] = set()
        self.gone: set[str] = set()

    def post(self, name: str, rows: int = 2, alone: bool = False) -> None:
        """A step of job ``name`` comes to the gate."""
        self.answers[name] = threading.Event()
        asked = threading.Event()

        def send() -> None:
            if name in self.broken:
                raise ConnectionResetError(name)
            self.sent.append(name)

        def wait(timeout_s: float) -> bool:
            asked.set()
            if name in self.gone:
                raise TimeoutError(name)
            return self.answers[name].wait(0.002)

        def job() -> None:
            try:
                with ExitStack() as entered:
                    if name in self.traces:
                        entered.enter_context(working_on(self.traces[name]))
                    entered.enter_context(self.gate.turn(name, rows, alone, send, wait))
            except OSError as error:
                self.failed[name] = error
            asked.set()

        self.threads[name] = threading.Thread(target=job)
        self.threads[name].start()
        assert asked.wait(5)

    def answer(self, *names: str) -> None:
        """The server answers these jobs."""
        for name in names:
            self.answers[name].set()
            self.threads[name].join(5)

    def round(self, *names: str) -> None:
        """One step of each of these jobs, which then expect each other: they came while another job ran."""
        self.busy()
        for name in names:
            self.post(name)
        self.gate.leave("another")
        self.answer("another")
        for name in names:
            self.later()
            eventually(lambda name=name: name in self.sent)
            self.answer(name)
        self.sent.clear()

    def busy(self) -> None:
        """Job ``another`` runs."""
        self.post("another")
        self.later()
        eventually(lambda: "another" in self.sent)

    def later(self) -> None:
        """Whoever is still waited for is late."""
        self.now_s += 10.0

    def settled(self) -> list[str]:
        """What was sent when nothing more happens."""
        time.sleep(0.02)
        return list(self.sent)


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line()
    yield line
    for name, thread in line.threads.items():
        line.answers[name].set()
        thread.join(5)


def test_a_job_alone_goes_at_once(line: Line) -> None:
    line.post("a")
    assert line.sent == ["a"]


def test_jobs_that_went_together_wait_for_each_other(line: Line) -> None:
    line.round("a", "b")
    line.post("a")
    before = line.settled()
    line.post("b")
    assert (before, sorted(line.sent)) == ([], ["a", "b"])


def test_whoever_completes_a_group_sends_for_all_of_it(line: Line) -> None:
    line.round("a", "b", "c")
    senders = []
    for name in ("a", "b", "c"):
        line.post(name)
        senders.append(len(line.sent))
    assert senders == [0, 0, 3]


def test_a_job_that_arrives_while_others_run_goes_with_them_next(line: Line) -> None:
    line.post("a")
    line.post("b")
    while_running = list(line.sent)
    line.answer("a")
    line.post("a")
    assert (while_running, line.sent) == (["a"], ["a", "b", "a"])


def test_a_late_job_is_waited_for_no_longer_than_a_share_of_a_step(line: Line) -> None:
    line.round("a", "b")
    line.post("a")
    line.now_s += PATIENCE_MAX_S * 0.9
    early = line.settled()
    line.now_s += PATIENCE_MAX_S * 0.2
    eventually(lambda: line.sent == ["a"])
    assert early == []


@pytest.mark.parametrize(("step_s", "patience_s"), [(0.2, 0.2 * PATIENCE), (0.0001, PATIENCE_MIN_S)])
def test_patience_follows_the_steps(line: Line, step_s: float, patience_s: float) -> None:
    for _ in range(2):
        line.post("a")
        line.now_s += step_s
        line.answer("a")
    line.post("a")
    line.post("b")
    line.now_s += step_s
    line.answer("a")
    line.sent.clear()
    line.now_s += patience_s * 0.9
    early = line.settled()
    line.now_s += patience_s * 0.2
    eventually(lambda: line.sent == ["b"])
    assert early == []


def test_a_job_that_let_the_others_wait_is_not_waited_for_again(line: Line) -> None:
    line.round("a", "b")
    line.post("a")
    line.later()
    eventually(lambda: line.sent == ["a"])
    line.answer("a")
    line.post("a")
    assert line.sent == ["a", "a"]


def test_a_job_that_left_is_not_waited_for(line: Line) -> None:
    line.round("a", "b")
    line.post("a")
    line.gate.leave("b")
    assert line.sent == ["a"]


def test_a_full_group_waits_for_nobody(line: Line) -> None:
    line.limits = Limits(4, 8)
    line.round("a", "b", "c")
    line.post("a")
    line.post("b")
    assert sorted(line.sent) == ["a", "b"]


def test_a_full_group_queues_behind_one_that_runs_and_a_part_of_one_does_not(line: Line) -> None:
    line.limits = Limits(4, 8)
    for name in "abcd":
        line.post(name)
    first = list(line.sent)
    line.post("e")
    assert (first, line.settled()) == (["a", "b", "c"], ["a", "b", "c"])


def test_no_more_rows_are_under_way_than_fit(line: Line) -> None:
    line.limits = Limits(4, 4)
    for name in "abcdef":
        line.post(name)
    assert line.settled() == ["a"]
    line.answer("a")
    eventually(lambda: line.sent == ["a", "b", "c"])


def test_a_call_larger_than_a_group_goes_alone(line: Line) -> None:
    line.limits = Limits(1, 1)
    line.post("a", rows=2)
    line.post("b", rows=2)
    line.answer("a")
    eventually(lambda: line.sent == ["a", "b"])


def test_where_not_all_fit_the_older_jobs_go_first(line: Line) -> None:
    line.limits = Limits(4, 4)
    line.round("a", "b", "c", "d")
    line.busy()
    for name in "dcba":
        line.post(name)
    line.sent.clear()
    line.answer("another")
    line.later()
    eventually(lambda: line.sent == ["a", "b"])


def test_a_job_s_first_step_goes_before_those_of_older_jobs(line: Line) -> None:
    line.limits = Limits(4, 4)
    line.round("a", "b", "c")
    line.busy()
    for name in ("a", "b", "c", "new"):
        line.post(name)
    line.sent.clear()
    line.answer("another")
    line.later()
    eventually(lambda: line.sent == ["new", "a"])


def test_a_call_that_wants_to_be_alone_has_no_neighbour(line: Line) -> None:
    line.limits = Limits(4, 8)
    line.post("a")
    line.post("b", alone=True)
    line.gate.leave("a")
    line.post("c")
    line.answer("a")
    eventually(lambda: line.sent == ["a", "b"])
    assert line.settled() == ["a", "b"]
    line.answer("b")
    line.later()
    eventually(lambda: line.sent == ["a", "b", "c"])


def test_what_went_wrong_while_another_sent_for_a_job_is_raised_where_it_waits(line: Line) -> None:
    line.round("a", "b")
    line.broken = {"a"}
    line.post("a")
    line.post("b")
    eventually(lambda: "a" in line.failed)
    assert line.sent == ["b"]


def test_a_job_that_gives_up_does_not_hold_the_others(line: Line) -> None:
    line.limits = Limits(4, 4)
    line.post("a")
    line.post("b")
    line.gone = {"a"}
    eventually(lambda: "a" in line.failed)
    line.later()
    eventually(lambda: "b" in line.sent)
    assert isinstance(line.failed["a"], TimeoutError)


def test_every_group_is_told_with_its_rows_and_seconds(line: Line) -> None:
    line.round("a", "b")
    line.batches.clear()
    line.post("a")
    line.post("b", rows=1)
    line.now_s += 0.5
    line.answer("a", "b")
    assert line.batches == [Batch("unet", rows=3, members=2, seconds=0.5)]


def test_a_batch_tells_the_attempts_whose_rows_it_held_whoever_completed_it(line: Line) -> None:
    line.traces = {name: Trace(f"{i:032x}", f"{i:016x}") for i, name in enumerate("ab", start=1)}
    line.round("a", "b", "c")
    line.batches.clear()
    for name in "abc":
        line.post(name)
    line.answer("a", "b", "c")
    (batch,) = line.batches
    assert (batch.members, set(batch.traces)) == (3, set(line.traces.values()))


def test_an_attempt_is_its_threads_alone_and_over_with_its_work() -> None:
    heard: list[Trace | None] = []
    with working_on(Trace("1" * 32, "2" * 16)):
        elsewhere = threading.Thread(target=lambda: heard.append(trace_here()))
        elsewhere.start()
        elsewhere.join()
        heard.append(trace_here())
    assert heard == [None, Trace("1" * 32, "2" * 16)]
    assert trace_here() is None
