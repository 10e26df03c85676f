"""A provider whose pictures are scored before anybody sees them: one that fails is made again, differently."""

import hashlib
import logging
from dataclasses import dataclass, replace
from typing import Final, Protocol

from orchestrator.errors import RemarqueError
from orchestrator.staging.masks import composite
from orchestrator.staging.provider import Provider, StagedPicture, Task, Watch
from orchestrator.staging.routing import Mode
from orchestrator.staging.scores.verdict import Judge, Verdict

# Each picture made again moves less far away from the photograph: most of what fails changed too much.
WEAKER: Final = 0.85
LEAST_STRENGTH: Final = 0.4
# Another picture is only begun where so many times the first one's duration is left, and some seconds to store it.
MARGIN: Final = 1.2
RESERVE_S: Final = 3.0
LOG = logging.getLogger(__name__)


class Listen(Protocol):
    """Hears of every picture that was judged; ``attempt`` is 0 for the first one of a task."""

    def judged(self, provider: Mode, verdict: Verdict, attempt: int) -> None: ...


@dataclass(frozen=True, slots=True, eq=False)
class _Made:
    """A picture, the task it was made by and what was thought of it."""

    task: Task
    staged: StagedPicture
    verdict: Verdict

    @property
    def rank(self) -> tuple[bool, float, float]:
        """More is better."""
        scores = self.verdict.scores.values()
        return self.verdict.passed, self.verdict.worst, sum(scores) / len(scores)


class JudgedProvider:
    """Stages by another provider. ``gate`` makes failed pictures again, up to ``retries`` times, and warns of the rest;
    without it scores are only told. Pictures that are mocks are not judged."""

    def __init__(self, provider: Provider, judge: Judge, listen: Listen, *, gate: bool, retries: int) -> None:
        self._provider = provider
        self._judge = judge
        self._listen = listen
        self._gate = gate
        self._retries = retries if gate else 0

    def not_ready(self) -> str | None:
        """What the provider says."""
        return self._provider.not_ready()

    def stage(self, task: Task, watch: Watch) -> StagedPicture:
        """The first picture that passes, or the best one; its scores are its ``quality``."""
        begun_left_s = watch.left_s()
        staged = self._provider.stage(task, watch)
        if staged.mock:
            return staged
        made = [self._made(task, staged, watch, 0)]
        took_s = begun_left_s - watch.left_s()
        while len(made) <= self._retries and not made[-1].verdict.passed:
            if watch.left_s() < MARGIN * took_s + RESERVE_S:
                LOG.info("no time was left to make a picture again that scored badly")
                break
            more = self._again(task, watch, len(made))
            if more is None:
                break
            made.append(more)
        return self._answer(task, made)

    def _again(self, task: Task, watch: Watch, attempt: int) -> _Made | None:
        """Another picture of the same task; None where the provider fails, since there is a picture already."""
        changed = another(task, attempt)
        try:
            return self._made(changed, self._provider.stage(changed, _Silent(watch)), watch, attempt)
        except RemarqueError as error:
            watch.check()
            LOG.warning("a picture that scored badly could not be made again: %s", error)
            return None

    def _made(self, task: Task, staged: StagedPicture, watch: Watch, attempt: int) -> _Made:
        pixels = composite(task.picture, staged.pixels, task.mask)
        try:
            verdict = self._judge.verdict(task.picture, pixels, task.mask, task.style, told=task.inverse_depth)
        except RemarqueError as error:
            watch.check()
            LOG.warning("a picture was judged without its depth: %s", error)
            verdict = replace(self._judge, sight=None).verdict(task.picture, pixels, task.mask, task.style)
        self._listen.judged(staged.provider, verdict, attempt)
        return _Made(task, staged, verdict)

    def _answer(self, task: Task, made: list[_Made]) -> StagedPicture:
        best = max(made, key=lambda one: one.rank)
        warnings = best.staged.warnings
        if self._gate and not best.verdict.passed:
            tries = f"it is the best of {len(made)}" if len(made) > 1 else "it was not made again"
            warnings = (*warnings, f"quality: {'; '.join(best.verdict.reasons.values())}; {tries}")
        return replace(
            best.staged,
            # Everything that was made is paid for.
            gpu_s=sum(one.staged.gpu_s for one in made),
            warnings=warnings,
            quality=best.verdict.scores,
            task=best.task if best.task is not task else best.staged.task,
        )


def another(task: Task, attempt: int) -> Task:
    """The task with another seed, that follows from the first one, and less strength; attempts count from 1."""
    digest = hashlib.sha256(f"{task.seed}:{attempt}".encode()).digest()
    weaker = max(min(task.strength, LEAST_STRENGTH), task.strength * WEAKER**attempt)
    return replace(task, key=f"{task.key}-{attempt}", seed=int.from_bytes(digest[:4], "big"), strength=round(weaker, 4))


class _Silent:
    """A watch that hears of no progress: what was reported for the first picture would go backwards."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self.check = watch.check
        self.wait = watch.wait
        self.nudge = watch.nudge
        self.left_s = watch.left_s

    def report(self, percent: int) -> None:
        """Nothing."""
