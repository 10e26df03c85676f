"""What a measure must reach: every threshold of the scores, with its reason. docs/decisions.md has the error rates."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Limit:
    """A measure of ``bad`` scores 0 and one of ``good`` 1; ``sentence`` says what is wrong below a score of a half."""

    bad: float
    good: float
    sentence: str

    def score(self, measure: float) -> float:
        """0 to 1, 0.5 halfway between bad and good."""
        return min(1.0, max(0.0, (measure - self.bad) / (self.good - self.bad)))


LEAST_SCORE: Final = 0.5
LIMITS: Final[Mapping[str, Limit]] = {
    "outside": Limit(0.9999, 1.0, "the photograph was changed outside the mask"),
    "seam": Limit(0.38, 0.02, "a seam runs along the mask over {measure:.0%} of the picture"),
    "lines": Limit(0.65, 0.95, "only {measure:.0%} of the room's lines go on inside the mask"),
    "depth_outside": Limit(0.12, 0.0, "the room outside the mask has another depth, by {measure:.0%} of its range"),
    "depth_border": Limit(0.16, 0.0, "the room at the mask's border has another depth, by {measure:.0%} of its range"),
    "furnished": Limit(0.0, 0.06, "there is no furniture: {measure:.1%} of the mask is covered"),
    "open": Limit(0.0, 0.2, "everything was painted over: {measure:.1%} of the mask is as it was"),
    "whole": Limit(0.4, 1.0, "only {measure:.0%} of what changed hangs together in pieces"),
    "standing": Limit(0.0, 0.8, "only {measure:.0%} of the furniture stands on the floor"),
    "size": Limit(0.2, 0.9, "only {measure:.0%} of the furniture has a size that furniture has"),
    "style": Limit(-20.0, 20.0, "the furniture looks like another style"),
    "noise": Limit(3.0, 0.0, "the furniture is noise"),
    "sharp": Limit(1.5, 7.5, "the furniture is blurred"),
    "stripes": Limit(4.0, 0.0, "there are stripes over the furniture"),
    "dead": Limit(0.06, 0.0, "{measure:.1%} of the picture is one dead colour"),
    "vivid": Limit(80.0, 20.0, "the furniture has colours that no room has"),
}
