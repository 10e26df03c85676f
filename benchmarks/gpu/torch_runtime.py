"""Runs a repository's ONNX graph with torch, on a GPU where there is one: a runtime of ``model_repository/model.py``.

    runtime: module:benchmarks.gpu.torch_runtime

For machines that have torch and neither TensorRT nor ONNX Runtime's CUDA provider. Networks compute in fp16 on a GPU
(the VAE in fp32, as SDXL's must), in fp32 on a CPU. Every shape is recorded once as a CUDA graph; with
``REMARQUE_TORCH_COMPILE=1`` it goes through torch.compile instead.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from benchmarks.gpu.operators import OPERATORS, run_attention

Arrays = dict[str, "np.ndarray[Any, Any]"]
Values = dict[str, Any]
Network = Callable[[Arrays], Arrays]
WARM_UPS = 2
EXACT = ("timestep", "time_ids")
"""Inputs whose sines are taken: 999 times a frequency in fp16 would be off by a radian."""


def load(graph: Path, threads: int, outputs: Sequence[str]) -> Network:
    """The graph as a function from rows to rows; what ``model.py`` calls."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    is_vae = graph.parent.parent.name.startswith("vae")
    dtype = torch.float16 if device.type == "cuda" and not is_vae else torch.float32
    program = Program(onnx.load(graph, load_external_data=False), graph.parent, device, dtype)
    recorded: dict[tuple[Any, ...], Callable[[Values], Values]] = {}

    def network(inputs: Arrays) -> Arrays:
        given = {name: program.placed(name, inputs[name]) for name in program.inputs}
        key = tuple((name, tuple(value.shape)) for name, value in given.items())
        with torch.inference_mode():
            if key not in recorded:
                recorded[key] = _recorded(program, given, outputs)
            found = recorded[key](given)
            return {name: found[name].float().cpu().numpy() if found[name].is_floating_point()
                    else found[name].cpu().numpy() for name in outputs}  # fmt: skip

    return network


class Program:
    """The nodes of a graph with their weights in place."""

    def __init__(self, model: onnx.ModelProto, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        """``folder`` is where the model's weights are looked for."""
        self.device, self.dtype = device, dtype
        self._nodes = _with_attention(list(model.graph.node))
        exact = _exact(self._nodes)
        self._constants = {
            each.name: self._constant(_array(each, folder), each.name in exact) for each in model.graph.initializer
        }
        self.inputs = [entry.name for entry in model.graph.input if entry.name not in self._constants]
        kept = {*self._constants, *(entry.name for entry in model.graph.output)}
        last = {name: index for index, node in enumerate(self._nodes) for name in node.input if name not in kept}
        self._forgotten: dict[int, list[str]] = {}
        for name, index in last.items():
            self._forgotten.setdefault(index, []).append(name)

    def placed(self, name: str, array: Any) -> torch.Tensor:
        """An input where and as the program takes it; integers, pictures and what is exact keep their type."""
        tensor = torch.from_numpy(np.ascontiguousarray(array)).to(self.device)
        return tensor.to(self.dtype) if tensor.is_floating_point() and name not in EXACT else tensor

    def __call__(self, given: Mapping[str, torch.Tensor], outputs: Sequence[str]) -> Values:
        """All outputs named."""
        values: Values = {**self._constants, **given, "": None}
        for index, node in enumerate(self._nodes):
            arguments = [values[name] for name in node.input]
            if node.op_type == "Attention*":
                found: Any = run_attention(*arguments)
            else:
                found = OPERATORS[node.op_type](node, self.dtype, *arguments)
            results = found if isinstance(found, tuple) else (found,)
            values.update(zip(node.output, results, strict=False))
            for name in self._forgotten.get(index, ()):
                if name:
                    values.pop(name, None)
        return {name: values[name] for name in outputs}

    def _constant(self, values: "np.ndarray[Any, Any]", is_exact: bool) -> torch.Tensor:
        """Weights on the device; small integers are shapes, and stay on the host."""
        array = torch.from_numpy(values)
        if array.is_floating_point():
            return array.to(self.device, torch.float32 if is_exact else self.dtype)
        return array if array.numel() < 64 else array.to(self.device)


def _array(tensor: onnx.TensorProto, folder: Path) -> "np.ndarray[Any, Any]":
    """A tensor's values; onnx's own reader refuses files with several hard links, which merged models share."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return np.array(onnx.numpy_helper.to_array(tensor))
    told = {entry.key: entry.value for entry in tensor.external_data}
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    count = int(np.prod(tensor.dims, dtype=np.int64))
    values = np.fromfile(folder / told["location"], dtype, count, offset=int(told.get("offset", 0)))
    return values.reshape(tensor.dims)


def _recorded(program: Program, given: Values, outputs: Sequence[str]) -> Callable[[Values], Values]:
    """What runs one set of shapes again: the nodes themselves on a CPU, a CUDA graph or compiled code on a GPU."""
    if os.environ.get("REMARQUE_TORCH_COMPILE") == "1":
        return _compiled(program, given, outputs)
    if program.device.type != "cuda":
        return lambda now: program(now, outputs)
    held = {name: value.clone() for name, value in given.items()}
    side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            program(held, outputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            found = program(held, outputs)
    except RuntimeError:  # a graph that copies from the host cannot be recorded: the text encoder's
        torch.cuda.synchronize()
        return lambda now: program(now, outputs)

    def replay(now: Values) -> Values:
        for name, value in now.items():
            held[name].copy_(value)
        graph.replay()
        return found

    return replay


def _compiled(program: Program, given: Values, outputs: Sequence[str]) -> Callable[[Values], Values]:
    """The nodes traced for these shapes, fused by torch.compile."""
    from torch.fx.experimental.proxy_tensor import make_fx

    names = list(given)

    def flat(*tensors: torch.Tensor) -> list[torch.Tensor]:
        found = program(dict(zip(names, tensors, strict=True)), outputs)
        return [found[name] for name in outputs]

    traced = make_fx(flat)(*given.values())
    mode = "reduce-overhead" if program.device.type == "cuda" else "default"
    compiled = torch.compile(traced, mode=mode)
    return lambda now: dict(zip(outputs, compiled(*(now[name].clone() for name in names)), strict=True))


def _exact(nodes: list[onnx.NodeProto]) -> set[str]:
    """Names of what the inputs above meet before the first matrix product."""
    reached = set(EXACT)
    for node in nodes:
        if node.op_type not in ("Gemm", "MatMul", "Shape") and reached.intersection(node.input):
            reached.update(node.output)
            reached.update(node.input)
    return reached


def _with_attention(nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """MatMul, Softmax and MatMul in a row become one node, so that no matrix of scores is ever written."""
    users: dict[str, int] = {}
    for node in nodes:
        for name in node.input:
            users[name] = users.get(name, 0) + 1
    makers = {name: node for node in nodes for name in node.output}
    fused: dict[str, onnx.NodeProto] = {}
    gone: set[str] = set()
    for node in nodes:
        softmax = makers.get(node.input[0]) if node.op_type == "MatMul" else None
        scores = makers.get(softmax.input[0]) if softmax is not None and softmax.op_type == "Softmax" else None
        if softmax is None or scores is None or scores.op_type != "MatMul":
            continue
        if users[softmax.output[0]] == users[scores.output[0]] == 1:
            fused[node.output[0]] = onnx.NodeProto(
                op_type="Attention*", input=[*scores.input, node.input[1]], output=node.output
            )
            gone |= {softmax.output[0], scores.output[0]}
    return [fused.get(node.output[0], node) for node in nodes if node.output[0] not in gone]
