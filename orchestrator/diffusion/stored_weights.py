"""A layer's weight as a built graph keeps it on disk, and back: precision, order of the axes, axes of size one.

bfloat16, which numpy has not, is read and written as the upper half of float32's bits.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from orchestrator.diffusion.deltas import Array, StoredTensor
from orchestrator.errors import LoraIncompatible

NEW_AXIS: Final = "n"
_DTYPES: Final = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWeight:
    """One copy of a layer's weight in a graph: ``file`` in its version folder holds ``dims`` numbers of ``dtype``.

    ``axes`` says for each of its axes which one of the checkpoint's tensor it is; ``n`` is an axis of its own, size 1.
    """

    file: str
    dtype: str
    axes: tuple[str, ...]
    dims: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.dims) * np.dtype(_DTYPES[self.dtype]).itemsize

    @property
    def _order(self) -> list[int]:
        return [int(axis) for axis in self.axes if axis != NEW_AXIS]

    def tensor(self, data: bytes) -> Array:
        """The checkpoint's tensor, float32, out of the file's bytes."""
        stored = StoredTensor(np.frombuffer(data, _DTYPES[self.dtype])).values()
        kept = [size for size, axis in zip(self.dims, self.axes, strict=True) if axis != NEW_AXIS]
        return stored.reshape(kept).transpose(np.argsort(self._order))

    def data(self, tensor: Array) -> bytes:
        """The file's bytes for another tensor of the same shape.

        Raises:
            LoraIncompatible: a number is too large for the file's precision.
        """
        arranged = np.ascontiguousarray(tensor.transpose(self._order), np.float32)
        with np.errstate(over="ignore"):
            stored = _bfloat16(arranged) if self.dtype == "bfloat16" else arranged.astype(_DTYPES[self.dtype])
        if not np.isfinite(StoredTensor(stored).values()).all():
            raise LoraIncompatible(f"a merged weight of up to {np.abs(tensor).max():.4g} does not fit {self.dtype}")
        return stored.tobytes()


def stored_weight(fields: Mapping[str, Any]) -> StoredWeight:
    """The entry of ``weights.json``.

    Raises:
        ValueError, KeyError, TypeError: it is none.
    """
    weight = StoredWeight(
        file=str(fields["file"]),
        dtype=str(fields["dtype"]),
        axes=tuple(str(fields["axes"]).split(",")),
        dims=tuple(int(size) for size in fields["dims"]),
    )
    if weight.dtype not in _DTYPES:
        raise ValueError(f"dtype {weight.dtype}, where {', '.join(_DTYPES)} are read")
    order = [int(axis) for axis in weight.axes if axis != NEW_AXIS]
    new = [size for size, axis in zip(weight.dims, weight.axes, strict=True) if axis == NEW_AXIS]
    if sorted(order) != list(range(len(order))) or any(size != 1 for size in new):
        raise ValueError(f"axes {fields['axes']} for the dimensions {list(weight.dims)}")
    return weight


def _bfloat16(values: Array) -> Any:
    """Rounded to the nearest, ties to even, as torch does it: uint16 bits."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
