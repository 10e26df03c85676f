"""What was asked for and what became of it.

In a :class:`Job` things may be missing; in a :class:`~orchestrator.plan.Plan` nothing is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from orchestrator.stages import Stage
from orchestrator.trace import Trace

Position = Literal["bottom-left", "bottom-center", "bottom-right", "top-left", "top-center", "top-right"]
SignatureSize = Literal["small", "medium", "large"]
PictureFormat = Literal["png", "jpeg", "webp"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StyleRef:
    """An artist's style: where its LoRA lies and how strongly it is applied."""

    path: str
    style_id: int | None = None
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SignatureRef:
    """The artist's mark: an image in the store, or the artist's name written out where there is no image."""

    path: str | None = None
    artist_name: str | None = None
    position: Position = "bottom-right"
    size: SignatureSize = "medium"
    opacity: float = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlRef:
    """The picture that guides one ControlNet: how much it says, from which share of the steps to which."""

    name: str
    path: str
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureRefs:
    """Where the pictures lie that a job brings: one to start from, its mask, and those of its ControlNets."""

    source_path: str | None = None
    strength: float
    mask_path: str | None = None
    controls: tuple[ControlRef, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One request for one picture, as a publisher, the HTTP API or the command line wrote it."""

    generation_id: int
    task_id: str
    prompt: str
    negative_prompt: str = ""
    aspect_ratio: str | None = None
    width_px: int | None = None
    height_px: int | None = None
    seed: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    sampler: str | None = None
    spacing: str | None = None
    sigmas: str | None = None
    two_pass: bool | None = None
    styles: tuple[StyleRef, ...] = ()
    pictures: PictureRefs | None = None
    signature: SignatureRef | None = None
    artist_id: int | None = None
    artist_name: str | None = None
    user_id: int | None = None
    priority: int = 0
    picture_format: PictureFormat = "png"
    webhook_url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The job left the queue and an attempt began; ``waited_s`` is told of first attempts only."""

    generation_id: int
    attempt: int
    waited_s: float | None = None
    waited_from: Literal["published", "delivered"] = "delivered"
    trace: Trace | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A milestone: ``progress_percent`` is 0, 25, 50, 75, 90 or 100; the estimate comes from measured steps."""

    generation_id: int
    current_step: int
    total_steps: int
    progress_percent: int
    estimated_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Succeeded:
    """The picture is stored under ``result_url``; ``metadata`` holds the parameters used, the seed among them."""

    generation_id: int
    result_url: str
    metadata: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """No further attempt follows; ``error_code`` is one of :mod:`orchestrator.errors`."""

    generation_id: int
    error_message: str
    error_code: str
    retry_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepped:
    """One turn of the denoise loop was taken."""

    generation_id: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """A part of the attempt is over; ``began_s`` counts from 1970."""

    generation_id: int
    stage: Stage
    began_s: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried:
    """The attempt broke and another one follows after ``delay_s``."""

    generation_id: int
    attempt: int
    error_code: str
    error_message: str
    delay_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedBack:
    """The job went back to the queue: the process stops, or broker or store did not take the attempt's end.

    The next worker goes on from its checkpoint.
    """

    generation_id: int


Event = Started | Progress | Stepped | Staged | Retried | HandedBack | Succeeded | Failed
