"""Where a room's floor is, out of how far everything is.

The inverse depth of a plane is linear over the picture, 1/Z = a x + b y + c, and a floor's grows downwards. Where it is
zero is the plane's horizon, at the height of the camera; the same holds up to scale for networks that tell inverse
depth in no unit. A wall and the floor agree along the line where they meet, and nowhere else.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from orchestrator.imaging.opencv import Shapes

Floats = NDArray[np.float64]
_SEED: Final = 0
_TRIES: Final = 400
_GRID: Final = 120
_FIRSTS: Final = np.array([0.0, 0.5, 0.75])
# Of what may be floor: below this share of the height, tilted to a side by less than this, vanishing between these.
_BELOW: Final = 0.35
_MOST_TILT: Final = 0.35
_VANISHES: Final = (0.15, 0.75)
# Networks such as MiDaS tell inverse depth but for a shift, which moves the plane's zero. Eyes are not elsewhere.
_HORIZON: Final = (0.30, 0.65)
# Depth networks are off by several percent, and evenly so over large areas; a wall's foot is a fifth off soon above it.
_NEAR: Final = 0.06
_CLOSEST: Final = 0.01
_TOLERANCE: Final = 0.2
# Where a column is looked at, in camera heights: the wall above its foot, from the horizon, and the floor before it.
_ABOVE: Final = np.linspace(0.35, 0.8, 9)
_BEFORE: Final = np.linspace(0.25, 0.55, 7)
_FARTHEST: Final = 0.45
MOST_RESIDUAL: Final = 0.1
LEAST_SHARE: Final = 0.05
_USUAL: Final = 0.46
_HALF_SURE: Final = 0.025
_MUCH: Final = 0.6


@dataclass(frozen=True, slots=True, eq=False)
class Floor:
    """``region`` bool [h,w] is the floor that is seen.

    By column [w]: ``edge_row`` is where it ends at the back, NaN where there is none, and ``horizon_row`` where it
    would vanish. From there to any of its points is the camera's height, at that point's distance. ``plane`` [h,w] is
    the inverse depth that the floor has or would have, ``residual`` how far half of it is off, as a share.
    """

    region: NDArray[np.bool_]
    edge_row: Floats
    horizon_row: Floats
    plane: Floats
    residual: float


def find_floor(inverse_depth: NDArray[np.float32], shapes: Shapes) -> Floor | None:
    """The floor in inverse depth [h,w], larger is nearer; None where no plane fits that could be one.

    It must fit within 4 % at its median and cover a twentieth of the picture.
    """
    fitted = _fitted(inverse_depth)
    if fitted is None:
        return None
    height, width = inverse_depth.shape
    plane = _over(fitted, inverse_depth.shape)
    ratio = inverse_depth / np.where(plane > 0, plane, np.nan)
    region = _lowest(np.abs(ratio - 1) <= _TOLERANCE, shapes)
    if region is None:
        return None
    horizon_row = _horizon(fitted, ratio[region], height, width)
    edge_row = _edges(inverse_depth, plane, region, horizon_row)
    region &= np.arange(height)[:, None] >= np.nan_to_num(edge_row, nan=height)
    residual = float(np.median(np.abs(ratio[region] - 1))) if region.any() else np.inf
    if residual > MOST_RESIDUAL or region.mean() < LEAST_SHARE:
        return None
    return Floor(region=region, edge_row=edge_row, horizon_row=horizon_row, plane=plane, residual=residual)


def _edges(inverse_depth: NDArray[np.float32], plane: Floats, region: NDArray[np.bool_], horizon_row: Floats) -> Floats:
    """The row of each column [w] where the floor meets what stands on it, NaN where there is no floor.

    What stands keeps its distance upwards and the floor does not. A network tells both wrong by much the same where
    they meet, so how the floor just before it is told takes that out.
    """
    height, width = region.shape
    columns = np.arange(width)
    top = region.argmax(axis=0).astype(np.float64)
    rise = np.maximum(top - horizon_row, 1.0)

    def looked_up(values: Floats, rows: Floats) -> Floats:
        found: Floats = values[np.clip(np.rint(rows), 0, height - 1).astype(int), columns]
        return found

    told = inverse_depth.astype(np.float64)
    standing = np.median(looked_up(told, horizon_row + _ABOVE[:, None] * rise), axis=0)
    before = top + _BEFORE[:, None] * rise
    wrong = np.median(looked_up(told, before) / np.maximum(looked_up(plane, before), 1e-9), axis=0)
    slope = plane[-1] - plane[-2]
    met = height - 1 + (standing / np.maximum(wrong, 1e-9) - plane[-1]) / slope
    edge = np.where((met > top - 2) & (met < top + _FARTHEST * rise), np.maximum(met, top), top)
    edge = np.where(region.any(axis=0) & (edge < height - 1), edge, np.nan)
    return _smoothed(edge, max(1, width // 100))


def _fitted(inverse_depth: NDArray[np.float32]) -> Floats | None:
    """a, b, c of the plane most of the lower picture agrees with (RANSAC, Fischler and Bolles, 1981), then refined."""
    height, width = inverse_depth.shape
    step = max(1, max(height, width) // _GRID)
    rows, columns = np.mgrid[int(height * _BELOW) : height : step, 0:width:step]
    points = np.stack([columns.ravel() / height, rows.ravel() / height, np.ones(rows.size)], axis=1)
    told = inverse_depth[rows.ravel(), columns.ravel()].astype(np.float64)
    points, told = points[told > 0], told[told > 0]
    if len(told) < 3:
        return None
    # Rows ascend: every other try looks at the lower part only, where even a floor of a few percent is most of it.
    first = len(told) * np.resize(_FIRSTS, _TRIES)[:, None]
    tries = (first + np.random.default_rng(_SEED).random((_TRIES, 3)) * (len(told) - first)).astype(int)
    sound = np.abs(np.linalg.det(points[tries])) > 1e-4
    planes = np.linalg.solve(points[tries[sound]], told[tries[sound]][..., None])[..., 0]
    # What vanishes where eyes are is believed unless something else fits far better.
    found = [
        max((_support(points @ plane / told - 1), tuple(plane)) for plane in likely)
        for likely in (planes[_may_be_floor(planes, width / height, range_)] for range_ in (_HORIZON, _VANISHES))
        if len(likely)
    ]
    if not found:
        return None
    best = np.array(found[0][1] if found[0][0] >= _MUCH * found[-1][0] else found[-1][1])
    tolerance = 2 * _NEAR
    for _ in range(6):
        off = np.abs(points @ best / told - 1)
        agree = off < tolerance
        # Ever closer, as far as what is told allows: the foot of every wall is nearly right.
        tolerance = max(_CLOSEST, 2 * float(np.median(off[agree]))) if agree.any() else tolerance
        # By the inverse of the depth told, so that what is far counts as much as what is near.
        weighted = points[agree] / told[agree, None]
        best = np.linalg.lstsq(weighted, np.ones(len(weighted)), rcond=None)[0]
    return best if bool(_may_be_floor(best[None], width / height)[0]) else None


def _support(beyond: Floats) -> int:
    """How many points agree with a plane that is ``beyond`` them by these shares; exact ones count threefold.

    Nothing is seen under a floor, so what would be speaks against the plane.
    """
    off = np.abs(beyond)
    agreeing = np.count_nonzero(off < _NEAR) + 2 * np.count_nonzero(off < _NEAR / 3)
    return int(agreeing) - 2 * int(np.count_nonzero(beyond > 3 * _NEAR))


def _may_be_floor(planes: Floats, aspect: float, between: tuple[float, float] = _VANISHES) -> NDArray[np.bool_]:
    """Which planes [n,3] grow downwards, lie nearly level and vanish ``between`` these shares of the height."""
    across, down, rest = planes.T
    with np.errstate(divide="ignore", invalid="ignore"):
        vanishes = -(rest + across * aspect / 2) / down
    level = (down > 0) & (np.abs(across) <= _MOST_TILT * down)
    return np.asarray(level & (vanishes > between[0]) & (vanishes < between[1]), np.bool_)


def _over(plane: Floats, shape: tuple[int, ...]) -> Floats:
    height, width = shape
    found: Floats = plane[0] * np.arange(width)[None, :] / height + plane[1] * np.arange(height)[:, None] / height
    return np.asarray(found + plane[2], np.float64)


def _horizon(plane: Floats, ratio: Floats, height: int, width: int) -> Floats:
    """Where the plane is zero, by column; the less it fits, the nearer to where eyes mostly are."""
    zero = -(plane[2] + plane[0] * np.arange(width) / height) / plane[1]
    sure = 1 / (1 + (float(np.median(np.abs(ratio - 1))) / _HALF_SURE) ** 2)
    return np.asarray(np.clip(sure * zero + (1 - sure) * _USUAL, *_HORIZON) * height, np.float64)


def _lowest(mask: NDArray[np.bool_], shapes: Shapes) -> NDArray[np.bool_] | None:
    """The largest piece of the mask that reaches down to the picture's last tenth, small holes filled."""
    reach = max(1, max(mask.shape) // 200)
    mask = shapes.opened(shapes.closed(mask, reach), reach)
    labels, stats = shapes.pieces(mask)
    reaching = np.unique(labels[-max(1, len(mask) // 10) :])
    reaching = reaching[reaching > 0]
    if not len(reaching):
        return None
    largest = reaching[int(np.argmax(stats[reaching, 4]))]
    return np.asarray(labels == largest, np.bool_)


def _smoothed(values: Floats, reach: int) -> Floats:
    """Running medians over 2 reach + 1 entries; NaN stays NaN and has no say."""
    padded = np.pad(values, reach, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
    known = ~np.isnan(values)
    found = np.full(len(values), np.nan)
    found[known] = np.nanmedian(windows[known], axis=1)
    return found
