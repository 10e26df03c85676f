"""Whether there is furniture, in one piece, on the floor, of a size that furniture has."""

from typing import Final

import numpy as np

from orchestrator.staging.scores.lab import dilated, eroded
from orchestrator.staging.scores.pieces import Piece
from orchestrator.staging.scores.scene import Scene

LOWEST_M: Final = 0.2
HIGHEST_M: Final = 2.6
WIDEST_M: Final = 6.0
SOLID_PX: Final = 4
# How much of a piece's height its feet may be apart in, seen in perspective.
FEET: Final = 0.3


def furniture(scene: Scene) -> dict[str, float]:
    """Measures, all shares: of the mask that is ``furnished`` and left ``open``, of the change in ``whole`` pieces,
    and of the pieces' area what is ``standing`` and of a believable ``size``.

    Outlines furnish nothing, so only what is wider than a line counts as furnished.
    """
    solid = dilated(eroded(scene.changed, SOLID_PX), SOLID_PX) & scene.changed
    mask_px, changed_px = max(int(scene.mask.sum()), 1), int(scene.changed.sum())
    whole_px = sum(piece.area_px for piece in scene.pieces)
    return {
        "furnished": int(solid.sum()) / mask_px,
        "open": 1 - changed_px / mask_px,
        "whole": whole_px / changed_px if changed_px else 0.0,
        "standing": _share(scene, [_standing(scene, piece) for piece in scene.pieces]),
        "size": _share(scene, [_sized(scene, piece) for piece in scene.pieces]),
    }


def _share(scene: Scene, fits: list[float]) -> float:
    """Mean over the pieces, each weighing what it covers."""
    area_px = sum(piece.area_px for piece in scene.pieces)
    return sum(fit * piece.area_px for fit, piece in zip(fits, scene.pieces, strict=True)) / area_px if area_px else 0.0


def _standing(scene: Scene, piece: Piece) -> float:
    """Share of its feet that are on the floor or below the picture's edge."""
    height = scene.mask.shape[0]
    if piece.bottom >= height - 1:
        return 1.0
    columns = np.flatnonzero(piece.where.any(axis=0))
    lowest = height - 1 - np.argmax(piece.where[::-1, columns], axis=0)
    feet = lowest >= piece.bottom - 1 - FEET * (piece.bottom - piece.top)
    return float(scene.ground.floor[lowest[feet], columns[feet]].mean())


def _sized(scene: Scene, piece: Piece) -> float:
    """1 where it is as high and wide as furniture in a room is, else 0."""
    high_m = scene.ground.metres(piece.bottom - piece.top, piece.bottom)
    wide_m = scene.ground.metres(piece.right - piece.left, piece.bottom)
    return float(max(high_m, wide_m) >= LOWEST_M and high_m <= HIGHEST_M and wide_m <= WIDEST_M)
