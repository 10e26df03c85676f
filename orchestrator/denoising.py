"""Drives the denoise loop of one attempt: from its checkpoint, reporting milestones, stopping between two steps."""

import logging
import time
from contextlib import closing
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from orchestrator.attempt import Attempt, Control
from orchestrator.checkpoint import CheckpointInfo
from orchestrator.errors import GenerationFailed, RemarqueError, StorageError
from orchestrator.job import Event, Progress, Stepped
from orchestrator.ledger import Ledger
from orchestrator.pipeline import Finished, PipelineStep, Turns, step_from_bytes, step_to_bytes
from orchestrator.plan import Plan
from orchestrator.progress import milestones

LOG = logging.getLogger(__name__)


class Emit(Protocol):
    """Hears every event of a job."""

    def __call__(self, event: Event) -> None: ...


class Painter(Protocol):
    """Makes pictures out of plans: the pipeline, or what stands in for it."""

    @property
    def checkpoint(self) -> CheckpointInfo: ...

    def run(self, plan: Plan, resume: PipelineStep | None = None) -> Turns: ...


class Denoising:
    """One attempt's way through its steps; :meth:`picture` is called once."""

    def __init__(self, attempt: Attempt, plan: Plan, ledger: Ledger, emit: Emit) -> None:
        self._attempt = attempt
        self._plan = plan
        self._ledger = ledger
        self._emit = emit
        self._done = -1
        self._begun_s = time.monotonic()
        self._step_s = 0.0

    def picture(self, painter: Painter, control: Control, checkpoint_every_s: float) -> NDArray[np.uint8]:
        """The picture, [H,W,3] uint8. Where the attempt breaks but another may succeed, its last step is kept.

        Raises:
            RemarqueError: what ``control`` or a network raised.
        """
        last = self._resumed()
        kept_s = time.monotonic()
        try:
            with closing(painter.run(self._plan, last)) as turns:
                for turn in turns:
                    if isinstance(turn, Finished):
                        return turn.picture
                    last = turn
                    self._measure(turn)
                    control.check()
                    if time.monotonic() - kept_s >= checkpoint_every_s:
                        self._keep(turn)
                        kept_s = time.monotonic()
        except RemarqueError as error:
            if error.retryable and last is not None:
                self._keep(last)
            raise
        raise GenerationFailed("the denoise loop ended without a picture")

    def _measure(self, turn: PipelineStep) -> None:
        """Report the step just taken, and the milestones that it reached."""
        now_s = time.monotonic()
        seconds = now_s - self._begun_s
        self._begun_s = now_s
        # The running mean forgets slowly, so that one late batch does not make the estimate jump.
        self._step_s = seconds if self._step_s == 0.0 else self._step_s + (seconds - self._step_s) / 8
        done, generation_id = turn.index + 1, self._attempt.job.generation_id
        self._emit(Stepped(generation_id=generation_id, seconds=seconds))
        for percent in milestones(done, self._done, turn.total):
            self._emit(
                Progress(
                    generation_id=generation_id,
                    current_step=0 if percent == 0 else done,
                    total_steps=turn.total,
                    progress_percent=percent,
                    estimated_seconds=round((turn.total - done) * self._step_s, 2),
                )
            )
        self._done = done

    def _resumed(self) -> PipelineStep | None:
        """Where an earlier attempt stood; a checkpoint of another plan or format counts as none."""
        if not self._attempt.may_resume:
            return None
        generation_id = self._attempt.job.generation_id
        data = self._ledger.checkpoint(generation_id)
        step = None if data is None else step_from_bytes(data, self._plan)
        if step is not None:
            self._done = step.index + 1
            LOG.info("generation %d resumed after step %d of %d", generation_id, step.index + 1, step.total)
        return step

    def _keep(self, step: PipelineStep) -> None:
        """Keep a checkpoint; where the store fails, the job goes on and only the shortcut is lost."""
        try:
            self._ledger.save_checkpoint(self._attempt.job.generation_id, step_to_bytes(step, self._plan))
        except StorageError as error:
            LOG.warning("generation %d has no checkpoint: %s", self._attempt.job.generation_id, error)
