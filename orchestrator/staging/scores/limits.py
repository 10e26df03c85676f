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
# Figures are of drawn rooms, sound and broken (demo/rooms/damages.py): a half lies between what both measure.
LIMITS: Final[Mapping[str, Limit]] = {
    # Nobody may change the photograph: a composite leaves every byte.
    "outside": Limit(0.9999, 1.0, "the photograph was changed outside the mask"),
    # Furniture that the mask cuts makes short steps; a cast over the mask runs for half of the diagonal and more.
    "seam": Limit(0.5, 0.02, "a seam runs along the mask over {measure:.0%} of the picture"),
    # Sound pictures keep nine tenths at least; a room moved aside keeps four fifths.
    "lines": Limit(0.65, 0.95, "only {measure:.0%} of the room's lines go on inside the mask"),
    # Depth networks are off by several percent themselves, and evenly so over large areas.
    "depth_outside": Limit(0.12, 0.0, "the room outside the mask has another depth, by {measure:.0%} of its range"),
    # Sound rooms reach 9 % there where the demo's network tells the depth and its mask was found by it.
    "depth_border": Limit(0.2, 0.0, "the room at the mask's border has another depth, by {measure:.0%} of its range"),
    # A stool and a plant covered 7 % of a bathroom's mask; a mock's outlines, lines left out, 0.4 %.
    "furnished": Limit(0.0, 0.06, "there is no furniture: {measure:.1%} of the mask is covered"),
    # A full room leaves a quarter of the mask as it was; a tight mask less.
    "open": Limit(0.0, 0.2, "everything was painted over: {measure:.1%} of the mask is as it was"),
    # Furniture hangs together; what is smaller than a five-hundredth of the picture is a speck.
    "whole": Limit(0.4, 1.0, "only {measure:.0%} of what changed hangs together in pieces"),
    # Two fifths are the least in sound rooms, where a print hangs over little furniture.
    "standing": Limit(0.0, 0.6, "only {measure:.0%} of the furniture stands on the floor"),
    "size": Limit(0.2, 0.9, "only {measure:.0%} of the furniture has a size that furniture has"),
    # Log odds against the likeliest other style: a small piece may lean there by 20, another style by 95 and more.
    "style": Limit(-80.0, 0.0, "the furniture looks like another style"),
    # Noise of 3 in 255 measures 0.9, noise of 20 over 4.
    "noise": Limit(3.0, 0.0, "the furniture is noise"),
    # Drawn edges are above 12, those that a small autoencoder softens above 7, blurred ones below 5.
    "sharp": Limit(1.5, 7.5, "the furniture is blurred"),
    # Slats and shelves stay below 2; stripes of 30 in 255 are at 4 and more.
    "stripes": Limit(5.0, 0.0, "there are stripes over the furniture"),
    # Plain drawn fronts reach a fiftieth of the picture.
    "dead": Limit(0.06, 0.0, "{measure:.1%} of the picture is one dead colour"),
    # A red sofa in a grey room is over 40 beyond the room.
    "vivid": Limit(80.0, 20.0, "the furniture has colours that no room has"),
}
