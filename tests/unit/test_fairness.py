from dataclasses import dataclass

import pytest

from orchestrator.backlog import SECONDS_PER_PRIORITY, Backlog
from orchestrator.job import Progress
from orchestrator.progress import ProgressLane, milestones


@dataclass(frozen=True)
class One:
    name: str
    user: object = None
    style: object = None
    priority: int = 0


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def order(backlog: Backlog[One], running: tuple[One, ...] = ()) -> str:
    names, busy = "", list(running)
    while (chosen := backlog.take(busy)) is not None:
        names += chosen.name
        busy.append(chosen)
    return names


def test_jobs_of_nobody_in_particular_start_in_their_order(clock: Clock) -> None:
    backlog: Backlog[One] = Backlog(clock)
    for name in "abc":
        backlog.put(One(name))
    assert order(backlog) == "abc"


def test_a_user_with_many_jobs_does_not_starve_one_with_few(clock: Clock) -> None:
    backlog: Backlog[One] = Backlog(clock)
    for name in "abcd":
        backlog.put(One(name, user=1))
    backlog.put(One("z", user=2))
    assert order(backlog, running=(One("r", user=1),)) == "zabcd"


def test_a_style_with_many_jobs_does_not_starve_another(clock: Clock) -> None:
    backlog: Backlog[One] = Backlog(clock)
    for name in "ab":
        backlog.put(One(name, style="ink"))
    backlog.put(One("z", style="night"))
    assert order(backlog) == "azb"


def test_higher_priority_goes_first(clock: Clock) -> None:
    backlog: Backlog[One] = Backlog(clock)
    backlog.put(One("low"))
    backlog.put(One("HIGH", priority=3))
    assert order(backlog) == "HIGHlow"


def test_waiting_outweighs_priority_in_the_end(clock: Clock) -> None:
    backlog: Backlog[One] = Backlog(clock)
    backlog.put(One("patient", priority=-10))
    clock.now_s = 21 * SECONDS_PER_PRIORITY
    backlog.put(One("urgent", priority=10**9))
    assert order(backlog) == "patienturgent"


def test_a_drained_backlog_is_empty_and_in_order(clock: Clock) -> None:
    backlog: Backlog[One] = Backlog(clock)
    for name in "ab":
        backlog.put(One(name))
    assert [one.name for one in backlog.drain()] == ["a", "b"]
    assert backlog.take([]) is None


def reached(total: int) -> list[tuple[int, int]]:
    before, seen = -1, []
    for done in range(1, total + 1):
        seen += [(done, percent) for percent in milestones(done, before, total)]
        before = done
    return seen


def test_milestones_of_fifty_steps_fall_on_their_steps() -> None:
    assert reached(50) == [(1, 0), (13, 25), (25, 50), (38, 75), (45, 90)]


@pytest.mark.parametrize("total", [1, 2, 3, 4, 7, 100, 150])
def test_every_milestone_is_reached_once_and_in_order(total: int) -> None:
    assert [percent for _, percent in reached(total)] == [0, 25, 50, 75, 90]


def test_a_resumed_job_does_not_repeat_its_milestones() -> None:
    assert list(milestones(31, 30, 50)) == []
    assert list(milestones(38, 37, 50)) == [75]


def milestone(percent: int) -> Progress:
    return Progress(generation_id=1, current_step=0, total_steps=1, progress_percent=percent, estimated_seconds=None)


def test_a_lane_sends_in_order_and_nothing_after_its_close() -> None:
    sent: list[int] = []
    lane = ProgressLane(lambda event: sent.append(event.progress_percent))
    for percent in (0, 25, 50):
        lane.put(milestone(percent))
    lane.close(5.0)
    assert sent == [0, 25, 50]


def test_a_lane_that_is_late_drops_what_it_has_not_begun_to_send() -> None:
    import threading

    begun, go, sent = threading.Event(), threading.Event(), []

    def send(event: Progress) -> None:
        begun.set()
        go.wait(5.0)
        sent.append(event.progress_percent)

    lane = ProgressLane(send)
    lane.put(milestone(0))
    lane.put(milestone(25))
    assert begun.wait(5.0)
    threading.Timer(0.05, go.set).start()
    lane.close(0.0)
    assert sent == [0]
