"""A job's styles as one row of the UNet's ``style`` input: the low-rank factors of every styled layer, end to end.

For each layer in the graph's order the row holds ``down [in, rank]`` and then ``up [rank, out]``, so that the layer
gives ``base(x) + (x @ down) @ up``. Scale and weight are in ``up``; lower ranks leave zeros, and zeros alone are the
base model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from orchestrator.diffusion.deltas import Array, Delta, LowRank

Deltas = Mapping[str, Delta]
"""What one style does to each layer of the UNet, by the layer's name."""


@dataclass(frozen=True)
class StyleLayout:
    """Which layers a graph takes styles for, in the order of its input; ``shapes`` are their weights', [out, in]."""

    rank: int
    layers: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        """How many numbers a row holds; 0 where the graph has no such input."""
        return self.rank * sum(out + into for out, into in self.shapes)

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.layers)

    def misfit(self, styles: Sequence[Deltas]) -> str | None:
        """Why these styles, one on top of the other, do not fit a row; None where they do."""
        if not self.size:
            return "the UNet was built without an input for styles"
        for name in dict.fromkeys(name for deltas in styles for name in deltas):
            found = [deltas[name] for deltas in styles if name in deltas]
            if name not in self._known:
                return f"it changes {name}, and an input for styles reaches the projections of attention only"
            ranks = [delta.rank for delta in found if isinstance(delta, LowRank)]
            if len(ranks) < len(found):
                return f"what it does to {name} is not plain low rank"
            if sum(ranks) > self.rank:
                return f"its rank at {name} is {sum(ranks)}, and the input for styles takes up to {self.rank}"
        return None

    def row(self, styles: Sequence[tuple[Deltas, float]]) -> Array:
        """Styles that fit, each with its weight, as float32 [size]; of none, zeros."""
        row = np.zeros(self.size, np.float32)
        start = 0
        for name, (out, into) in zip(self.layers, self.shapes, strict=True):
            down = row[start : start + into * self.rank].reshape(into, self.rank)
            start += down.size
            up = row[start : start + out * self.rank].reshape(self.rank, out)
            start += up.size
            taken = 0
            for deltas, weight in styles:
                delta = deltas.get(name)
                if isinstance(delta, LowRank):
                    A, B = delta.factors(weight)
                    down[:, taken : taken + len(A)] = A.T
                    up[taken : taken + len(A)] = B.T
                    taken += len(A)
        return row


NO_LAYOUT = StyleLayout(rank=0, layers=(), shapes=())
