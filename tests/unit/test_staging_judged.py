"""The gate around a provider: what is made again, how, for how long, and what is said of what never passes."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from orchestrator.errors import Cancelled, ModelUnavailable, RemarqueError
from orchestrator.staging.judged import LEAST_STRENGTH, JudgedProvider, another
from orchestrator.staging.prompts import Wording
from orchestrator.staging.provider import StagedPicture, Task
from orchestrator.staging.routing import Mode
from orchestrator.staging.scores.scene import Sight
from orchestrator.staging.scores.verdict import Judge, Verdict
from orchestrator.staging_telemetry import StagingTelemetry

TASK = Task(
    key="k",
    picture=np.zeros((32, 32, 3), np.uint8),
    mask=np.ones((32, 32), np.bool_),
    wording=Wording("a", "b"),
    seed=7,
    strength=0.8,
    guidance_scale=6,
    style="modern",
)


class Clock:
    """A watch whose time only passes when a provider says so."""

    def __init__(self, left_s: float = 100.0) -> None:
        self.left = left_s
        self.ended: RemarqueError | None = None
        self.reports: list[int] = []

    def check(self) -> None:
        if self.ended is not None:
            raise self.ended

    def wait(self, seconds: float) -> None:
        self.left -= seconds

    def nudge(self) -> None: ...

    def left_s(self) -> float:
        return self.left

    def report(self, percent: int) -> None:
        self.reports.append(percent)


class Painter:
    """Fills pictures with the next grey; each takes ten seconds. An error in place of a grey is raised."""

    def __init__(self, *greys: int | RemarqueError, mock: bool = False) -> None:
        self.greys = list(greys)
        self.tasks: list[Task] = []
        self.mock = mock

    def stage(self, task: Task, watch: Clock) -> StagedPicture:
        self.tasks.append(task)
        watch.wait(10)
        watch.report(50)
        grey = self.greys.pop(0)
        if isinstance(grey, RemarqueError):
            raise grey
        pixels = np.full_like(task.picture, grey)
        return StagedPicture(pixels=pixels, provider="managed", model_rev="v1", gpu_s=2.0, mock=self.mock)

    def not_ready(self) -> str | None:
        return "it warms up"


class ByGrey(Judge):
    """Scores a picture by how light it is; a half passes."""

    def verdict(self, working, staged, mask, style, *, told=None) -> Verdict:
        if self.sight is not None:
            raise ModelUnavailable("no depth")
        score = float(staged[16, 16, 0]) / 200
        return Verdict(scores={"light": score}, reasons={} if score >= 0.5 else {"light": "it is dark"})


class Heard:
    def __init__(self) -> None:
        self.verdicts: list[tuple[bool, int]] = []

    def judged(self, provider: Mode, verdict: Verdict, attempt: int) -> None:
        self.verdicts.append((verdict.passed, attempt))


def gate(painter: Painter, retries: int = 1, *, gate: bool = True, judge: Judge | None = None) -> JudgedProvider:
    return JudgedProvider(painter, judge or ByGrey(), Heard(), gate=gate, retries=retries)


def test_a_picture_that_passes_is_made_once_and_tells_its_scores():
    painter = Painter(200)
    staged = gate(painter).stage(TASK, Clock())
    assert (len(painter.tasks), staged.quality, staged.warnings, staged.task) == (1, {"light": 1.0}, (), None)


def test_a_picture_that_fails_is_made_again_with_another_seed_and_less_strength():
    painter = Painter(20, 200)
    staged = gate(painter).stage(TASK, Clock())
    first, second = painter.tasks
    assert (second.seed != first.seed, second.strength, second.key) == (True, 0.68, "k-1")
    assert (staged.pixels[0, 0, 0], staged.task, staged.warnings) == (200, second, ())


def test_everything_that_was_made_is_paid_for():
    assert gate(Painter(20, 200)).stage(TASK, Clock()).gpu_s == 4.0


def test_the_best_is_kept_with_a_warning_where_none_passes():
    staged = gate(Painter(60, 80, 20), retries=2).stage(TASK, Clock())
    assert (staged.quality, staged.warnings) == ({"light": 0.4}, ("quality: it is dark; it is the best of 3",))


def test_the_first_is_kept_where_making_it_again_made_it_worse():
    staged = gate(Painter(60, 20)).stage(TASK, Clock())
    assert (staged.pixels[0, 0, 0], staged.task) == (60, None)


def test_retries_follow_from_the_seed_so_that_another_attempt_makes_the_same():
    assert [another(TASK, n).seed for n in (1, 2)] == [another(TASK, n).seed for n in (1, 2)]
    assert len({TASK.seed, another(TASK, 1).seed, another(TASK, 2).seed}) == 3


def test_strength_is_not_lowered_below_what_still_makes_furniture():
    assert another(TASK, 9).strength == LEAST_STRENGTH


def test_a_strength_that_was_asked_for_below_that_is_kept():
    assert another(replace(TASK, strength=0.3), 1).strength == 0.3


@pytest.mark.parametrize(("left_s", "made"), [(24.0, 1), (26.0, 2)])
def test_nothing_is_made_again_where_the_deadline_would_pass(left_s: float, made: int):
    painter = Painter(20, 200)
    gate(painter).stage(TASK, Clock(left_s))
    assert len(painter.tasks) == made


def test_retries_end_at_the_first_that_passes():
    painter = Painter(20, 200, 200)
    gate(painter, retries=2).stage(TASK, Clock())
    assert len(painter.tasks) == 2


def test_without_retries_a_bad_picture_says_that_it_was_not_made_again():
    assert gate(Painter(20), retries=0).stage(TASK, Clock()).warnings == ("quality: it is dark; it was not made again",)


def test_a_provider_that_fails_on_the_way_leaves_the_first_picture():
    staged = gate(Painter(60, ModelUnavailable("down"))).stage(TASK, Clock())
    assert staged.pixels[0, 0, 0] == 60


def test_a_provider_that_fails_at_first_fails():
    with pytest.raises(ModelUnavailable):
        gate(Painter(ModelUnavailable("down"))).stage(TASK, Clock())


def test_a_job_that_is_cancelled_meanwhile_ends():
    watch, painter = Clock(), Painter(20, Cancelled("stop"))
    watch.wait = lambda seconds: setattr(watch, "ended", Cancelled("stop"))  # type: ignore[method-assign]
    with pytest.raises(Cancelled):
        gate(painter).stage(TASK, watch)


def test_progress_does_not_go_backwards_while_a_picture_is_made_again():
    watch = Clock()
    gate(Painter(20, 200)).stage(TASK, watch)
    assert watch.reports == [50]


def test_reports_only_tell():
    painter = Painter(20, 200)
    staged = gate(painter, gate=False).stage(TASK, Clock())
    assert (len(painter.tasks), staged.quality, staged.warnings) == (1, {"light": 0.1}, ())


def test_mocks_are_not_judged():
    assert gate(Painter(20, mock=True)).stage(TASK, Clock()).quality is None


def test_a_depth_network_that_fails_costs_the_depth_and_not_the_picture():
    def lost(picture: np.ndarray) -> np.ndarray:
        raise ModelUnavailable("no depth")

    assert gate(Painter(200), judge=ByGrey(Sight(lost, lambda told: None))).stage(TASK, Clock()).quality == {"light": 1}


def test_every_picture_is_told_to_who_listens():
    heard = Heard()
    JudgedProvider(Painter(20, 200), ByGrey(), heard, gate=True, retries=1).stage(TASK, Clock())
    assert heard.verdicts == [(False, 0), (True, 1)]


def test_metrics_count_pictures_and_what_was_wrong_with_them():
    def lines(scores: Mapping[str, float], reasons: Mapping[str, str], attempt: int) -> str:
        telemetry = StagingTelemetry()
        telemetry.judged("managed", Verdict(scores=scores, reasons=reasons), attempt)
        return telemetry.page().decode()

    page = lines({"seam": 0.1}, {"seam": "a seam"}, 1)
    assert 'remarque_staging_judged_total{attempt="again",outcome="failed",provider="managed"} 1.0' in page
    assert 'remarque_staging_faults_total{provider="managed",score="seam"} 1.0' in page


def test_readiness_is_the_providers():
    assert gate(Painter()).not_ready() == "it warms up"
