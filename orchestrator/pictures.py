"""Pictures that a job brings: one to start from, with a mask of what may change, and those that guide ControlNets."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from orchestrator.checkpoint import CheckpointInfo
from orchestrator.errors import InvalidInput
from orchestrator.job import ControlRef

MAX_CONTROL_SCALE = 2.0

Picture = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcePicture:
    """The picture [h,w,3] to start from; ``strength`` is the share of the steps that it is repainted in.

    ``mask`` [h,w] is white where it may change; without one all of it may. Two with the same pixels are equal.
    """

    picture: Picture = field(repr=False, compare=False)
    strength: float
    mask: Picture | None = field(default=None, repr=False, compare=False)
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        masks = () if self.mask is None else (self.mask,)
        object.__setattr__(self, "sha256", _digest(self.picture, *masks))


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPicture:
    """What one ControlNet sees, [h,w,3]: ``name`` says which, ``scale`` how much it says.

    It has a say in the steps between the shares ``start`` and ``end`` of them.
    """

    name: str
    picture: Picture = field(repr=False, compare=False)
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha256", _digest(self.picture))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """All pictures of one job, in one size; a ControlNet is named once at most."""

    source: SourcePicture | None = None
    controls: tuple[ControlPicture, ...] = ()

    @property
    def size_px(self) -> tuple[int, int] | None:
        """Width and height of all of them; None where there are none."""
        if not self._shapes:
            return None
        height_px, width_px = self._shapes[0]
        return width_px, height_px

    @property
    def strength(self) -> float:
        return 1.0 if self.source is None else self.source.strength

    def check(self, checkpoint: CheckpointInfo) -> None:
        """Refuses pictures of different sizes and ControlNets that are not there.

        Raises:
            InvalidInput: the sentence says what is served.
        """
        if len(set(self._shapes)) > 1:
            sizes = ", ".join(f"{width}x{height}" for height, width in self._shapes)
            raise InvalidInput(f"the job's pictures and masks are {sizes} px; one size for all of them is served")
        check_controls(self.controls, checkpoint)

    @property
    def _shapes(self) -> list[tuple[int, ...]]:
        shapes = [] if self.source is None else [self.source.picture.shape[:2]]
        if self.source is not None and self.source.mask is not None:
            shapes.append(self.source.mask.shape[:2])
        return shapes + [control.picture.shape[:2] for control in self.controls]


NO_PICTURES = Pictures()


def check_controls(controls: Sequence[ControlRef | ControlPicture], checkpoint: CheckpointInfo) -> None:
    """Refuses ControlNets that are not there, and numbers that are out of range; nothing need have been fetched.

    Raises:
        InvalidInput: the sentence says what is served.
    """
    names = [control.name for control in controls]
    for control in controls:
        if control.name not in checkpoint.controls:
            served = ", ".join(checkpoint.controls) or "none"
            raise InvalidInput(f"control is {control.name[:40]!r}; {checkpoint.name} was built with {served}")
        if names.count(control.name) > 1:
            raise InvalidInput(f"control {control.name} is given {names.count(control.name)} times; once is served")
        if not 0.0 <= control.scale <= MAX_CONTROL_SCALE:
            raise InvalidInput(
                f"scale of control {control.name} is {control.scale}; 0.0 to {MAX_CONTROL_SCALE} is served"
            )
        if not 0.0 <= control.start <= control.end <= 1.0:
            raise InvalidInput(
                f"control {control.name} is to run from {control.start} to {control.end}; "
                "shares of the steps from 0.0 to 1.0 are served, the earlier one first"
            )


def _digest(*pictures: Picture) -> str:
    total = hashlib.sha256()
    for picture in pictures:
        total.update(f"{picture.shape}\0".encode())
        total.update(np.ascontiguousarray(picture).data)
    return total.hexdigest()
