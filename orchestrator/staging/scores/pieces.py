"""What hangs together in a mask."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Connected pixels: where they are, bool [h,w], and their box in px, ``bottom`` and ``right`` not included."""

    where: Mask
    area_px: int
    top: int
    left: int
    bottom: int
    right: int


def pieces_of(mask: Mask, least_px: int) -> tuple[Piece, ...]:
    """The connected pieces (by sides and corners) of at least so many pixels, largest first."""
    labels = _labels(mask)
    areas = np.bincount(labels.ravel())
    found = []
    for label in np.argsort(-areas[1:], kind="stable") + 1:
        if areas[label] < least_px:
            break
        where = labels == label
        rows, columns = np.flatnonzero(where.any(axis=1)), np.flatnonzero(where.any(axis=0))
        box = (int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)
        found.append(Piece(where, int(areas[label]), *box))
    return tuple(found)


def _labels(mask: Mask) -> NDArray[np.intp]:
    """A number from 1 for each piece, 0 outside: runs of each row, joined with those of the row above."""
    height, width = mask.shape
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)
    ends = np.nonzero(edges == -1)[1]
    parents = list(range(len(rows)))
    firsts = np.searchsorted(rows, np.arange(height + 1))
    for row in range(1, height):
        i, j = int(firsts[row - 1]), int(firsts[row])
        above, here = j, int(firsts[row + 1])
        while i < above and j < here:
            if starts[i] <= ends[j] and starts[j] <= ends[i]:
                _join(parents, i, j)
            if ends[i] < ends[j]:
                i += 1
            else:
                j += 1
    roots = np.array([_root(parents, run) for run in range(len(rows))], dtype=np.intp)
    numbers = np.unique(roots, return_inverse=True)[1] + 1
    marks = np.zeros((height, width + 1), np.intp)
    np.add.at(marks, (rows, starts), numbers)
    np.add.at(marks, (rows, ends), -numbers)
    return np.cumsum(marks, axis=1)[:, :width]


def _join(parents: list[int], one: int, other: int) -> None:
    a, b = _root(parents, one), _root(parents, other)
    parents[max(a, b)] = min(a, b)


def _root(parents: list[int], run: int) -> int:
    while parents[run] != run:
        parents[run] = run = parents[parents[run]]
    return run
