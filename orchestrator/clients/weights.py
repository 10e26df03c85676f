"""Reads safetensors files that strangers wrote: every number of the header is checked before a tensor is touched.

The file is a length (8 bytes), a JSON header and the tensors' bytes. The safetensors package checks what makes a file
readable; here it is also checked what makes it a style: size of the header, precisions, shapes, and that no name comes
twice, of which JSON readers silently keep one. Nothing in such a file is ever executed.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final

import numpy as np
import safetensors

from orchestrator.diffusion.deltas import StoredTensor
from orchestrator.diffusion.lora_names import shown
from orchestrator.errors import LoraIncompatible

MAX_HEADER_BYTES: Final = 10_000_000
MAX_DIMENSIONS: Final = 8
_LENGTH_BYTES: Final = 8
_METADATA: Final = "__metadata__"
_FLOATS: Final[Mapping[str, str]] = {"F16": "<f2", "BF16": "<u2", "F32": "<f4"}
# Trainers store an alpha in whatever type it had; anything larger in these types is no weight.
_SINGLES: Final[Mapping[str, str]] = {"F64": "<f8", "I64": "<i8", "I32": "<i4"}
# How files begin that are often named .safetensors and are something else.
_STRANGERS: Final[tuple[tuple[bytes, str], ...]] = (
    (b"PK", "a zip archive, as torch.save writes its pickles"),
    (b"\x80", "a Python pickle, which is never opened"),
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"version https://git-lfs", "a Git LFS pointer; the file itself was not uploaded"),
    (b"<", "a web page"),
)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class WeightsFile:
    """A file's tensors, the trainer's remarks, and what identifies it."""

    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]
    dtypes: tuple[str, ...]
    sha256: str
    size_bytes: int


def read_weights(data: bytes) -> WeightsFile:
    """The file in ``data``.

    Raises:
        LoraIncompatible: it is no sound safetensors file; the sentence says what is wrong with it.
    """
    header = _header(data)
    metadata = _metadata(header.pop(_METADATA, {}))
    _check_layout(header, data)
    try:
        found = safetensors.deserialize(data)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise LoraIncompatible(f"the file is no safetensors file: {str(error)[:200]}") from None
    return WeightsFile(
        tensors={name: _tensor(entry) for name, entry in found},
        metadata=metadata,
        dtypes=tuple(sorted({entry["dtype"] for entry in header.values() if entry["dtype"] in _FLOATS})),
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
    )


def _header(data: bytes) -> dict[str, Any]:
    """The header as JSON, if the file has one of an honest length."""
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if len(data) < _LENGTH_BYTES or data[_LENGTH_BYTES : _LENGTH_BYTES + 1] != b"{":
        raise LoraIncompatible(f"the file is {_stranger(data)}; safetensors are read")
    if length > MAX_HEADER_BYTES:
        raise LoraIncompatible(f"the header is {length} bytes; up to {MAX_HEADER_BYTES} are read")
    if length > len(data) - _LENGTH_BYTES:
        raise LoraIncompatible(f"the file is cut short: its header is {length} bytes, the whole file {len(data)}")
    try:
        header = json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length], object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise LoraIncompatible("the header is not JSON; the file is broken") from None
    if not isinstance(header, dict):
        raise LoraIncompatible("the header is no JSON object; the file is broken")
    return header


def _stranger(data: bytes) -> str:
    if not data:
        return "empty"
    return next((kind for start, kind in _STRANGERS if data.startswith(start)), "no safetensors file")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object none of whose names comes twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = max(Counter(name for name, _ in pairs).items(), key=itemgetter(1))[0]
        raise LoraIncompatible(f"the header names {shown(twice)} twice; every tensor has one name")
    return found


def _metadata(found: Any) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise LoraIncompatible(f"{_METADATA} in the header is no object of texts; the file is broken")
    return found


def _check_layout(header: Mapping[str, Any], data: bytes) -> None:
    """Every entry by itself, then all together: they fill what follows the header, without gap or overlap."""
    spans = sorted(_span(name, entry) for name, entry in header.items())
    expected = 0
    for begin, end, name in spans:
        if begin != expected:
            raise LoraIncompatible(f"{name} begins at byte {begin} of the data; {expected} is expected")
        expected = end
    start = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    if len(data) - start != expected:
        cut = "cut short" if len(data) - start < expected else "too long"
        raise LoraIncompatible(f"the file is {cut}: its tensors are {expected} bytes, {len(data) - start} follow")


def _span(name: str, entry: Any) -> tuple[int, int, str]:
    """First and last byte of a tensor, and its name for a sentence."""
    named = shown(name)
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise LoraIncompatible(f"{named} is no entry of dtype, shape and data_offsets; the file is broken")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not (_is_counts(shape) and len(shape) <= MAX_DIMENSIONS and _is_counts(offsets) and len(offsets) == 2):
        raise LoraIncompatible(f"{named} has the shape {str(shape)[:80]} at {str(offsets)[:80]}; the file is broken")
    single = math.prod(shape) == 1
    kind = _FLOATS.get(dtype) or (_SINGLES.get(dtype) if single else None) if isinstance(dtype, str) else None
    if kind is None:
        raise LoraIncompatible(f"{named} is stored as {str(dtype)[:40]}; {', '.join(_FLOATS)} are read")
    if math.prod(shape) == 0:
        raise LoraIncompatible(f"{named} has the shape {shape}; tensors without numbers are not read")
    if offsets[1] - offsets[0] != math.prod(shape) * np.dtype(kind).itemsize:
        raise LoraIncompatible(
            f"{named} has the shape {shape} in {offsets[1] - offsets[0]} bytes; "
            f"{math.prod(shape) * np.dtype(kind).itemsize} are expected"
        )
    return offsets[0], offsets[1], named


def _is_counts(found: Any) -> bool:
    return isinstance(found, list) and all(type(count) is int and 0 <= count < 1 << 48 for count in found)


def _tensor(entry: Mapping[str, Any]) -> StoredTensor:
    kind = entry["dtype"]
    if kind in _SINGLES:
        single = np.frombuffer(entry["data"], _SINGLES[kind])
        with np.errstate(over="ignore"):
            return StoredTensor(single.astype(np.float32).reshape(entry["shape"]))
    return StoredTensor(np.frombuffer(entry["data"], _FLOATS[kind]).reshape(entry["shape"]))
