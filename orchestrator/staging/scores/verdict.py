"""All scores of a staged picture, and whether they are good enough together."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.staging.request import StagingStyle
from orchestrator.staging.scores.artefacts import artefacts
from orchestrator.staging.scores.furniture import furniture
from orchestrator.staging.scores.limits import LEAST_SCORE, LIMITS
from orchestrator.staging.scores.pieces import Mask
from orchestrator.staging.scores.scene import Scene, Sight, scene_of
from orchestrator.staging.scores.structure import structure
from orchestrator.staging.scores.style import StyleScores, adherence

NO_DEPTH = "depth was not compared, since no depth network is built; where the floor ends was guessed"
NO_STYLES = "the style was not judged, since STAGING_STYLE_SCORES is not set"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Scores from 0 to 1 by name, the sentences of those below a half, and sentences on what was not judged."""

    scores: Mapping[str, float]
    reasons: Mapping[str, str]
    unjudged: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every score is half or more."""
        return not self.reasons

    @property
    def worst(self) -> float:
        """The lowest score, which is what pictures that fail are compared by."""
        return min(self.scores.values())


@dataclass(frozen=True, slots=True, eq=False)
class Judge:
    """Judges pictures; threads may share one. Without ``sight`` or ``styles`` it judges less, and says so."""

    sight: Sight | None = None
    styles: StyleScores | None = None

    def verdict(
        self,
        working: NDArray[np.uint8],
        staged: NDArray[np.uint8],
        mask: Mask,
        style: StagingStyle | None,
        *,
        told: NDArray[np.float32] | None = None,
    ) -> Verdict:
        """On a staged picture and the photograph it was made from, uint8 [h,w,3]; ``mask`` is bool [h,w].

        ``told`` is the photograph's inverse depth [h,w] where it is known already.
        """
        scene = scene_of(working, staged, mask, self.sight, told)
        measures = measures_of(scene)
        unjudged = [] if self.sight is not None else [NO_DEPTH]
        if self.styles is None or style is None:
            unjudged.append(NO_STYLES)
        else:
            measures |= adherence(scene, style, self.styles)
        return verdict_on(measures, tuple(unjudged))


def measures_of(scene: Scene) -> dict[str, float]:
    """Everything but the style, as :mod:`~orchestrator.staging.scores.limits` names it."""
    return structure(scene) | furniture(scene) | artefacts(scene)


def verdict_on(measures: Mapping[str, float], unjudged: tuple[str, ...] = ()) -> Verdict:
    """The scores of measures, and what is wrong with them."""
    scores = {name: round(LIMITS[name].score(measure), 3) for name, measure in measures.items()}
    reasons = {
        name: LIMITS[name].sentence.format(measure=measures[name])
        for name, score in scores.items()
        if score < LEAST_SCORE
    }
    return Verdict(scores=scores, reasons=reasons, unjudged=unjudged)
