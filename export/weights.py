"""Tensors of safetensors files as a read-only mapping: nothing is copied until a tensor is asked for.

The safetensors package cannot hand bfloat16 to numpy, and a digest needs the stored bytes; the format is a length, a
JSON header and the data, so it is read here.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from export.errors import ExportError

_MAX_HEADER_BYTES: Final = 100_000_000
_DTYPES: Final[Mapping[str, Any]] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "U8": np.uint8,
}


@dataclass(frozen=True)
class _Place:
    file: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]


class Weights(Mapping[str, NDArray[Any]]):
    """Every tensor of some safetensors files by its name, in the dtype it is stored in, backed by the files."""

    def __init__(self, files: list[Path], rename: Callable[[str], str | None] = lambda name: name) -> None:
        """Reads the headers; ``rename`` gives a tensor's name here, or None to leave it out."""
        self._places: dict[str, _Place] = {}
        for file in files:
            for stored, place in _read_header(file).items():
                name = rename(stored)
                if name is not None:
                    self._places[name] = place

    def __getitem__(self, name: str) -> NDArray[Any]:
        place = self._places[name]
        shape = place.shape
        if 0 in shape:
            return np.zeros(shape, _DTYPES[place.dtype])
        return np.memmap(place.file, _DTYPES[place.dtype], mode="r", offset=place.offset, shape=shape or (1,)).reshape(
            shape
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def elements(self) -> int:
        """Number of values in all tensors."""
        return sum(int(np.prod(place.shape, dtype=np.int64)) for place in self._places.values())

    def digest(self) -> str:
        """SHA-256 over every tensor in the order of their names: name, dtype, shape, bytes.

        Sharding, the order inside a file and header metadata leave it unchanged; any bit of a weight does not.
        """
        total = hashlib.sha256()
        for name in sorted(self._places):
            place = self._places[name]
            total.update(f"{name}\0{place.dtype}\0{place.shape}\0".encode())
            total.update(np.ascontiguousarray(self[name]).reshape(-1).view(np.uint8).data)
        return total.hexdigest()


def read_metadata(file: Path) -> dict[str, str]:
    """What its writer says of the file; a digest leaves it out."""
    metadata: dict[str, str] = _read_json_header(file)[0].get("__metadata__", {})
    return metadata


def _read_json_header(file: Path) -> tuple[dict[str, Any], int]:
    """The header and where the data begin."""
    size_bytes = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(_MAX_HEADER_BYTES, size_bytes - 8):
            raise ExportError(f"{file} is not a safetensors file or is cut short ({size_bytes} bytes)")
        return json.loads(stream.read(length)), 8 + length


class Joined(Mapping[str, NDArray[Any]]):
    """Several mappings as one; a tensor's name has its own mapping's prefix in front."""

    def __init__(self, parts: Mapping[str, Mapping[str, NDArray[Any]]]) -> None:
        self._places = {prefix + name: (part, name) for prefix, part in parts.items() for name in part}

    def __getitem__(self, name: str) -> NDArray[Any]:
        part, own = self._places[name]
        return part[own]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _read_header(file: Path) -> dict[str, _Place]:
    try:
        header, start = _read_json_header(file)
        size_bytes = file.stat().st_size
        header.pop("__metadata__", None)
        return {name: _place(file, name, entry, start, size_bytes) for name, entry in header.items()}
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise ExportError(f"{file} cannot be read as safetensors: {error}") from error


def _place(file: Path, name: str, entry: Mapping[str, Any], start: int, size_bytes: int) -> _Place:
    dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if dtype not in _DTYPES:
        raise ExportError(f"{file}: {name} is stored as {dtype}; {', '.join(_DTYPES)} can be read")
    expected = int(np.prod(shape, dtype=np.int64)) * np.dtype(_DTYPES[dtype]).itemsize
    if end - begin != expected or begin < 0 or start + end > size_bytes:
        raise ExportError(f"{file} is cut short or broken: {name} should hold {expected} bytes")
    return _Place(file, start + begin, dtype, shape)
