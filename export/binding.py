"""Graphs without weights, and the one step that fills them from a checkpoint. Needs onnx and numpy, never torch.

A graph is traced once per architecture. Its weights are then taken out: each such initializer keeps its name, dtype
and dims, holds no data, and says in its metadata which tensor of a checkpoint belongs there and how it is permuted.
Any checkpoint of the same architecture, or one whose tensors a style has changed, is bound to it in seconds.
"""

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from export.errors import ExportError

_SOURCE: Final = "checkpoint_tensor"
_AXES: Final = "axes"
# A graph holds masks and shape constants of its own; anything larger is a weight that lost its name in tracing.
_MAX_CONSTANT_BYTES: Final = 65536
_ALIGNMENT_BYTES: Final = 64
WEIGHTS_FOLDER: Final = "weights"


@dataclass(frozen=True)
class Part:
    """One form of a checkpoint's tensor in a file of its own: raw numbers of ``dtype``, row-major, ``dims``.

    ``axes`` says which axis of the checkpoint's tensor is at each position, ``n`` standing for a new one of size 1.
    """

    file: str
    dtype: str
    axes: str
    dims: tuple[int, ...]


def detach(model: onnx.ModelProto, sources: Mapping[str, str]) -> onnx.ModelProto:
    """Takes the weights out of a traced model; ``sources`` maps its initializers to tensors of a checkpoint.

    Transposed and unsqueezed weights become initializers of their own, so no runtime holds such a weight twice.
    """
    weightless = onnx.ModelProto()
    weightless.CopyFrom(model)
    graph = weightless.graph
    for initializer in graph.initializer:
        if initializer.name in sources:
            _empty(initializer)
            _set(initializer, _SOURCE, sources[initializer.name])
            _set(initializer, _AXES, ",".join(str(axis) for axis in range(len(initializer.dims))))
    _fold(graph)
    for initializer in graph.initializer:
        if _get(initializer, _SOURCE) is None and len(initializer.raw_data) > _MAX_CONSTANT_BYTES:
            raise ExportError(
                f"{initializer.name} {list(initializer.dims)} is a weight that no checkpoint tensor names"
            )
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del graph.value_info[:]
    return weightless


