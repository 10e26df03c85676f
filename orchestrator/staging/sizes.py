"""The size a photograph is staged at: its aspect kept, its longest side within a range, both sides on the grid."""

from dataclasses import dataclass

LEAST_PX = 768
# Sizes whose aspect is off by no more than this count as exact, and the largest of them is taken.
EXACT = 0.005


@dataclass(frozen=True, slots=True)
class Size:
    """Width and height in pixels."""

    width_px: int
    height_px: int


def working_size(original: Size, *, longest_px: int, step_px: int) -> Size:
    """The size with the least change of aspect whose longest side is 768 px to ``longest_px``, in steps of ``step_px``.

    4:3 becomes 1024x768, 3:2 960x640 and 16:9 1024x576 on a grid of 64 px: nothing is stretched and nothing cut away.
    """
    wide = original.width_px >= original.height_px
    aspect = max(original.width_px, original.height_px) / min(original.width_px, original.height_px)
    least = min(LEAST_PX, longest_px)
    first = -(-least // step_px) * step_px
    sides = range(first, max(longest_px // step_px * step_px, first) + 1, step_px)
    candidates = [(side, max(step_px, round(side / aspect / step_px) * step_px)) for side in sides]
    longest, shortest = min(candidates, key=lambda pair: (_stretch(pair, aspect), -pair[0]))
    return Size(longest, shortest) if wide else Size(shortest, longest)


def _stretch(pair: tuple[int, int], aspect: float) -> float:
    """How far the pair's aspect is off, as a fraction; 0 where nobody would see it."""
    off = abs(pair[0] / pair[1] / aspect - 1)
    return off if off > EXACT else 0.0
