"""What is known of a room before anybody stages it: how far everything is, and where furniture may stand."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from orchestrator.errors import GenerationFailed
from orchestrator.imaging.opencv import Shapes
from orchestrator.metering import metered
from orchestrator.staging.floor import find_floor
from orchestrator.staging.masks import floor_mask, within_margins
from orchestrator.staging.planes import BILINEAR, resized
from orchestrator.staging.walls import free_walls

MaskOrigin = Literal["given", "found", "floor"]
Part = Callable[[str], AbstractContextManager[None]]
"""Times what stands below it, by the name given."""
_GUESSED: Final = (
    "where the floor is could not be seen in this photograph; a usual place was taken, a mask_key is better"
)
LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """``mask`` bool [h,w] is where furniture may stand, ``origin`` who says so: the caller, the depth, or nobody.

    ``inverse_depth`` [h,w] and what it took in the network are there where one looked.
    """

    mask: NDArray[np.bool_]
    origin: MaskOrigin
    warnings: tuple[str, ...] = ()
    inverse_depth: NDArray[np.float32] | None = None
    network_s: float = 0.0


class DepthSight:
    """Inverse depth of pictures of any size, by a network that looks at squares of one size."""

    def __init__(self, look: Callable[[NDArray[np.uint8]], NDArray[np.float32]], size_px: int) -> None:
        """``look`` is given [1,s,s,3] and answers [1,s,s]."""
        self._look = look
        self._size_px = size_px

    def inverse_depth(self, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        """[h,w], larger is nearer and never negative, of uint8 [h,w,3]; the picture is squeezed into the square."""
        square = (self._size_px, self._size_px)
        seen = Image.fromarray(picture).resize(square, Image.Resampling.BICUBIC, reducing_gap=3.0)
        told = self._look(np.asarray(seen, dtype=np.uint8)[None])[0]
        stretched = resized(told.astype(np.float32), picture.shape[1], picture.shape[0], BILINEAR)
        return np.maximum(stretched, 0.0)


class Surveyor:
    """Looks at photographs that networks of our own will stage. Threads may share one."""

    def __init__(self, sight: DepthSight | None, shapes: Shapes) -> None:
        self._sight = sight
        self._shapes = shapes

    def survey(self, picture: NDArray[np.uint8], given: NDArray[np.bool_] | None, part: Part) -> Survey:
        """What is known of uint8 [h,w,3]; where its depth cannot be told the staging goes on without."""
        told, network_s = self._told(picture, part)
        with part("mask"):
            if given is None and told is not None:
                found = find_mask(picture, told, self._shapes)
            else:
                found = unseen(picture, given)
        warnings = (_GUESSED,) if found.origin == "floor" else ()
        return replace(found, inverse_depth=told, network_s=network_s, warnings=warnings)

    def _told(self, picture: NDArray[np.uint8], part: Part) -> tuple[NDArray[np.float32] | None, float]:
        if self._sight is None:
            return None, 0.0
        with part("depth"), metered() as meter:
            try:
                return self._sight.inverse_depth(picture), meter.seconds
            except GenerationFailed as error:
                LOG.warning("a photograph is staged without its depth: %s", error)
                return None, meter.seconds


def unseen(picture: NDArray[np.uint8], given: NDArray[np.bool_] | None) -> Survey:
    """What is known where nobody looks at the picture: the caller's mask, or a usual place."""
    return Survey(floor_mask(*picture.shape[:2]), "floor") if given is None else Survey(given, "given")


def find_mask(picture: NDArray[np.uint8], inverse_depth: NDArray[np.float32], shapes: Shapes) -> Survey:
    """The floor of uint8 [h,w,3] and what of its walls furniture may cover; a usual place where no floor is found."""
    floor = find_floor(inverse_depth, shapes)
    if floor is None:
        return unseen(picture, None)
    mask = within_margins(floor.region | free_walls(picture, inverse_depth, floor, shapes))
    # What is left between a door and a corner is too narrow for anything to stand there.
    mask = shapes.opened(mask, max(1, max(mask.shape) // 100))
    return Survey(mask, "found") if mask.any() else unseen(picture, None)
