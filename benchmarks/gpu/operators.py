"""The ONNX operators that this project's graphs use, in torch. Shapes are computed on the host, as int64 tensors."""

from collections.abc import Callable, Mapping
from typing import Any

import onnx
import torch
from torch.nn import functional

Tensor = torch.Tensor
Operator = Callable[..., Any]


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes as Python values."""
    return {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}


def run_attention(q: Tensor, k_transposed: Tensor, v: Tensor) -> Tensor:
    """Softmax of ``q @ k_transposed`` times ``v``; the graph has scaled both factors already."""
    return functional.scaled_dot_product_attention(q, k_transposed.transpose(-1, -2), v, scale=1.0)


def _ints(tensor: Tensor) -> list[int]:
    return [int(value) for value in tensor.reshape(-1).tolist()]


def _reshape(node: onnx.NodeProto, dtype: torch.dtype, x: Tensor, shape: Tensor) -> Tensor:
    dims = [x.shape[index] if dim == 0 else dim for index, dim in enumerate(_ints(shape))]
    return x.reshape(dims)


def _shape(node: onnx.NodeProto, dtype: torch.dtype, x: Tensor) -> Tensor:
    told = attributes(node)
    return torch.tensor(list(x.shape)[told.get("start", 0) : told.get("end", None)], dtype=torch.int64)


def _slice(node: onnx.NodeProto, dtype: torch.dtype, x: Tensor, starts: Tensor, ends: Tensor, *rest: Tensor) -> Tensor:
    axes = _ints(rest[0]) if rest else list(range(starts.numel()))
    steps = _ints(rest[1]) if len(rest) > 1 else [1] * len(axes)
    index: list[slice] = [slice(None)] * x.dim()
    for axis, start, end, step in zip(axes, _ints(starts), _ints(ends), steps, strict=True):
        size = x.shape[axis]
        index[axis] = slice(max(-size, min(start, size)), max(-size, min(end, size)), step)
    return x[tuple(index)]


def _conv(node: onnx.NodeProto, dtype: torch.dtype, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    told = attributes(node)
    pads = told.get("pads", [0, 0, 0, 0])
    if pads[:2] != pads[2:]:  # the VAE's encoder pads right and below only
        x, pads = functional.pad(x, (pads[1], pads[3], pads[0], pads[2])), [0, 0]
    return functional.conv2d(
        x, weight, bias, told.get("strides", 1), pads[:2], told.get("dilations", 1), told.get("group", 1)
    )


def _gemm(node: onnx.NodeProto, dtype: torch.dtype, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    told = attributes(node)
    a = a.to(b.dtype)  # the time embedding is computed in fp32 up to here
    a = a.transpose(0, 1) if told.get("transA") else a
    b = b.transpose(0, 1) if told.get("transB") else b
    product: Tensor = told.get("alpha", 1.0) * (a @ b)
    return product if c is None else product + told.get("beta", 1.0) * c


def _resize(node: onnx.NodeProto, dtype: torch.dtype, x: Tensor, *rest: Tensor | None) -> Tensor:
    """Nearest neighbours, by scales or to sizes: what an upsampler writes."""
    sizes = rest[2] if len(rest) > 2 else None
    if sizes is not None:
        to = _ints(sizes)[2:]
    else:
        assert rest[1] is not None
        to = [int(edge * float(scale)) for edge, scale in zip(x.shape[2:], rest[1].tolist()[2:], strict=True)]
    grown: Tensor = functional.interpolate(x, size=to, mode="nearest")
    return grown


def _layer_norm(node: onnx.NodeProto, dtype: torch.dtype, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    told = attributes(node)
    axis = told.get("axis", -1) % x.dim()
    return functional.layer_norm(x, x.shape[axis:], weight, bias, told.get("epsilon", 1e-5))


def _instance_norm(node: onnx.NodeProto, dtype: torch.dtype, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.instance_norm(x, weight=weight, bias=bias, eps=attributes(node).get("epsilon", 1e-5))


def _split(node: onnx.NodeProto, dtype: torch.dtype, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = attributes(node).get("axis", 0)
    if sizes is not None:
        return torch.split(x, _ints(sizes), axis)
    return tuple(x.chunk(len(node.output), axis))


def _cast(node: onnx.NodeProto, dtype: torch.dtype, x: Tensor) -> Tensor:
    to = onnx.helper.tensor_dtype_to_np_dtype(attributes(node)["to"])
    # The graph is fp32 and the program may compute in less: a cast to a float means the program's float.
    return x.to(dtype) if to.kind == "f" else x.to(getattr(torch, "uint8" if to.name == "uint8" else to.name))


def _gather(node: onnx.NodeProto, dtype: torch.dtype, x: Tensor, index: Tensor) -> Tensor:
    axis = attributes(node).get("axis", 0) % x.dim()
    flat = index.reshape(-1).to(x.device)
    shape = (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
    return x.index_select(axis, torch.where(flat < 0, flat + x.shape[axis], flat)).reshape(shape)


def _gather_nd(node: onnx.NodeProto, dtype: torch.dtype, x: Tensor, index: Tensor) -> Tensor:
    assert attributes(node).get("batch_dims", 0) == 0
    return x[tuple(index.to(x.device).unbind(-1))]


def _reduced(node: onnx.NodeProto, dtype: torch.dtype, x: Tensor, axes: Tensor | None = None) -> Tensor:
    dims = list(range(x.dim())) if axes is None else _ints(axes)
    return x.mean(dims, keepdim=bool(attributes(node).get("keepdims", 1)))


def _arg_max(node: onnx.NodeProto, dtype: torch.dtype, x: Tensor) -> Tensor:
    told = attributes(node)
    return x.argmax(told.get("axis", 0), keepdim=bool(told.get("keepdims", 1)))


def _unsqueeze(node: onnx.NodeProto, dtype: torch.dtype, x: Tensor, axes: Tensor) -> Tensor:
    for axis in sorted(_ints(axes)):
        x = x.unsqueeze(axis)
    return x


def _squeeze(node: onnx.NodeProto, dtype: torch.dtype, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(_ints(axes)))


def _concat(node: onnx.NodeProto, dtype: torch.dtype, *parts: Tensor) -> Tensor:
    return torch.cat(parts, attributes(node)["axis"])


def _together(function: Callable[[Tensor, Tensor], Any]) -> Operator:
    """Two operands, moved together where one is a shape on the host; a shape by a shape stays there."""

    def run(node: onnx.NodeProto, dtype: torch.dtype, a: Tensor, b: Tensor) -> Any:
        device = a.device if a.device.type == "cuda" else b.device
        return function(a.to(device), b.to(device))

    return run


def _divided(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _one(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda node, dtype, x: function(x)


def _gelu(node: onnx.NodeProto, dtype: torch.dtype, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=attributes(node).get("approximate", b"none").decode())


def _clip(node: onnx.NodeProto, dtype: torch.dtype, x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    return x.clamp(None if low is None else float(low), None if high is None else float(high))


def _where(node: onnx.NodeProto, dtype: torch.dtype, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    device = next((each.device for each in (condition, a, b) if each.device.type == "cuda"), condition.device)
    return torch.where(condition.to(device), a.to(device), b.to(device))


OPERATORS: Mapping[str, Operator] = {
    "Add": _together(torch.add),
    "ArgMax": _arg_max,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "Cos": _one(torch.cos),
    "Div": _together(_divided),
    "Equal": _together(torch.eq),
    "Exp": _one(torch.exp),
    "Expand": lambda node, dtype, x, shape: x * torch.ones(_ints(shape), dtype=x.dtype, device=x.device),
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "Identity": _one(lambda x: x),
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "MatMul": _together(lambda a, b: torch.matmul(a.to(b.dtype), b)),
    "Mul": _together(torch.mul),
    "Range": lambda node, dtype, low, high, step: torch.arange(int(low), int(high), int(step)),
    "ReduceMean": _reduced,
    "Reshape": _reshape,
    "Resize": _resize,
    "Round": _one(torch.round),
    "Shape": _shape,
    "Sigmoid": _one(torch.sigmoid),
    "Sin": _one(torch.sin),
    "Slice": _slice,
    "Softmax": lambda node, dtype, x: torch.softmax(x, attributes(node).get("axis", -1)),
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": _together(torch.sub),
    "Transpose": lambda node, dtype, x: x.permute(attributes(node)["perm"]),
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
