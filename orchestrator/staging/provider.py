"""What a provider of staged pictures is given, what it gives back, and how it is watched meanwhile."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from orchestrator.staging.prompts import Wording
from orchestrator.staging.request import StagingStyle
from orchestrator.staging.routing import Mode

# Left over of a job's time for what follows the provider: composing, signing, storing, or the mock instead of it.
RESERVE_S: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """One picture to make. ``key`` names it at providers, the same on every attempt.

    ``picture`` is uint8 [h,w,3] in sRGB; inside ``mask``, bool [h,w], furniture may stand. ``strength`` is 0 to 1. The
    wording says the ``style`` too; it is named for those who judge the picture. ``inverse_depth`` [h,w], larger is
    nearer, is there where a network of our own looked before.
    """

    key: str
    picture: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    wording: Wording
    seed: int
    strength: float
    guidance_scale: float
    style: StagingStyle | None = None
    inverse_depth: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StagedPicture:
    """Pixels of the task's size, uint8 [h,w,3]; what lies outside the mask is not used.

    ``model_sha256`` is the weights' digest, empty where a provider does not tell; ``gpu_s`` is what it bills.
    ``quality`` holds scores from 0 to 1 by name where the picture was judged, ``task`` what was made in the end where
    that is not what was asked for: another seed, a lower strength. ``parts_s`` says how long its parts took, by name.
    """

    pixels: NDArray[np.uint8]
    provider: Mode
    model_rev: str
    model_sha256: str = ""
    gpu_s: float = 0.0
    mock: bool = False
    warnings: tuple[str, ...] = ()
    quality: Mapping[str, float] | None = None
    task: Task | None = None
    parts_s: Mapping[str, float] = field(default_factory=dict)


class Watch(Protocol):
    """The job behind a task, as far as a provider may see it."""

    def check(self) -> None:
        """Raises Cancelled or DeadlineExceeded where the job has ended; to be asked often."""

    def wait(self, seconds: float) -> None:
        """Wait, or shorter where somebody nudges; raises as :meth:`check`."""

    def nudge(self) -> None:
        """Wake whoever waits."""

    def left_s(self) -> float:
        """Seconds until the job's deadline."""

    def report(self, percent: int) -> None:
        """How much of the picture is done."""


class Provider(Protocol):
    """Makes staged pictures; threads share one. Its errors are ``retryable`` where another try may go better."""

    def stage(self, task: Task, watch: Watch) -> StagedPicture: ...

    def not_ready(self) -> str | None:
        """Why it cannot work now; None where it can."""
