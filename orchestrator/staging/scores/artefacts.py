"""What networks leave behind where they fail: noise, blur, stripes, dead areas, colours no room has."""

from typing import Final

import numpy as np

from orchestrator.staging.scores.lab import Plane, chroma, dilated, eroded, gradient, smoothed
from orchestrator.staging.scores.pieces import Mask, pieces_of
from orchestrator.staging.scores.scene import Scene

_TILE_PX: Final = 8
_FINE_PX: Final = 3
_GAP_PX: Final = 4
# Drawers and slats come in threes; what networks leave behind goes on.
LEAST_TURNS: Final = 4


def artefacts(scene: Scene) -> dict[str, float]:
    """Measures of what was changed: ``noise``, ``sharp`` edges and ``stripes`` in units of lightness, ``dead`` as a
    share of the picture, ``vivid`` in units of chroma beyond what the room itself has."""
    where = scene.changed if scene.changed.any() else scene.mask
    light = scene.after[..., 0]
    return {
        "noise": max(0.0, _noise(light, where) - _noise(scene.before[..., 0], scene.mask)),
        "sharp": _sharp(light, dilated(where, 2) & scene.mask),
        "stripes": _stripes(light, where),
        "dead": _dead(scene),
        "vivid": _vivid(scene, where),
    }


def _noise(light: Plane, where: Mask) -> float:
    """Spread of the noise (Immerkaer, 1996, by the median, which edges do not move)."""
    wide = np.pad(light, 1, mode="edge")
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]])
    height, width = light.shape
    answer = sum(kernel[i, j] * wide[i : i + height, j : j + width] for i in range(3) for j in range(3))
    return float(np.median(np.abs(answer[where])) / (0.6745 * 6)) if where.any() else 0.0


def _sharp(light: Plane, where: Mask) -> float:
    """How steep the steepest twentieth of the edges is, per px."""
    down, right = gradient(light)
    steep = np.hypot(down, right)[where]
    return float(np.percentile(steep, 95)) if len(steep) else 0.0


def _stripes(light: Plane, where: Mask) -> float:
    """The largest wave that runs over whole rows or columns: its amplitude, at 3 to 32 px a turn."""
    # Without the edges of the furniture itself; stripes may be all that changed, so gaps between them count.
    where = eroded(dilated(where, _GAP_PX), _GAP_PX + _FINE_PX)
    if not where.any():
        return 0.0
    fine = np.where(where, light - smoothed(light, _FINE_PX), 0.0)
    found = 0.0
    for axis in (0, 1):
        count = where.sum(axis=axis)
        profile = (fine.sum(axis=axis) / np.maximum(count, 1))[count > 0.25 * count.max()]
        waves = 2 * np.abs(np.fft.rfft(profile)) / max(len(profile), 1)
        turns = slice(max(LEAST_TURNS, len(profile) // 32), len(profile) // 3 + 1)
        found = max(found, float(waves[turns].max(initial=0.0)))
    return found


def _dead(scene: Scene) -> float:
    """Share of the picture in the largest area of one single colour that was not one before."""
    flat = _flat(scene.after) & ~_flat(scene.before) & scene.mask
    found = pieces_of(flat, _TILE_PX**2)
    return found[0].area_px / flat.size if found else 0.0


def _flat(colours: Plane) -> Mask:
    """Where a pixel is exactly like those around it."""
    down, right = gradient(colours[..., 0])
    return ~dilated(np.hypot(down, right) > 1e-4, 2)


def _vivid(scene: Scene, where: Mask) -> float:
    if not where.any():
        return 0.0
    return float(np.percentile(chroma(scene.after[where]), 95) - np.percentile(chroma(scene.before[::2, ::2]), 95))
