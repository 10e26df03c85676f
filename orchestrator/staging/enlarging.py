"""A staged picture at its photograph's own size: furniture enlarged by a network, the rest the photograph itself."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from orchestrator.staging.accounts import Tier
from orchestrator.staging.masks import FEATHER_PX, inwards
from orchestrator.staging.planes import BILINEAR, NEAREST, resized

Upscale = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""[1,h,w,3] to [1,kh,kw,3]."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Enlarging:
    """What enlarges pictures, and the tiers that get theirs at the photograph's size."""

    upscale: Upscale
    tiers: frozenset[Tier]


def enlarged(
    staged: NDArray[np.uint8], full: NDArray[np.uint8], mask: NDArray[np.bool_], upscale: Upscale
) -> tuple[NDArray[np.uint8], bool]:
    """``staged`` [h,w,3] inside the mask, at the size of the photograph ``full`` [H,W,3], which it is elsewhere to the
    byte; and whether the network had to be asked, which it is not where the photograph is no larger.
    """
    (height, width), (tall, wide) = staged.shape[:2], full.shape[:2]
    asked = tall > height or wide > width
    source = Image.fromarray(upscale(staged[None])[0] if asked else staged)
    large = np.asarray(source.resize((wide, tall), Image.Resampling.LANCZOS), dtype=np.uint8)
    inside = resized(mask.astype(np.float32), wide, tall, NEAREST) > 0.5
    share = resized(inwards(mask, FEATHER_PX), wide, tall, BILINEAR)
    done = full.copy()
    # Only the mask's pixels are computed: of a large photograph that is a third.
    old = full[inside].astype(np.float32)
    done[inside] = np.rint(old + share[inside][:, None] * (large[inside] - old)).astype(np.uint8)
    return done, asked
