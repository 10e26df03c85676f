"""What a style does to one layer's weight, kept as small as its file has it and written out only when asked for.

A layer's weight is ``[out, in]`` or, of a convolution, ``[out, in, height, width]``; ``fan_in`` is the product of all
but ``out``. LoRA: Hu et al. 2021. LoHa (Hadamard product): Hyeon-Woo et al. 2021, "FedPara". LoKr (Kronecker product):
Edalati et al. 2022, "KronA". DoRA (magnitude and direction): Liu et al. 2024, "DoRA".
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import LoraIncompatible

Array = NDArray[np.float32]
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """A tensor in the precision of its file; bfloat16, which numpy has not, as its bits in uint16."""

    stored: NDArray[Any]

    @property
    def shape(self) -> Shape:
        return self.stored.shape

    def values(self) -> Array:
        """The numbers, float32."""
        if self.stored.dtype == np.uint16:
            return (self.stored.astype(np.uint32) << 16).view(np.float32)
        return self.stored.astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LowRank:
    """``scale * up @ down``; with ``mid`` (Tucker, [rank, rank, height, width]) ``down`` sees the channels only."""

    shape: Shape
    down: StoredTensor
    up: StoredTensor
    mid: StoredTensor | None = None
    scale: float = 1.0

    @property
    def rank(self) -> int:
        return self.up.shape[1]

    def factors(self, weight: float = 1.0) -> tuple[Array, Array]:
        """``A [rank, fan_in]`` and ``B [out, rank]``: the delta is ``B @ A``, with the scale and ``weight`` in B."""
        A, rank = self.down.values(), self.rank
        if self.mid is not None:
            A = np.einsum("ijhw,jc->ichw", self.mid.values(), A.reshape(rank, -1), optimize=True)
        with np.errstate(over="ignore"):
            B = self.up.values().reshape(-1, rank) * np.float32(self.scale * weight)
        return np.ascontiguousarray(A.reshape(rank, -1)), B

    def delta(self, weight: float = 1.0) -> Array:
        A, B = self.factors(weight)
        return _shaped(B @ A, 1.0, self.shape)

    def norm(self) -> float:
        """Frobenius norm of the delta, without writing it out: the trace of ``(A A^T)(B^T B)``."""
        A, B = (factor.astype(np.float64) for factor in self.factors())
        return math.sqrt(max(0.0, float(np.sum((A @ A.T) * (B.T @ B)))))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Hadamard:
    """LoHa: ``scale * (w1_a @ w1_b) * (w2_a @ w2_b)``, or the same of two Tucker products where there are cores."""

    shape: Shape
    w1: tuple[StoredTensor, StoredTensor]
    w2: tuple[StoredTensor, StoredTensor]
    cores: tuple[StoredTensor, StoredTensor] | None = None
    scale: float = 1.0

    def delta(self, weight: float = 1.0) -> Array:
        pairs = [_values(pair) for pair in (self.w1, self.w2)]
        if self.cores is None:
            first, second = (a @ b for a, b in pairs)
        else:
            first, second = (_tucker(core.values(), a, b) for core, (a, b) in zip(self.cores, pairs, strict=True))
        return _shaped(first * second, self.scale * weight, self.shape)

    def norm(self) -> float:
        return float(np.linalg.norm(self.delta()))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Kronecker:
    """LoKr: ``scale * kron(w1, w2)``; either side is whole or a product, ``w2`` also a Tucker product with ``core``."""

    shape: Shape
    w1: tuple[StoredTensor, ...]
    w2: tuple[StoredTensor, ...]
    core: StoredTensor | None = None
    scale: float = 1.0

    def delta(self, weight: float = 1.0) -> Array:
        first = _product(self.w1)
        second = _product(self.w2) if self.core is None else _tucker(self.core.values(), *_values(self.w2))
        # Flat, the kernel's places stay behind the input channels, as in the layer's own weight.
        product = np.kron(first, second.reshape(len(second), -1))
        return _shaped(product, self.scale * weight, self.shape)

    def norm(self) -> float:
        return float(np.linalg.norm(self.delta()))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Whole:
    """The difference itself, as large as the layer."""

    shape: Shape
    difference: StoredTensor

    def delta(self, weight: float = 1.0) -> Array:
        return _shaped(self.difference.values(), weight, self.shape)

    def norm(self) -> float:
        return float(np.linalg.norm(self.delta()))


Additive = LowRank | Hadamard | Kronecker | Whole


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Decomposed:
    """DoRA: the changed weight, every output's row brought to the length in ``magnitude`` ([out] numbers)."""

    direction: Additive
    magnitude: StoredTensor

    @property
    def shape(self) -> Shape:
        return self.direction.shape

    def norm(self) -> float:
        """Of the direction alone: what the magnitude adds depends on the layer's own weight."""
        return self.direction.norm()


Delta = Additive | Decomposed


def merged(layer: Array, delta: Delta, weight: float = 1.0) -> Array:
    """The layer's weight under a style of strength ``weight``; DoRA weighs its direction, as peft and diffusers do.

    Raises:
        LoraIncompatible: the result is not finite.
    """
    if isinstance(delta, Decomposed):
        changed = layer + delta.direction.delta(weight)
        length = np.sqrt(np.square(changed.reshape(len(changed), -1)).sum(axis=1))
        with np.errstate(divide="ignore", invalid="ignore"):
            factor = delta.magnitude.values().reshape(-1) / length
        return _shaped(changed * factor.reshape(-1, *(1,) * (layer.ndim - 1)), 1.0, delta.shape)
    return layer + delta.delta(weight)


def stacked(deltas: list[tuple[LowRank, float]]) -> tuple[Array, Array]:
    """One pair of factors for several styles on one layer, each with its weight: the ranks add up."""
    factors = [delta.factors(weight) for delta, weight in deltas]
    return np.concatenate([A for A, _ in factors]), np.concatenate([B for _, B in factors], axis=1)


def _values(tensors: tuple[StoredTensor, ...]) -> list[Array]:
    return [tensor.values() for tensor in tensors]


def _product(sides: tuple[StoredTensor, ...]) -> Array:
    first, *rest = _values(sides)
    return first @ rest[0] if rest else first


def _tucker(core: Array, a: Array, b: Array) -> Array:
    """``[rank, rank, h, w]``, ``[rank, out]`` and ``[rank, in]`` to ``[out, in, h, w]``."""
    product: Array = np.einsum("ijhw,io,jc->ochw", core, a, b, optimize=True)
    return product


def _shaped(delta: Array, factor: float, shape: Shape) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = delta * np.float32(factor)
    if not np.isfinite(scaled).all():
        raise LoraIncompatible(f"what it does to a layer of shape {list(shape)} overflows; finite weights are served")
    return scaled.reshape(shape)
