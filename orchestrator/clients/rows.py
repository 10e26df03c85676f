"""How many rows go into one call: what the model declares, what fits at the picture's size, and what did not fit."""

import threading
import time
from collections.abc import Callable, Mapping

import numpy as np

from orchestrator.clients.gate import Limits
from orchestrator.clients.kserve import Array
from orchestrator.errors import DeadlineExceeded, GenerationFailed, ModelUnavailable, OutOfMemory

FORGOTTEN_AFTER_S = 600.0
ROWS_THAT_FIT, ROWS_AIMED_AT = "rows_that_fit", "rows_aimed_at"
"""Parameters in ``config.pbtxt``: rows by area in latent pixels, for example ``4096:8,16384:2``."""
_LATENT_PIXELS = 64
_USUAL_AREA = 4096

Outputs = dict[str, Array]


class RowLimits:
    """The limits of one model, by the area of its pictures in latent pixels.

    Where the model says nothing, its ``max_batch_size`` is taken to fit at 512x512, fewer rows as pictures are larger.
    An execution that did not fit into memory halves what is formed at its area and above, for ten minutes: what else
    the memory held then may be gone.
    """

    def __init__(
        self, max_rows: int, parameters: Mapping[str, str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_rows = max_rows
        self._fitting = _by_area(parameters.get(ROWS_THAT_FIT, "")) or {_USUAL_AREA: max_rows}
        self._aimed_at = _by_area(parameters.get(ROWS_AIMED_AT, ""))
        self._clock = clock
        self._learned: dict[int, tuple[int, float]] = {}
        self._known: dict[int, Limits] = {}
        self._lock = threading.Lock()

    def at(self, area: int) -> Limits:
        """A group of rows that fits and pays. Where less than ``max_batch_size`` fits, no more is under way at all."""
        if self._learned:
            return self._among(self._learned_at(area), area)
        known = self._known.get(area)
        if known is None:
            known = self._known[area] = self._among(self._max_rows, area)
        return known

    def halve(self, area: int, tried: int) -> bool:
        """Form half of ``tried`` rows from now on; False where one row alone did not fit.

        Everyone in an execution that did not fit says so, and only the first of them counts.
        """
        if self.at(area).group >= tried > 1:
            with self._lock:
                self._learned[area] = (tried // 2, self._clock() + FORGOTTEN_AFTER_S)
        return tried > 1

    def _among(self, most: int, area: int) -> Limits:
        fitting = min(most, _looked_up(self._fitting, area))
        group = min(fitting, _looked_up(self._aimed_at, area))
        return Limits(group, fitting if fitting < self._max_rows else 2 * group)

    def _learned_at(self, area: int) -> int:
        now_s = self._clock()
        with self._lock:
            self._learned = {at: entry for at, entry in self._learned.items() if entry[1] > now_s}
            return min((rows for at, (rows, _) in self._learned.items() if at <= area), default=self._max_rows)


def in_parts(array: Array, limits: RowLimits, call: Callable[[slice, bool], Outputs]) -> Outputs:
    """The outputs for all rows of ``array``, by as many calls as its rows need.

    ``call`` is given the rows and whether they must have no neighbours. What does not fit into memory is called again
    by half as many rows. What failed is called again alone: a neighbour may have been the one to blame.
    """
    area = area_of(array)
    while True:
        most = limits.at(area).group
        try:
            parts = [_part(slice(first, first + most), call) for first in range(0, len(array), most)]
        except OutOfMemory:
            if not limits.halve(area, most):
                raise
            continue
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def area_of(array: Array) -> int:
    """The picture's area in latent pixels: of latents [n,4,h,w] or pictures [n,H,W,3]; 1 for what is no picture."""
    if array.ndim != 4:
        return 1
    pixels = array.dtype == np.uint8
    height, width = array.shape[1:3] if pixels else array.shape[2:4]
    return int(height * width) // (_LATENT_PIXELS if pixels else 1)


def _part(rows: slice, call: Callable[[slice, bool], Outputs]) -> Outputs:
    try:
        return call(rows, False)
    except GenerationFailed as error:
        if isinstance(error, (DeadlineExceeded, ModelUnavailable, OutOfMemory)):
            raise
        return call(rows, True)


def _by_area(text: str) -> dict[int, int]:
    pairs = (entry.partition(":") for entry in text.replace(" ", "").split(",") if entry)
    return {int(area): int(rows) for area, _, rows in pairs}


def _looked_up(rows_by_area: Mapping[int, int], area: int) -> int:
    """The rows at the next larger area that is listed; beyond the largest, as many fewer as the area is larger."""
    if not rows_by_area:
        return 1 << 30
    larger = [at for at in rows_by_area if at >= area]
    if larger:
        return max(1, rows_by_area[min(larger)])
    largest = max(rows_by_area)
    return max(1, rows_by_area[largest] * largest // area)
