"""Convolutions and projections in fp8 (e4m3), as GPUs multiply it from Ada and Hopper on; off unless asked for.

Weights get a scale for each output channel; what they are multiplied with gets one scale, from the largest value that a
calibration saw. In the graph each becomes QuantizeLinear and DequantizeLinear around what stays a Conv, MatMul or Gemm:
TensorRT makes one fp8 multiplication of the three, and ONNX Runtime computes the same rounding in the graph's own
precision, so that a picture shows on any machine what it costs.

The first and the last convolution and the embeddings of the timestep stay as they are: they are 1 % of the work and
carry every picture. So do the products inside attention, whose both sides are activations, and a row's style.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.binding import ask, asked

LARGEST: Final = 448.0
"""e4m3's; beyond it there is only NaN."""
_KEPT: Final = (".conv_in.", ".conv_out.", ".time_embedding.", ".add_embedding.", ".time_emb_proj.")
_E4M3: Final = TensorProto.FLOAT8E4M3FN
_BYTES, _SCALE, _WATCHED, _WIDE = "#e4m3", "#scale", "#largest", "#wide"


@dataclass(frozen=True)
class Layer:
    """One multiplication by a weight: the node's index, what it reads, its weight's initializer and checkpoint tensor.

    ``axis`` is where the initializer has the output channels, which are the checkpoint tensor's first axis.
    """

    node: int
    reads: str
    weight: str
    source: str
    axis: int


def layers_of(graph: onnx.ModelProto) -> tuple[Layer, ...]:
    """What of a weightless graph would be multiplied in fp8, in the graph's order."""
    weights = {entry.name: told for entry in graph.graph.initializer if (told := asked(entry)) is not None}
    found = []
    for index, node in enumerate(graph.graph.node):
        if node.op_type in ("Conv", "MatMul", "Gemm") and node.input[1] in weights:
            source, axes = weights[node.input[1]]
            if not any(part in f".{source}" for part in _KEPT):
                found.append(Layer(index, node.input[0], node.input[1], source, axes.index("0")))
    return tuple(found)


def watched(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with more outputs: of everything that a layer reads, the largest absolute value."""
    told = onnx.ModelProto()
    told.CopyFrom(graph)
    for name in dict.fromkeys(layer.reads for layer in layers_of(graph)):
        told.graph.node.append(helper.make_node("Abs", [name], [f"{name}#absolute"]))
        told.graph.node.append(helper.make_node("ReduceMax", [f"{name}#absolute"], [name + _WATCHED], keepdims=0))
        told.graph.output.append(helper.make_tensor_value_info(name + _WATCHED, TensorProto.FLOAT, ()))
    return told


def largest_inputs(graph: onnx.ModelProto, outputs: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, float]:
    """What the runs of a watched graph saw, by the checkpoint tensor of each layer of ``graph``."""
    return {layer.source: max(float(run[layer.reads + _WATCHED]) for run in outputs) for layer in layers_of(graph)}


def quantised(graph: onnx.ModelProto, largest: Mapping[str, float]) -> onnx.ModelProto:
    """The weightless graph with its layers in fp8; it is bound to :class:`EightBit` tensors.

    ``largest`` may come from the same network's graph in another precision: layers are known by their weights.
    """
    made = onnx.ModelProto()
    made.CopyFrom(graph)
    layers = {layer.node: layer for layer in layers_of(graph)}
    seen: dict[str, float] = {}
    for each in layers.values():
        seen[each.reads] = max(seen.get(each.reads, 0.0), largest[each.source])
    weights = {entry.name: entry for entry in made.graph.initializer}
    del made.graph.node[:]
    narrow: set[str] = set()
    for index, node in enumerate(graph.graph.node):
        if (layer := layers.get(index)) is not None:
            if layer.reads not in narrow:
                _narrow_input(made.graph, layer.reads, seen[layer.reads], weights[layer.weight].data_type)
            if layer.weight not in narrow:
                _narrow_weight(made.graph, weights[layer.weight], layer)
            narrow |= {layer.reads, layer.weight}
        added = made.graph.node.add()
        added.CopyFrom(node)
        if layer is not None:
            added.input[0], added.input[1] = layer.reads + _WIDE, layer.weight + _WIDE
    return made


class EightBit(Mapping[str, NDArray[Any]]):
    """A checkpoint's tensors and, made when asked for, the fp8 bytes and scales that a quantised graph asks for."""

    def __init__(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> NDArray[Any]:
        source, mark, _ = name.partition("#")
        if not mark:
            return self._tensors[name]
        weight = np.asarray(self._tensors[source], np.float32)
        scale = _scale(weight)
        if name.endswith(_SCALE):
            return scale
        scaled = weight / scale.reshape(-1, *[1] * (weight.ndim - 1))
        return scaled.clip(-LARGEST, LARGEST).astype(helper.tensor_dtype_to_np_dtype(_E4M3))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.partition("#")[0] in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _narrow_input(graph: onnx.GraphProto, name: str, largest: float, kind: int) -> None:
    """Two nodes that round a tensor to e4m3 and make it wide again, ``kind`` as it was."""
    scale = np.array(largest / LARGEST if largest else 1.0, helper.tensor_dtype_to_np_dtype(kind))
    zero = helper.make_tensor(f"{name}#zero", _E4M3, (), [0.0])
    graph.initializer.extend([numpy_helper.from_array(scale, name + _SCALE), zero])
    graph.node.append(helper.make_node("QuantizeLinear", [name, name + _SCALE, zero.name], [name + _BYTES]))
    graph.node.append(helper.make_node("DequantizeLinear", [name + _BYTES, name + _SCALE, zero.name], [name + _WIDE]))


def _narrow_weight(graph: onnx.GraphProto, weight: onnx.TensorProto, layer: Layer) -> None:
    """The weight's initializer asks for fp8 bytes from now on, and a node makes them wide by their channels' scales."""
    scale = graph.initializer.add(name=layer.weight + _SCALE, data_type=weight.data_type)
    scale.dims.append(weight.dims[layer.axis])
    ask(scale, layer.source + _SCALE, ("0",))
    told = asked(weight)
    assert told is not None
    weight.data_type = _E4M3
    ask(weight, layer.source + _BYTES, told[1])
    graph.node.append(
        helper.make_node("DequantizeLinear", [weight.name, scale.name], [layer.weight + _WIDE], axis=layer.axis)
    )


def _scale(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """[out]: the largest weight of a channel becomes the largest number there is; a channel of zeros stays one."""
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    return np.asarray(np.where(largest > 0, largest / LARGEST, 1.0), np.float32)