def sources(graph: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the checkpoint tensors that a weightless graph asks for, in the order it holds them."""
    return tuple(name for entry in graph.graph.initializer if (name := _get(entry, _SOURCE)) is not None)


def asked(initializer: onnx.TensorProto) -> tuple[str, tuple[str, ...]] | None:
    """The checkpoint tensor that belongs into an initializer, and which of its axes is at each position."""
    source = _get(initializer, _SOURCE)
    return None if source is None else (source, tuple((_get(initializer, _AXES) or "").split(",")))


def ask(initializer: onnx.TensorProto, source: str, axes: Iterable[str]) -> None:
    """Have ``source`` put into an initializer when the graph is bound."""
    del initializer.metadata_props[:]
    _set(initializer, _SOURCE, source)
    _set(initializer, _AXES, ",".join(axes))


def bind(
    graph: onnx.ModelProto,
    tensors: Mapping[str, NDArray[Any]],
    out: Path,
    advance: Callable[[int], None] = lambda size_bytes: None,
    apart: Container[str] = (),
) -> dict[str, list[Part]]:
    """Writes ``out`` and, beside it, ``out.data`` with the weights: one tensor in memory at a time.

    ``tensors`` is a checkpoint's ``Weights`` or any mapping over it; each is cast to the graph's dtype.
    ``advance`` hears of the bytes written. Tensors named in ``apart`` lie in files of their own instead, below
    ``weights``; the answer says where each of them is and in which form.
    """
    bound = onnx.ModelProto()
    bound.CopyFrom(graph)
    parts: dict[str, list[Part]] = {}
    with out.with_name(f"{out.name}.data").open("wb") as data:
        for initializer in bound.graph.initializer:
            source = _get(initializer, _SOURCE)
            if source is None:
                continue
            value = _prepare(initializer, source, tensors)
            if source in apart:
                found = parts.setdefault(source, [])
                found.append(_part(initializer, value, f"{WEIGHTS_FOLDER}/{source}", len(found)))
                file = out.with_name(WEIGHTS_FOLDER) / Path(found[-1].file).name
                file.parent.mkdir(exist_ok=True)
                with file.open("wb") as stream:
                    _write_external(initializer, value, stream, found[-1].file)
            else:
                _write_external(initializer, value, data, f"{out.name}.data")
            advance(value.nbytes)
    out.write_bytes(bound.SerializeToString())
    return parts


def _part(initializer: onnx.TensorProto, value: NDArray[Any], stem: str, used: int) -> Part:
    """A graph that holds one tensor in two forms has two files of it."""
    file = stem if used == 0 else f"{stem}.{used + 1}"
    return Part(file, value.dtype.name, _get(initializer, _AXES) or "", tuple(initializer.dims))


def _prepare(initializer: onnx.TensorProto, source: str, tensors: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """The tensor as the graph wants it: its axis at each position, ``n`` standing for a new one of size 1."""
    if source not in tensors:
        raise ExportError(f"the checkpoint's config asks for {source}, which its weights do not hold")
    value = tensors[source]
    axes = [axis for axis in (_get(initializer, _AXES) or "").split(",") if axis]
    kept = [int(axis) for axis in axes if axis != "n"]
    dims = tuple(initializer.dims)
    if sorted(kept) != list(range(value.ndim)):
        raise ExportError(f"{source} has shape {value.shape}; the checkpoint's config asks for {len(kept)} dimensions")
    arranged = value.transpose(kept)
    if arranged.shape != tuple(size for size, axis in zip(dims, axes, strict=True) if axis != "n"):
        raise ExportError(f"{source} has shape {value.shape}, which is not what the checkpoint's config asks for")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(initializer.data_type)
    return np.ascontiguousarray(arranged, dtype=dtype).reshape(dims)


def _write_external(initializer: onnx.TensorProto, value: NDArray[Any], stream: BinaryIO, location: str) -> None:
    stream.write(b"\0" * (-stream.tell() % _ALIGNMENT_BYTES))
    offset = stream.tell()
    stream.write(value.reshape(-1).view(np.uint8).data)
    del initializer.metadata_props[:]
    initializer.data_location = onnx.TensorProto.EXTERNAL
    for key, text in (("location", location), ("offset", str(offset)), ("length", str(value.nbytes))):
        initializer.external_data.add(key=key, value=text)


def _fold(graph: onnx.GraphProto) -> None:
    """Replaces every Transpose or Unsqueeze of a weight by a weight of that form."""
    known = {entry.name: entry for entry in graph.initializer}
    kept = []
    for node in graph.node:
        weight = known.get(node.input[0]) if node.op_type in ("Transpose", "Unsqueeze") else None
        if weight is None or _get(weight, _SOURCE) is None:
            kept.append(node)
            continue
        axes = (_get(weight, _AXES) or "").split(",")
        folded = graph.initializer.add(name=node.output[0], data_type=weight.data_type)
        _set(folded, _SOURCE, _get(weight, _SOURCE) or "")
        new_axes, dims = _rearrange(node, axes, list(weight.dims), known)
        _set(folded, _AXES, ",".join(new_axes))
        folded.dims.extend(dims)
        known[folded.name] = folded
    del graph.node[:]
    graph.node.extend(kept)
    _drop_unread(graph, kept)


def _rearrange(
    node: onnx.NodeProto, axes: list[str], dims: list[int], known: Mapping[str, onnx.TensorProto]
) -> tuple[list[str], list[int]]:
    if node.op_type == "Transpose":
        order = next((list(a.ints) for a in node.attribute if a.name == "perm"), list(range(len(dims)))[::-1])
        return [axes[i] for i in order], [dims[i] for i in order]
    rank = len(dims) + int(numpy_helper.to_array(known[node.input[1]]).size)
    for position in sorted(int(axis) % rank for axis in numpy_helper.to_array(known[node.input[1]]).reshape(-1)):
        axes, dims = [*axes[:position], "n", *axes[position:]], [*dims[:position], 1, *dims[position:]]
    return axes, dims


def _drop_unread(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    read = {name for node in nodes for name in node.input} | {output.name for output in graph.output}
    kept = [entry for entry in graph.initializer if entry.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _empty(initializer: onnx.TensorProto) -> None:
    initializer.ClearField("raw_data")
    initializer.ClearField("data_location")
    del initializer.external_data[:]


def _set(entry: onnx.TensorProto, key: str, value: str) -> None:
    entry.metadata_props.add(key=key, value=value)


def _get(entry: onnx.TensorProto, key: str) -> str | None:
    return next((str(prop.value) for prop in entry.metadata_props if prop.key == key), None)
