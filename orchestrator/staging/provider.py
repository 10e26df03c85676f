"""What a provider of staged pictures is given, what it gives back, and how it is watched meanwhile."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from orchestrator.staging.prompts import Wording
from orchestrator.staging.routing import Mode


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """One picture to make. ``key`` names it at providers, the same on every attempt.

    ``picture`` is uint8 [h,w,3] in sRGB; inside ``mask``, bool [h,w], furniture may stand. ``strength`` is 0 to 1.
    """

    key: str
    picture: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    wording: Wording
    seed: int
    strength: float
    guidance_scale: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StagedPicture:
    """Pixels of the task's size, uint8 [h,w,3]; what lies outside the mask is not used.

    ``model_sha256`` is the weights' digest, empty where a provider does not tell; ``gpu_s`` is what it bills.
    """

    pixels: NDArray[np.uint8]
    provider: Mode
    model_rev: str
    model_sha256: str = ""
    gpu_s: float = 0.0
    mock: bool = False
    warnings: tuple[str, ...] = ()


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
