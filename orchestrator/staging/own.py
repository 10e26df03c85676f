"""Staging by networks of our own: the photograph repainted inside the mask, guided by its edges and its depth."""

from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from orchestrator.checkpoint import CheckpointInfo
from orchestrator.errors import GenerationFailed
from orchestrator.imaging.opencv import Shapes
from orchestrator.job import Job
from orchestrator.metering import metered
from orchestrator.pictures import ControlPicture, Pictures, SourcePicture
from orchestrator.plan import Plan, base_size, make_plan, repeats, second_strength
from orchestrator.stages import Stage, listening
from orchestrator.staging.controls import canny_picture, depth_picture
from orchestrator.staging.masks import composite
from orchestrator.staging.planes import BOX, resized
from orchestrator.staging.provider import StagedPicture, Task, Watch
from orchestrator.staging.survey import DepthSight
from orchestrator.staging.toning import toned

Paint = Callable[[Plan], Generator[tuple[int, int] | NDArray[np.uint8], None, None]]
"""A plan's picture in the making: of each step its number, from 1 on, and how many there are; then the picture."""

REVISION_DIGITS: Final = 12
_UNTOUCHED: Final = "a strength this low leaves the photograph as it is"


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnSettings:
    """``control_scales`` says by ControlNet's name how much it says, from ``control_start`` to ``control_end``."""

    steps: int
    sampler: str
    control_scales: Mapping[str, float]
    control_start: float
    control_end: float


class OwnProvider:
    """Runs one plan for each task. ``depth`` is None where no network tells it, and its ControlNet then has no say."""

    def __init__(
        self,
        paint: Paint,
        checkpoint: CheckpointInfo,
        settings: OwnSettings,
        shapes: Shapes,
        *,
        depth: DepthSight | None,
        missing: Callable[[], tuple[str, ...]],
    ) -> None:
        """``missing`` names the models that do not answer."""
        self._paint = paint
        self._checkpoint = checkpoint
        self._settings = settings
        self._shapes = shapes
        self._depth = depth
        self._missing = missing

    def not_ready(self) -> str | None:
        """Which models do not answer, if any."""
        missing = self._missing()
        return f"{', '.join(missing)} is not ready" if missing else None

    def stage(self, task: Task, watch: Watch) -> StagedPicture:
        """The photograph with furniture inside the mask; what is billed is the time of all calls of the networks.

        Raises:
            Refused: the task's size or prompt is not served, or the job was cancelled.
            GenerationFailed: a network did not fit, did not answer, took too long or answered NaN.
        """
        watch.check()
        took_s: dict[str, float] = {}

        def note(stage: Stage, began_s: float, seconds: float) -> None:
            took_s[stage] = took_s.get(stage, 0.0) + seconds

        with metered() as meter, listening(note):
            untouched = int(self._settings.steps * task.strength) < 1
            pixels = task.picture if untouched else self._furnished(task, watch)
        return StagedPicture(
            pixels=pixels,
            provider="self",
            model_rev=f"{self._checkpoint.name}+{self._checkpoint.weights_sha256[:REVISION_DIGITS]}",
            model_sha256=self._checkpoint.weights_sha256,
            gpu_s=meter.seconds,
            warnings=(_UNTOUCHED,) if untouched else (),
            parts_s=took_s,
        )

    def _furnished(self, task: Task, watch: Watch) -> NDArray[np.uint8]:
        """One pass, or, where the checkpoint would repeat its furniture, one at its own size and one to refine it."""
        height_px, width_px = task.picture.shape[:2]
        if not repeats((width_px, height_px), self._checkpoint):
            return toned(task.picture, self._painted(self._plan(task), watch, (0, 100)), task.mask)
        base = smaller(task, *base_size((width_px, height_px), self._checkpoint))
        composed = toned(base.picture, self._painted(self._plan(base), watch, (0, 50)), base.mask)
        large = Image.fromarray(composed).resize((width_px, height_px), Image.Resampling.BICUBIC)
        begun = composite(task.picture, np.array(large, dtype=np.uint8), task.mask)
        return toned(task.picture, self._painted(self._plan(task, begun), watch, (50, 100)), task.mask)

    def _painted(self, plan: Plan, watch: Watch, percents: tuple[int, int]) -> NDArray[np.uint8]:
        """The plan's picture, whose steps are reported as the share of the whole between these two ``percents``."""
        first, last = percents
        with closing(self._paint(plan)) as turns:
            for turn in turns:
                if not isinstance(turn, tuple):
                    return turn
                watch.check()
                done, total = turn
                watch.report(first + (last - first) * done // (total + 1))  # decoding is a turn, too
        raise GenerationFailed("the denoise loop ended without a picture")

    def _plan(self, task: Task, begun: NDArray[np.uint8] | None = None) -> Plan:
        """The plan of the task, or of what is still to be done where ``begun`` shows the furniture."""
        job = Job(
            generation_id=0,
            task_id=task.key,
            prompt=task.wording.prompt,
            negative_prompt=task.wording.negative_prompt,
            num_inference_steps=self._settings.steps,
            guidance_scale=task.guidance_scale,
            sampler=self._settings.sampler,
        )
        mask = _whole_cells(task.mask, self._checkpoint.vae_scale_factor).astype(np.uint8) * 255
        picture, strength = task.picture, task.strength
        if begun is not None:
            picture, strength = begun, second_strength(self._settings.steps)
        source = SourcePicture(picture=picture, strength=strength, mask=mask)
        controls = tuple(
            ControlPicture(
                name=name,
                picture=picture,
                scale=self._settings.control_scales[name],
                start=self._settings.control_start,
                end=self._settings.control_end,
            )
            for name, picture in self._seen(task).items()
        )
        return make_plan(job, self._checkpoint, lambda: task.seed, Pictures(source=source, controls=controls))

    def _seen(self, task: Task) -> dict[str, NDArray[np.uint8]]:
        """By ControlNet what it sees of the photograph; those that are not built or have no say see nothing."""
        wanted = [name for name in self._checkpoint.controls if self._settings.control_scales.get(name, 0.0) > 0]
        seen = {}
        if "canny" in wanted:
            seen["canny"] = canny_picture(task.picture, self._shapes)
        if "depth" in wanted:
            told = task.inverse_depth
            if told is None and self._depth is not None:
                told = self._depth.inverse_depth(task.picture)
            if told is not None:
                seen["depth"] = depth_picture(told)
        return seen


def smaller(task: Task, width_px: int, height_px: int) -> Task:
    """The task at another size; a pixel of the new mask is white where any of the old ones under it is."""
    picture = Image.fromarray(task.picture).resize((width_px, height_px), Image.Resampling.LANCZOS)
    share = resized(task.mask.astype(np.float32), width_px, height_px, BOX)
    told = task.inverse_depth
    return replace(
        task,
        picture=np.array(picture, dtype=np.uint8),
        mask=share > 0,
        inverse_depth=None if told is None else resized(told, width_px, height_px, BOX),
    )


def _whole_cells(mask: NDArray[np.bool_], edge_px: int) -> NDArray[np.bool_]:
    """The mask grown to whole cells of the latents: one that it touches is painted anew as a whole."""
    height, width = mask.shape
    cells = mask.reshape(height // edge_px, edge_px, width // edge_px, edge_px).any(axis=(1, 3))
    return cells.repeat(edge_px, axis=0).repeat(edge_px, axis=1)
