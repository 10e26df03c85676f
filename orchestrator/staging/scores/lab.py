"""Colours as people tell them apart, smoothed and differenced: what every score looks through."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]
_TO_XYZ: Final = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE_D65: Final = np.array([0.95047, 1.0, 1.08883])
_CODES: Final = np.arange(256) / 255
_LINEAR: Final = np.where(_CODES <= 0.04045, _CODES / 12.92, ((_CODES + 0.055) / 1.055) ** 2.4).astype(np.float32)
_KNEE: Final = (6 / 29) ** 3


def lab(picture: NDArray[np.uint8]) -> Plane:
    """CIE Lab of sRGB uint8 [h,w,3]: float32 [h,w,3], lightness 0 to 100, a step of about 2 is just seen."""
    xyz = _LINEAR[picture] @ (_TO_XYZ.T / _WHITE_D65).astype(np.float32)
    f = np.where(xyz > _KNEE, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1).astype(np.float32)


def chroma(colours: Plane) -> Plane:
    """How far from grey Lab [...,3] is; 0 to about 130, painted walls are below 20."""
    return np.hypot(colours[..., 1], colours[..., 2])


def smoothed(values: Plane, reach_px: int) -> Plane:
    """Means over squares of 2 reach + 1 px, of [h,w] or [h,w,c]; the border is continued outwards."""
    size = 2 * reach_px + 1
    for axis in (0, 1):
        ends = [(0, 0)] * values.ndim
        ends[axis] = (reach_px, reach_px)
        wide, length = np.moveaxis(np.pad(values, ends, mode="edge"), axis, 0), values.shape[axis]
        total = wide[:length].copy()
        for offset in range(1, size):
            total += wide[offset : offset + length]
        values = np.moveaxis(total * np.float32(1 / size), 0, axis)
    return values


def gradient(values: Plane) -> tuple[Plane, Plane]:
    """Change per px downwards and to the right, of [h,w]."""
    down, right = (np.asarray(part, np.float32) for part in np.gradient(values))
    return down, right


def dilated(mask: NDArray[np.bool_], reach_px: int) -> NDArray[np.bool_]:
    """The mask grown by a square of 2 reach + 1 px."""
    grown = mask.copy()
    for axis in (0, 1):
        lines, reached = np.moveaxis(grown, axis, 0), 0
        while reached < reach_px:
            step = min(reached + 1, reach_px - reached)
            before = lines.copy()
            lines[step:] |= before[:-step]
            lines[:-step] |= before[step:]
            reached += step
    return grown


def eroded(mask: NDArray[np.bool_], reach_px: int) -> NDArray[np.bool_]:
    """The mask shrunk by a square of 2 reach + 1 px; the picture's own border does not shrink it."""
    return ~dilated(~mask, reach_px)
