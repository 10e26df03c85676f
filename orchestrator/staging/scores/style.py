"""Whether the furniture has the style that was asked for, by linear discriminants over its colours.

What was learned belongs to the pictures it was learned from, and so to one model: another model's furniture of the same
style has other statistics. Without a file of one's own the style is not judged.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import ConfigError
from orchestrator.staging.request import STAGING_STYLES, StagingStyle
from orchestrator.staging.scores.lab import chroma, gradient
from orchestrator.staging.scores.scene import Scene

HUES: Final = 8
FEATURES: Final = 12 + HUES
# Colours below this chroma have no hue worth counting.
COLOURED: Final = 10.0
LEAST_PX: Final = 60
Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class StyleScores:
    """Discriminants: a row of ``weights`` [styles, features] and an offset for each style."""

    weights: Numbers
    offsets: Numbers

    def likeness(self, numbers: Numbers) -> dict[StagingStyle, float]:
        """How near features are to each style; differences are log odds."""
        return dict(zip(STAGING_STYLES, (self.weights @ numbers + self.offsets).tolist(), strict=True))


def adherence(scene: Scene, wanted: StagingStyle, scores: StyleScores) -> dict[str, float]:
    """The measure ``style``: log odds of the wanted style against the likeliest other one."""
    numbers = features(scene)
    if numbers is None:
        return {}
    likeness = scores.likeness(numbers)
    own = likeness.pop(wanted)
    return {"style": own - max(likeness.values())}


def features(scene: Scene) -> Numbers | None:
    """What a style shows in, of the pixels that furniture covers; None where there are too few."""
    where = scene.covered
    if where.sum() < LEAST_PX:
        return None
    colours, down_right = scene.after[where], gradient(scene.after[..., 0])
    light, vivid = colours[:, 0] / 100, chroma(colours) / 100
    hue = np.arctan2(colours[:, 2], colours[:, 1]) % (2 * np.pi)
    coloured = vivid > COLOURED / 100
    bins = np.minimum((hue / (2 * np.pi) * HUES).astype(int), HUES - 1)
    hues = np.bincount(bins[coloured], weights=vivid[coloured], minlength=HUES) / len(vivid)
    steep = np.hypot(*down_right)[where]
    return np.array(
        [
            *np.percentile(light, (10, 50, 90)),
            *np.percentile(vivid, (25, 50, 90)),
            *(colours[:, 1:].mean(axis=0) / 100),
            (light < 0.25).mean(),
            ((light > 0.82) & ~coloured).mean(),
            light.std(),
            np.log(steep.mean() + 0.1) / 4,
            *hues,
        ],
        dtype=np.float64,
    )


def load_styles(path: Path) -> StyleScores:
    """Discriminants as :mod:`demo.rooms.learn_scores` writes them; raises :class:`ConfigError`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        names, weights, offsets = found["styles"], np.array(found["weights"]), np.array(found["offsets"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"STAGING_STYLE_SCORES {path} cannot be read: {error!r}") from None
    shape = (len(STAGING_STYLES), FEATURES)
    if names != list(STAGING_STYLES) or weights.shape != shape or offsets.shape != shape[:1]:
        raise ConfigError(f"STAGING_STYLE_SCORES {path} does not hold {shape[0]} styles by {shape[1]} features")
    return StyleScores(weights.astype(np.float64), offsets.astype(np.float64))
