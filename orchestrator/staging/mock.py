"""A provider that needs no model: furniture as outlines, and MOCK written across them."""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from orchestrator.staging.provider import StagedPicture, Task, Watch

REVISION: Final = "mock-1"
TURNS: Final = 10
_INKS: Final = ((214, 73, 51), (46, 112, 158), (94, 140, 60), (150, 84, 160), (196, 140, 30))
# Pieces as fractions of the mask's box: left, top, right, bottom.
_PIECES: Final = (
    (0.10, 0.15, 0.55, 0.62),
    (0.10, 0.40, 0.55, 0.75),
    (0.62, 0.45, 0.92, 0.80),
    (0.30, 0.80, 0.70, 0.95),
    (0.72, 0.05, 0.80, 0.45),
)


class MockProvider:
    """Draws the same outlines for the same task, in ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def stage(self, task: Task, watch: Watch) -> StagedPicture:
        """Outlines inside the mask's box, in an ink that the seed chooses."""
        for turn in range(TURNS if self._seconds else 0):
            watch.wait(self._seconds / TURNS)
            watch.report(100 * (turn + 1) // TURNS)
        watch.check()
        return StagedPicture(
            pixels=_outlined(task.picture, task.mask, task.seed), provider="mock", model_rev=REVISION, mock=True
        )

    def not_ready(self) -> str | None:
        """Always ready."""
        return None


def _outlined(picture: NDArray[np.uint8], mask: NDArray[np.bool_], seed: int) -> NDArray[np.uint8]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    height, width = int(rows[-1]) - top + 1, int(columns[-1]) - left + 1
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    rng = np.random.default_rng(seed)
    ink, line = _INKS[seed % len(_INKS)], max(2, min(width, height) // 80)
    for piece in _PIECES:
        shift = float(rng.uniform(-0.04, 0.04))
        box = (
            left + (piece[0] + shift) * width,
            top + piece[1] * height,
            left + (piece[2] + shift) * width,
            top + piece[3] * height,
        )
        # Pillow refuses round corners that do not fit beside each other.
        radius = min(line * 3, (box[2] - box[0]) / 2 - line, (box[3] - box[1]) / 2 - line)
        draw.rounded_rectangle(box, radius=max(0, radius), outline=ink, width=line)
    font = ImageFont.load_default(size=max(12, width / 7))
    draw.text((left + width / 2, top + height / 2), "MOCK", fill=ink, font=font, anchor="mm")
    return np.array(canvas, dtype=np.uint8)
