"""How far up furniture may reach in front of a wall, and where it may not stand: windows, doors, what is built in.

All heights are in camera heights, the one measure that a picture of a room brings: from a floor point up to the horizon
is one, at that point's distance.
"""

from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from orchestrator.imaging.opencv import Shapes
from orchestrator.staging.floor import Floats, Floor
from orchestrator.staging.scores.lab import lab

REACH: Final = 0.9
# Above the skirting board and below window sills a wall shows its own colour, but for doors.
_BARE: Final = (0.10, 0.45)
_SAMPLES: Final = 12
# A step of about 2 in Lab is just seen; daylight fades by less than this over a wall, a pane or a leaf differs more.
_OTHER: Final = 8.0
_EDGE: Final = 2.5
# Doors are 0.6 to 1.3 m wide, seen from 1.1 to 1.7 m; a narrower piece of wall tells too little of its colour.
_DOOR: Final = 1.1
_NARROWEST_WALL: Final = 0.1
_BENDS: Final = 0.012
# What stands keeps its distance upwards within this share; a counter or a ledge does not.
_STANDS: Final = 0.1
_MOST_OFF: Final = 0.12


def free_walls(
    picture: NDArray[np.uint8], inverse_depth: NDArray[np.float32], floor: Floor, shapes: Shapes
) -> NDArray[np.bool_]:
    """The pixels above the floor's far edge that furniture may cover, bool [h,w]."""
    height = len(floor.region)
    walls = _walls(floor)
    rows = np.arange(height)[:, None]
    edge = np.nan_to_num(floor.edge_row, nan=-1.0)
    rise = np.maximum(edge - floor.horizon_row, 1.0)
    band = (rows < edge) & (rows >= edge - REACH * rise) & (walls >= 0)
    colours = lab(picture)
    paint = _paint(colours, walls, edge, rise)
    band[:, _built_in(inverse_depth, floor.horizon_row, edge, rise) | _doors(colours, walls, paint, edge, rise)] = False
    other = np.linalg.norm(colours - paint[None], axis=-1) > _OTHER
    above = (rows < edge - _BARE[0] * rise) & (rows > floor.horizon_row - rise) & (walls >= 0)
    return band & (rows > _sills(other & above, shapes))


def _walls(floor: Floor) -> NDArray[np.int64]:
    """The number of the wall behind each column [w], -1 where there is no floor before one.

    A wall meets the floor in a straight line, so a new one begins where the floor's edge bends or jumps.
    """
    width = len(floor.edge_row)
    found = np.full(width, -1)
    number = 0
    known = np.flatnonzero(~np.isnan(floor.edge_row))
    runs = np.split(known, np.flatnonzero(np.diff(known) > 1) + 1) if len(known) else []
    for run in runs:
        for start, stop in _straight(floor.edge_row[run], _BENDS * len(floor.region)):
            if stop - start >= _NARROWEST_WALL * width:
                found[run[start:stop]] = number
                number += 1
    return found


def _straight(edge: Floats, within_px: float) -> list[tuple[int, int]]:
    """Where a line of rows [n] is straight: split at its farthest point from the chord (Ramer, 1972)."""
    if len(edge) < 3:
        return [(0, len(edge))]
    off = np.abs(edge - np.linspace(edge[0], edge[-1], len(edge)))
    if off.max() <= within_px:
        return [(0, len(edge))]
    at = int(np.clip(off.argmax(), 1, len(edge) - 2))
    after = [(start + at, stop + at) for start, stop in _straight(edge[at:], within_px)]
    return _straight(edge[: at + 1], within_px) + after


def _paint(colours: NDArray[np.float32], walls: NDArray[np.int64], edge: Floats, rise: Floats) -> NDArray[np.float32]:
    """The colour of the wall behind each column, Lab [w,3]: what most of its foot has, along a line of light."""
    bare = _bare(colours, edge, rise)
    found = bare.copy()
    for wall in range(walls.max() + 1):
        own = np.flatnonzero(walls == wall)
        middle = np.median(bare[own], axis=0)
        # Light falls off along a wall; twice over, what is another thing has no say in how.
        for _ in range(2):
            like = own[np.linalg.norm(bare[own] - middle, axis=1) < _OTHER]
            if len(like) < len(own) / 4:
                break
            at = (own - own[0]) / max(len(own) - 1, 1)
            known = np.stack([(like - own[0]) / max(len(own) - 1, 1), np.ones(len(like))], axis=1)
            line = np.linalg.lstsq(known, bare[like], rcond=None)[0]
            middle = np.stack([at, np.ones(len(own))], axis=1) @ line
        found[own] = middle
    return found


