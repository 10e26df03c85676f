"""The floor that furniture stands on, and how long things on it are."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from orchestrator.staging.floor import Floor
from orchestrator.staging.scores.pieces import Mask

# Where no depth tells: photographs of rooms are taken level, and their floors end below the middle.
USUAL_HORIZON: Final = 0.46
USUAL_FLOOR: Final = 0.56
# Photographs of rooms are taken from 1.1 to 1.7 m.
CAMERA_M: Final = 1.45


@dataclass(frozen=True, slots=True, eq=False)
class Ground:
    """Where the floor is, bool [h,w], and the row of the horizon."""

    floor: Mask
    horizon_row: float

    def metres(self, length_px: float, foot_row: float) -> float:
        """How long something is that stands at a row: its foot is as far below the horizon as the camera is high."""
        return CAMERA_M * length_px / max(foot_row - self.horizon_row, 1.0)


def ground_of(floor: Floor | None, height_px: int, width_px: int) -> Ground:
    """The floor that was found, or the lower part of the picture."""
    if floor is None:
        rows = np.arange(height_px)[:, None] >= USUAL_FLOOR * height_px
        return Ground(np.broadcast_to(rows, (height_px, width_px)), USUAL_HORIZON * height_px)
    return Ground(floor.region, float(floor.horizon_row.mean()))
