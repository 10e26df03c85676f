"""The tensors of one layer, checked against each other and against the layer, made into what the style does to it."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from orchestrator.diffusion.deltas import (
    Additive,
    Decomposed,
    Delta,
    Hadamard,
    Kronecker,
    LowRank,
    Shape,
    StoredTensor,
    Whole,
)
from orchestrator.diffusion.lora_names import shown
from orchestrator.errors import LoraIncompatible

MAX_RANK: Final = 4096
_FLOAT32_MAX: Final = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """Everything a file holds for one layer: tensors by their role, and each one's key for the sentences."""

    written: str
    tensors: Mapping[str, StoredTensor]
    keys: Mapping[str, str]

    def width(self) -> int | None:
        """How many numbers the layer reads, as far as the tensors tell; their shapes need not be sound yet."""
        t = self.tensors
        for role, axis in (("down", 1), ("hada_w1_b", -1), ("diff", 1)):
            if role in t and len(t[role].shape) > 1:
                return t[role].shape[axis]
        first, second = (next((t[r] for r in (side, f"{side}_b") if r in t), None) for side in ("lokr_w1", "lokr_w2"))
        if first is None or second is None or min(len(first.shape), len(second.shape)) < 2:
            return None
        return first.shape[1] * second.shape[1]

    def alpha(self) -> float | None:
        """The number that trainers store beside the factors; None where they did not."""
        tensor = self.tensors.get("alpha")
        if tensor is None:
            return None
        if math.prod(tensor.shape) != 1:
            raise LoraIncompatible(f"{self._named('alpha')} has the shape {list(tensor.shape)}; one number is expected")
        return float(self.finite("alpha", ()).values())

    def require(self, roles: Iterable[str]) -> None:
        """Refuses a layer that lacks one of ``roles``, naming a key that is there."""
        for role in roles:
            if role not in self.tensors:
                raise LoraIncompatible(f"{self._named()} has no partner {role!r}; every layer of a style is whole")

    def require_only(self, roles: Iterable[str]) -> None:
        """Refuses a layer with tensors that its format does not know."""
        for role in self.tensors.keys() - {*roles, "alpha", "magnitude", "dora_scale"}:
            raise LoraIncompatible(f"{self._named(role)} does not belong to the other tensors of {shown(self.written)}")

    def expect(self, role: str, shape: Shape) -> StoredTensor:
        """The tensor, which must have ``shape``; ones at the end of either count for nothing."""
        tensor = self.tensors[role]
        if _squeezed(tensor.shape) != _squeezed(shape):
            raise LoraIncompatible(
                f"{self._named(role)} has the shape {list(tensor.shape)}; {list(shape)} is expected there"
            )
        return self.finite(role, shape)

    def finite(self, role: str, shape: Shape) -> StoredTensor:
        """The tensor as ``shape``. Looked at only when it is known to fit: a giant that does not costs nothing."""
        tensor = self.tensors[role]
        if not np.isfinite(tensor.values()).all():
            raise LoraIncompatible(f"{self._named(role)} holds NaN or infinity; finite numbers are expected")
        return StoredTensor(tensor.stored.reshape(shape))

    def rank(self, role: str, axis: int) -> int:
        """One side of a tensor that must be a rank."""
        shape = self.tensors[role].shape
        if len(shape) < 2 or not 1 <= shape[axis] <= MAX_RANK:
            raise LoraIncompatible(
                f"{self._named(role)} has the shape {list(shape)}; ranks of 1 to {MAX_RANK} are served"
            )
        return shape[axis]

    def _named(self, role: str | None = None) -> str:
        return shown(self.keys[role] if role is not None else min(self.keys.values()))


Scale = Callable[[int | None], float]
"""The factor of a layer's delta by its rank; None where neither side of a Kronecker product has one."""


def delta_of(parts: Parts, shape: Shape, scale: Scale) -> Delta:
    """What ``parts`` do to a layer whose weight has ``shape``.

    Raises:
        LoraIncompatible: a tensor is missing, too many, of another shape or not finite; the sentence names its key.
    """
    direction = _direction(parts, shape, scale)
    magnitude = _magnitude(parts, shape)
    return direction if magnitude is None else Decomposed(direction=direction, magnitude=magnitude)


def _direction(parts: Parts, shape: Shape, scale: Scale) -> Additive:
    roles = parts.tensors.keys()
    if any(role.startswith("hada") for role in roles):
        return _hadamard(parts, shape, scale)
    if any(role.startswith("lokr") for role in roles):
        return _kronecker(parts, shape, scale)
    if "diff" in roles:
        parts.require_only(["diff"])
        return Whole(shape=shape, difference=parts.expect("diff", shape))
    return _low_rank(parts, shape, scale)


def _low_rank(parts: Parts, shape: Shape, scale: Scale) -> LowRank:
    parts.require(["down", "up"])
    parts.require_only(["down", "up", "mid"])
    rank = parts.rank("down", 0)
    up = parts.expect("up", (shape[0], rank))
    if "mid" in parts.tensors:
        mid = parts.expect("mid", (rank, rank, *_kernel(parts, shape)))
        down = parts.expect("down", (rank, shape[1]))
    else:
        # LyCORIS writes the convolutions of a DyLoRA flat, as the matrices that they are multiplied as.
        flat = (rank, math.prod(shape[1:]))
        mid, down = None, parts.expect("down", flat if parts.tensors["down"].shape == flat else (rank, *shape[1:]))
    made = LowRank(shape=shape, down=down, up=up, mid=mid, scale=scale(rank))
    largest = [float(np.abs(factor).max(initial=0.0)) for factor in made.factors()]
    if not math.prod(largest) * rank < _FLOAT32_MAX:
        raise LoraIncompatible(f"{shown(parts.keys['up'])} is so large that the layer would become infinite")
    return made


