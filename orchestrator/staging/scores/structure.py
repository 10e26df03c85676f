"""Whether the room is still the same room: outside the mask, along its border, and where its lines run into it."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from orchestrator.staging.scores.lab import Plane, dilated, eroded, gradient, smoothed
from orchestrator.staging.scores.pieces import Mask, pieces_of
from orchestrator.staging.scores.scene import Scene

# Lab units by which the step over the mask's border must have grown to be seen as a seam.
STEP_LAB: Final = 5.0
# How far to both sides of the border one looks: beyond what a composite blends, 8 px in a picture of 1024.
SEAM_PX: Final = 4.0
# Share of the picture at its sides and below in which masks leave a margin.
FRAME: Final = 0.05
# Lab units per px from which something is a line, and the px it is followed outwards and inwards.
LINE_LAB: Final = 1.6
OUTWARDS_PX: Final = 10
INWARDS_PX: Final = 18
HIDING_PX: Final = 6


def structure(scene: Scene) -> dict[str, float]:
    """Measures, all shares: of pixels ``outside`` and of ``lines`` kept, and of the diagonal the longest ``seam``."""
    measures = {"outside": scene.outside_kept, "seam": _seam(scene), "lines": _lines(scene)}
    if scene.depths is not None:
        measures |= _depths(scene, *scene.depths)
    return measures


def _border(mask: Mask) -> Mask:
    """The mask's outermost pixels, without those at the picture's border."""
    return mask & dilated(~mask, 1)


def _normals(mask: Mask, at: NDArray[np.intp]) -> Plane:
    """Unit vectors [n,2] of rows and columns from border pixels [n,2] into the mask."""
    down, right = gradient(smoothed(mask.astype(np.float32), 3))
    found: Plane = np.stack([down, right], axis=-1)[tuple(at.T)]
    found /= np.maximum(np.linalg.norm(found, axis=-1, keepdims=True), 1e-6)
    return found


def _sampled(values: Plane | Mask, places: Plane) -> NDArray[np.float32]:
    """Values at the nearest pixels to [...,2] rows and columns; beyond the picture its border goes on."""
    height, width = values.shape[:2]
    rows = np.clip(np.rint(places[..., 0]).astype(np.intp), 0, height - 1)
    columns = np.clip(np.rint(places[..., 1]).astype(np.intp), 0, width - 1)
    return np.asarray(values[rows, columns], np.float32)


def _seam(scene: Scene) -> float:
    at = np.argwhere(_border(scene.mask) & _away_from_frame(scene.mask.shape))
    if not len(at):
        return 0.0
    inward = _normals(scene.mask, at) * SEAM_PX
    steps = []
    for colours in (scene.before, scene.after):
        soft = smoothed(colours, 1)
        steps.append(np.linalg.norm(_sampled(soft, at + inward) - _sampled(soft, at - inward), axis=-1))
    new = np.zeros(scene.mask.shape, np.bool_)
    new[tuple(at[steps[1] - steps[0] > STEP_LAB].T)] = True
    longest = [np.hypot(piece.bottom - piece.top, piece.right - piece.left) for piece in pieces_of(new, 4)]
    return float(max(longest, default=0.0) / np.hypot(*scene.mask.shape))


def _away_from_frame(shape: tuple[int, ...]) -> Mask:
    """Where nothing ends because the picture does: furniture that goes on beyond it ends at the mask's margin."""
    height, width = shape
    away = np.zeros((height, width), np.bool_)
    side, near = round(FRAME * width), round(FRAME * height)
    away[: height - near, side : width - side] = True
    return away


def _tensor(colours: Plane) -> tuple[Plane, Plane]:
    """Strength of edges in Lab units per px [h,w], and the unit vectors along them [h,w,2], rows and columns."""
    parts = [gradient(colours[..., channel]) for channel in range(3)]
    down2 = smoothed(sum((down**2 for down, _ in parts), start=np.zeros(1, np.float32)), 1)
    right2 = smoothed(sum((right**2 for _, right in parts), start=np.zeros(1, np.float32)), 1)
    mixed = smoothed(sum((down * right for down, right in parts), start=np.zeros(1, np.float32)), 1)
    across = 0.5 * np.arctan2(2 * mixed, right2 - down2)
    return np.sqrt(down2 + right2), np.stack([np.cos(across), -np.sin(across)], axis=-1)


def _lines(scene: Scene) -> float:
    """Of long lines that run into the mask, the share that goes on there or goes behind furniture; 1 without lines."""
    strength, along = _tensor(scene.before)
    at = np.argwhere(_border(scene.mask) & (strength > LINE_LAB))
    if not len(at):
        return 1.0
    inward, tangent = _normals(scene.mask, at), along[tuple(at.T)]
    crossing = (inward * tangent).sum(axis=-1)
    tangent = tangent * np.sign(crossing)[:, None]
    steps = np.arange(-OUTWARDS_PX, INWARDS_PX + 1)
    places = at[:, None, :] + steps[None, :, None] * tangent[:, None, :]
    straight = np.abs((_sampled(along, places) * tangent[:, None, :]).sum(axis=-1)) > 0.94
    there = (_sampled(strength, places) > 0.5 * strength[tuple(at.T)][:, None]) & straight
    long = (np.abs(crossing) > 0.35) & (there.mean(axis=1) > 0.85)
    inside = (_sampled(scene.mask, places) > 0) & (steps > 2) & there & long[:, None]
    if not inside.any():
        return 1.0
    weak, _ = _tensor(scene.after)
    kept = _sampled(_widened(weak), places) > 0.4 * _sampled(strength, places)
    # What is narrower hides no line, but may be one that was moved.
    furniture = dilated(eroded(scene.changed, HIDING_PX), HIDING_PX + 3)
    kept |= _sampled(furniture, places) > 0
    return float(kept[inside].mean())


def _widened(strength: Plane) -> Plane:
    """The largest strength within 1 px, since a line may be off by one."""
    wide = np.pad(strength, 1, mode="edge")
    widest: Plane = np.lib.stride_tricks.sliding_window_view(wide, (3, 3)).max(axis=(-1, -2))
    return widest


def _depths(scene: Scene, before: Plane, after: Plane) -> dict[str, float]:
    """Mean error of inverse depth, as a share of its range, outside the mask and where the bare room goes on in it."""
    outside = ~dilated(scene.mask, 4)
    near = dilated(scene.mask, 9) & ~eroded(scene.mask, 9) & ~dilated(scene.changed, 4)
    aligned = _aligned(after, before, outside if outside.mean() > 0.05 else ~dilated(scene.changed, 4))
    low, high = np.percentile(before[::2, ::2], (2, 98))
    error = np.abs(aligned - before) / max(float(high - low), 1e-6)
    return {
        "depth_outside": float(error[outside].mean()) if outside.any() else 0.0,
        "depth_border": float(error[near].mean()) if near.any() else 0.0,
    }


def _aligned(values: Plane, to: Plane, where: Mask) -> Plane:
    """Scaled and shifted by least squares, as depth networks leave both unknown."""
    x, y = values[where].astype(np.float64), to[where].astype(np.float64)
    if len(x) < 2 or x.std() < 1e-9:
        return values
    scale, shift = np.polyfit(x, y, 1)
    return np.asarray(scale * values + shift, np.float32)