def _bare(colours: NDArray[np.float32], edge: Floats, rise: Floats) -> NDArray[np.float32]:
    """The median colour of each column between skirting board and window sill, Lab [w,3]."""
    heights = np.linspace(*_BARE, _SAMPLES)[:, None]
    rows = np.clip(np.rint(edge - heights * rise), 0, len(colours) - 1).astype(int)
    found: NDArray[np.float32] = np.median(colours[rows, np.arange(colours.shape[1])], axis=0).astype(np.float32)
    return found


def _built_in(inverse_depth: NDArray[np.float32], horizon_row: Floats, edge: Floats, rise: Floats) -> NDArray[np.bool_]:
    """Columns [w] in which what meets the floor is lower than the camera: counters, radiators, steps."""
    shares = np.linspace(0.06, 1.0, 24)[:, None]
    rows = np.clip(np.rint(edge - shares * rise), 0, len(inverse_depth) - 1).astype(int)
    told = inverse_depth[rows, np.arange(inverse_depth.shape[1])]
    foot = np.median(told[:6], axis=0)
    off = np.abs(told / np.maximum(foot, 1e-9) - 1) > _STANDS
    return np.asarray(off.mean(axis=0) > _MOST_OFF, np.bool_)


def _doors(
    colours: NDArray[np.float32], walls: NDArray[np.int64], paint: NDArray[np.float32], edge: Floats, rise: Floats
) -> NDArray[np.bool_]:
    """Columns [w] of doors: another colour than the wall's down to the floor, or two edges that reach down to it."""
    bare = _bare(colours, edge, rise)
    width = len(bare)
    found = (np.linalg.norm(bare - paint, axis=1) > _OTHER) & (walls >= 0)
    step = np.zeros(width)
    step[2:-2] = np.linalg.norm(bare[4:] - bare[:-4], axis=1)
    for wall in range(walls.max() + 1):
        own = np.flatnonzero(walls == wall)
        margin = max(3, len(own) // 50)
        inner = own[margin:-margin]
        sharp = inner[step[inner] > _EDGE]
        # Of a door that the picture cuts off only one edge is seen.
        cut = [end for end, beyond in ((own[0], own[0] - 1), (own[-1], own[-1] + 1)) if _is_cut(walls, beyond)]
        edges = np.sort(np.concatenate([sharp, cut])).astype(int) if len(sharp) else sharp
        for first, last in pairwise(edges):
            if last - first <= _DOOR * max(rise[first], rise[last]):
                found[max(0, first - 2) : last + 3] = True
    return _grown(_wider(found, 0.1 * rise), max(1, width // 100))


def _is_cut(walls: NDArray[np.int64], column: int) -> bool:
    """Whether a wall goes on beyond ``column`` and its foot is not seen."""
    return not 0 <= column < len(walls) or bool(walls[column] < 0)


def _wider(columns: NDArray[np.bool_], least_px: Floats) -> NDArray[np.bool_]:
    """Without runs of columns that are narrower than what is given for where they begin: corners and cables."""
    found = columns.copy()
    ends = np.flatnonzero(np.diff(np.concatenate([[0], columns.astype(np.int8), [0]])))
    for first, beyond in zip(ends[::2], ends[1::2], strict=True):
        if beyond - first < least_px[first]:
            found[first:beyond] = False
    return found


def _grown(columns: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    return np.convolve(columns, np.ones(2 * reach + 1), mode="same") > 0


def _sills(other: NDArray[np.bool_], shapes: Shapes) -> Floats:
    """The lowest row of a window in each column [w], -1 where there is none; what is small is a socket or a shadow."""
    height = len(other)
    reach = max(1, max(other.shape) // 100)
    labels, stats = shapes.pieces(shapes.closed(other, reach))
    large = np.flatnonzero(stats[:, 4] >= 0.002 * other.size)
    windows = np.isin(labels, large[large > 0])
    lowest = np.where(windows.any(axis=0), height - 1 - windows[::-1].argmax(axis=0) + 2 * reach, -1)
    spread = np.lib.stride_tricks.sliding_window_view(np.pad(lowest, reach, mode="edge"), 2 * reach + 1)
    return np.asarray(spread.max(axis=1), np.float64)
