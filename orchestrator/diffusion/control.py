"""When a ControlNet has a say: from which share of the steps to which, and how strongly."""

from collections.abc import Sequence
from typing import Protocol


class Window(Protocol):
    """``scale`` counts in turns that lie wholly within ``start`` and ``end``, shares of the turns from 0 to 1."""

    @property
    def scale(self) -> float: ...

    @property
    def start(self) -> float: ...

    @property
    def end(self) -> float: ...


def scales_by_turn(windows: Sequence[Window], turns: int) -> tuple[tuple[float, ...], ...]:
    """For each of ``turns`` one scale a window, 0 outside of it.

    ``turns`` are those that run: of a start from a picture, the shares are of what is left, as in diffusers.
    """
    return tuple(
        tuple(0.0 if i / turns < one.start or (i + 1) / turns > one.end else one.scale for one in windows)
        for i in range(turns)
    )