def _hadamard(parts: Parts, shape: Shape, scale: Scale) -> Hadamard:
    pairs = (("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b"))
    cores = ("hada_t1", "hada_t2")
    parts.require(role for pair in pairs for role in pair)
    parts.require_only(role for group in (*pairs, cores) for role in group)
    rank = parts.rank("hada_w1_b", 0)
    fan_in = math.prod(shape[1:])
    if not parts.tensors.keys() & set(cores):
        first, second = ((parts.expect(a, (shape[0], rank)), parts.expect(b, (rank, fan_in))) for a, b in pairs)
        return Hadamard(shape=shape, w1=first, w2=second, scale=scale(rank))
    parts.require(cores)
    core = (rank, rank, *_kernel(parts, shape))
    first, second = ((parts.expect(a, (rank, shape[0])), parts.expect(b, (rank, shape[1]))) for a, b in pairs)
    made = parts.expect(cores[0], core), parts.expect(cores[1], core)
    return Hadamard(shape=shape, w1=first, w2=second, cores=made, scale=scale(rank))


def _kronecker(parts: Parts, shape: Shape, scale: Scale) -> Kronecker:
    parts.require_only(f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2"))
    t, ranks = parts.tensors, []
    for side in ("lokr_w1", "lokr_w2"):
        if side in t and (f"{side}_a" in t or f"{side}_b" in t):
            raise LoraIncompatible(
                f"{shown(parts.keys[side])} comes with factors of the same side; one or the other is"
            )
        if side not in t:
            parts.require([f"{side}_a", f"{side}_b"])
            ranks.append(parts.rank(f"{side}_b", 0))
    rank = ranks[0] if ranks else None
    outer, w1 = _first_side(parts)
    if shape[0] % outer[0] or shape[1] % outer[1]:
        raise LoraIncompatible(
            f"{shown(min(parts.keys.values()))}: blocks of {list(outer)} do not divide a layer of shape {list(shape)}"
        )
    out, into, kernel = shape[0] // outer[0], shape[1] // outer[1], shape[2:]
    if "lokr_w2" in t:
        parts.require_only(["lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2"])
        w2: tuple[StoredTensor, ...] = (parts.expect("lokr_w2", (out, into, *kernel)),)
        return Kronecker(shape=shape, w1=w1, w2=w2, scale=scale(rank))
    inner = ranks[-1]
    if "lokr_t2" in t:
        core = parts.expect("lokr_t2", (inner, inner, *_kernel(parts, shape)))
        w2 = parts.expect("lokr_w2_a", (inner, out)), parts.expect("lokr_w2_b", (inner, into))
        return Kronecker(shape=shape, w1=w1, w2=w2, core=core, scale=scale(rank))
    w2 = parts.expect("lokr_w2_a", (out, inner)), parts.expect("lokr_w2_b", (inner, into * math.prod(kernel)))
    return Kronecker(shape=shape, w1=w1, w2=w2, scale=scale(rank))


def _first_side(parts: Parts) -> tuple[tuple[int, int], tuple[StoredTensor, ...]]:
    """The shape of a Kronecker product's first side, which decides the second's, and its tensors."""
    if "lokr_w1" in parts.tensors:
        outer = (parts.rank("lokr_w1", 0), parts.rank("lokr_w1", 1))
        return outer, (parts.expect("lokr_w1", outer),)
    rank = parts.rank("lokr_w1_b", 0)
    outer = (parts.rank("lokr_w1_a", 0), parts.rank("lokr_w1_b", 1))
    return outer, (parts.expect("lokr_w1_a", (outer[0], rank)), parts.expect("lokr_w1_b", (rank, outer[1])))


def _magnitude(parts: Parts, shape: Shape) -> StoredTensor | None:
    """DoRA's lengths, one for each output; kohya's older files hold one for each input, which is another method."""
    found = parts.tensors.keys() & {"magnitude", "dora_scale"}
    for role in found:
        tensor, ones = parts.tensors[role], (1,) * (len(shape) - 1)
        # peft writes a convolution's as [1, out, 1, 1].
        allowed = {(shape[0],), (shape[0], *ones)} | ({(1, shape[0], 1, 1)} if role == "magnitude" else set())
        if tensor.shape not in allowed or len(found) > 1:
            raise LoraIncompatible(
                f"{shown(parts.keys[role])} has the shape {list(tensor.shape)}; "
                f"one magnitude for each of {shape[0]} outputs is served"
            )
        return parts.finite(role, (shape[0],))
    return None


def _kernel(parts: Parts, shape: Shape) -> Shape:
    """Height and width of a convolution's kernel; only convolutions have Tucker cores."""
    if len(shape) != 4:
        raise LoraIncompatible(
            f"{shown(min(parts.keys.values()))} comes with a core for a convolution; the layer is linear"
        )
    return shape[2:]


def _squeezed(shape: Shape) -> Shape:
    """A shape without the ones that a convolution of 1x1 has at its end; two sides stay."""
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
