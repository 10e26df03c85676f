"""A staged picture beside the room it was made from, at the size that scores look at, with what they all need."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from orchestrator.staging.floor import Floor
from orchestrator.staging.scores.ground import Ground, ground_of
from orchestrator.staging.scores.lab import Plane, dilated, eroded, lab, smoothed
from orchestrator.staging.scores.pieces import Mask, Piece, pieces_of

# Scores mean the same at every size only where they are taken at one.
LONGEST_PX: Final = 384
# Lab distance of smoothed colours from which something else is there: what an autoencoder does to a wall stays below.
CHANGED_LAB: Final = 9.0
LEAST_PIECE: Final = 0.002


@dataclass(frozen=True, slots=True, eq=False)
class Sight:
    """``depth`` tells inverse depth, float32 [h,w] in any unit, of uint8 [h,w,3]; ``floor`` finds the floor in it."""

    depth: Callable[[NDArray[np.uint8]], NDArray[np.float32]]
    floor: Callable[[NDArray[np.float32]], Floor | None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scene:
    """``before`` and ``after`` are Lab [h,w,3], ``changed`` [h,w] is where furniture may be.

    ``covered`` is that without lines and specks, ``pieces`` what of it hangs together; the depths are None where no
    network tells them.
    """

    before: Plane
    after: Plane
    mask: Mask
    changed: Mask
    covered: Mask
    pieces: tuple[Piece, ...]
    ground: Ground
    outside_kept: float
    depths: tuple[Plane, Plane] | None


def scene_of(
    working: NDArray[np.uint8],
    staged: NDArray[np.uint8],
    mask: Mask,
    sight: Sight | None = None,
    told: NDArray[np.float32] | None = None,
) -> Scene:
    """What the scores look at; ``working`` and ``staged`` are uint8 [h,w,3], ``mask`` [h,w] says what may differ.

    ``told`` is the inverse depth of ``working`` where it is known already.
    """
    same = np.logical_and.reduce([working[..., channel] == staged[..., channel] for channel in range(3)])[~mask]
    small = [_small(picture) for picture in (working, staged)]
    small_mask = np.asarray(_sized(Image.fromarray(mask.astype(np.uint8) * 255))) >= 128
    before, after = lab(small[0]), lab(small[1])
    apart = np.linalg.norm(smoothed(after - before, 1), axis=-1)
    changed = (apart > CHANGED_LAB) & small_mask
    covered = dilated(eroded(changed, 2), 2) & changed
    least_px = round(LEAST_PIECE * changed.size)
    depths = None
    if sight is not None:
        known = sight.depth(working) if told is None else told
        depths = _plane(known, before), _plane(sight.depth(staged), before)
    floor = None if sight is None or depths is None else sight.floor(depths[0])
    return Scene(
        before=before,
        after=after,
        mask=small_mask,
        changed=changed,
        covered=covered,
        pieces=pieces_of(changed, least_px),
        ground=ground_of(floor, *changed.shape),
        outside_kept=float(same.mean()) if same.size else 1.0,
        depths=depths,
    )


def _small(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(_sized(Image.fromarray(picture)))


def _sized(image: Image.Image) -> Image.Image:
    scale = min(1.0, LONGEST_PX / max(image.size))
    size = (round(image.width * scale), round(image.height * scale))
    return image if size == image.size else image.resize(size, Image.Resampling.BOX)


def _plane(values: NDArray[np.float32], like: Plane) -> Plane:
    height, width = like.shape[:2]
    image = Image.fromarray(np.ascontiguousarray(values, np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32)
