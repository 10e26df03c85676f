"""Runs one ONNX graph in Triton's python backend: the one model for every graph, on a CPU.

The dynamic batcher hands several requests to one ``execute``. Their rows are joined along the batch dimension, run once
and split again, so that jobs share the work of a step. Requests of different sizes are joined per size. A request that
cannot be served is answered with its own error and never fails its neighbours.

Parameters in ``config.pbtxt``: ``runtime`` (``auto``, ``openvino-bf16``, ``openvino-f32``, ``onnxruntime-f32`` or
``module:NAME``, an importable module with a ``load`` like the one below),
``graph`` (a file in the version folder), ``threads`` (0 or absent: every core this process may use), ``own_shapes``
(how many shapes may get a graph of their own, see ``OwnShapes``; 0 or absent: none), ``check_output`` (comma-separated
outputs of the graph that must be finite; they need not be declared to clients). The environment of the server may
overrule the first and the third with ``REMARQUE_RUNTIME`` and ``REMARQUE_THREADS``.

This file is copied into the version folders and runs alone there, in an environment with numpy 1.26.
"""

import importlib
import json
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

Arrays = dict[str, np.ndarray]
Network = Callable[[Arrays], Arrays]
"""Rows in, rows out: every array's first dimension is the batch. Outputs belong to the caller."""
Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""Every input's name and whole shape."""
SAVED = 0.2
"""Share of a run that a small network's graph of one shape saves in float32 (docs/decisions.md, Triton)."""
SMALL_BYTES = 64 * 2**20
"""Weights of networks that save so much; in a large one the convolutions take the time, in any shape."""


class Unfit(Exception):
    """One request cannot be served; the message goes to its client."""


@dataclass
class Call:
    """One request on its way through ``execute``."""

    request: Any
    rows: int = 0
    inputs: Arrays = field(default_factory=dict)
    outputs: Arrays = field(default_factory=dict)
    error: str | None = None

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """What must be equal for two calls to be joined: everything but the number of rows."""
        return tuple(array.shape[1:] for array in self.inputs.values())


class TritonPythonModel:
    """The name and the methods that the python backend looks for."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the graph; an exception here is the reason that Triton gives for not loading the model."""
        config = json.loads(args["model_config"])
        self.name = config["name"]
        parameters = {key: entry["string_value"] for key, entry in config.get("parameters", {}).items()}
        self.inputs = {entry["name"]: _dtype(entry) for entry in config["input"]}
        self.outputs = {entry["name"]: _dtype(entry) for entry in config["output"]}
        self.checked = [name for name in parameters.get("check_output", "").replace(" ", "").split(",") if name]
        graph = Path(args["model_repository"], args["model_version"], parameters["graph"])
        threads = int(os.environ.get("REMARQUE_THREADS") or parameters.get("threads", "0"))
        self.network = load(
            os.environ.get("REMARQUE_RUNTIME") or parameters["runtime"],
            graph,
            threads or len(os.sched_getaffinity(0)),
            list(dict.fromkeys([*self.outputs, *self.checked])),
            int(parameters.get("own_shapes", "0")),
        )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response per request, in order."""
        calls = [self._read(request) for request in requests]
        groups: dict[tuple[tuple[int, ...], ...], list[Call]] = {}
        for call in calls:
            if call.error is None:
                groups.setdefault(call.shapes, []).append(call)
        for group in groups.values():
            self._run(group)
        return [self._answer(call) for call in calls]

    def _read(self, request: Any) -> Call:
        call = Call(request)
        if request.is_cancelled():
            call.error = "cancelled by the client"
            return call
        for name, dtype in self.inputs.items():
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            if tensor is None:
                call.error = f"{self.name} got no input {name}"
                return call
            call.inputs[name] = np.ascontiguousarray(tensor.as_numpy(), dtype)
        rows = {name: array.shape[0] for name, array in call.inputs.items()}
        call.rows = next(iter(rows.values()))
        if len(set(rows.values())) > 1:
            call.error = f"{self.name} got inputs with different numbers of rows: {rows}"
        return call

    def _run(self, group: list[Call]) -> None:
        """Run ``group`` joined; where that fails, each of its calls alone, so that only the guilty one is refused."""
        try:
            joined = self._joined(group)
        except Exception as error:  # noqa: BLE001 - runtimes raise what they like, and neighbours must not pay for it
            if len(group) == 1:
                group[0].error = _sentence(self.name, error)
                return
            pb_utils.Logger.log_warn(f"{self.name}: {len(group)} joined requests failed, running each alone: {error}")
            for call in group:
                self._run([call])
            return
        start = 0
        for call in group:
            call.outputs = {name: array[start : start + call.rows] for name, array in joined.items()}
            start += call.rows
            broken = [name for name in self.checked if not np.isfinite(call.outputs[name]).all()]
            if broken:
                call.error = f"{self.name} gave NaN or infinity in {', '.join(broken)}"

    def _joined(self, group: list[Call]) -> Arrays:
        if len(group) == 1:
            inputs = group[0].inputs
        else:
            inputs = {name: np.concatenate([call.inputs[name] for call in group]) for name in self.inputs}
        outputs = self.network(inputs)
        rows = sum(call.rows for call in group)
        for name, array in outputs.items():
            if array.shape[:1] != (rows,):
                raise Unfit(f"output {name} has shape {array.shape} for {rows} rows")
        return outputs

    def _answer(self, call: Call) -> Any:
        if call.error is not None:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(call.error))
        tensors = [
            pb_utils.Tensor(name, np.ascontiguousarray(call.outputs[name], dtype))
            for name, dtype in self.outputs.items()
            if name in call.request.requested_output_names()
        ]
        return pb_utils.InferenceResponse(tensors)


class OwnShapes:
    """A network for any shape that builds others, each for one of a few shapes that it runs often.

    Building takes seconds, so a shape has to earn it: by ``SAVED`` of all the time that it ran being more than
    ``build_s``. At most ``most`` are kept; the least recently used makes room, and would have to earn it again.
    """

    def __init__(self, general: Network, build: Callable[[Shapes], Network], build_s: float, most: int) -> None:
        self._general = general
        self._build = build
        self._build_s = build_s
        self._most = most
        self._own: OrderedDict[Shapes, Network] = OrderedDict()
        self._ran_s: dict[Shapes, float] = {}

    def __call__(self, inputs: Arrays) -> Arrays:
        """Run the rows by the network of their shapes, or by the general one."""
        shapes = tuple((name, array.shape) for name, array in inputs.items())
        own = self._own.get(shapes)
        if own is not None:
            self._own.move_to_end(shapes)
            return own(inputs)
        begun_s = time.perf_counter()
        outputs = self._general(inputs)
        self._ran_s[shapes] = self._ran_s.get(shapes, 0.0) + time.perf_counter() - begun_s
        if SAVED * self._ran_s[shapes] > self._build_s:
            self._ran_s[shapes] = 0.0
            self._add(shapes)
        return outputs

    def _add(self, shapes: Shapes) -> None:
        try:
            own = self._build(shapes)
        except Exception as error:  # noqa: BLE001 - runtimes raise what they like, and the general network serves on
            pb_utils.Logger.log_warn(f"no graph of its own for {_told(shapes)}: {error}")
            return
        if len(self._own) == self._most:
            self._own.popitem(last=False)
        self._own[shapes] = own
        pb_utils.Logger.log_info(f"a graph of its own for {_told(shapes)}")


def load(runtime: str, graph: Path, threads: int, outputs: Sequence[str], own_shapes: int = 0) -> Network:
    """The graph as a function from rows to rows, run by ``runtime`` with ``threads`` threads."""
    if not graph.is_file():
        raise Unfit(f"{graph} does not exist; build the model repository again")
    library, _, precision = runtime.partition("-")
    if runtime.startswith("module:"):
        # Brought along, such as torch on a GPU: a module of the stub's environment with a ``load`` of its own.
        network = importlib.import_module(runtime.removeprefix("module:")).load(graph, threads, outputs)
        precision = "what it chose"
    elif runtime == "onnxruntime-f32":
        network = _onnxruntime(graph, threads, outputs)
    elif runtime == "auto" or (library == "openvino" and precision in ("bf16", "f32")):
        network, precision = _openvino(graph, threads, outputs, precision, own_shapes)
    else:
        raise Unfit(f"runtime is {runtime}; auto, openvino-bf16, openvino-f32 and onnxruntime-f32 are served")
    pb_utils.Logger.log_info(f"{graph}: {runtime} runs in {precision} on {threads} threads")
    return network


def _onnxruntime(graph: Path, threads: int, outputs: Sequence[str]) -> Network:
    """Float32 whose rows have the same bits alone and in any batch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Several models share the cores: a waiting pool must not burn the time of the one that works.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    wanted = {entry.name for entry in session.get_inputs()}

    def network(inputs: Arrays) -> Arrays:
        fed = {name: array for name, array in inputs.items() if name in wanted}
        return dict(zip(outputs, session.run(list(outputs), fed), strict=True))

    return network


def _openvino(
    graph: Path, threads: int, outputs: Sequence[str], precision: str, own_shapes: int
) -> tuple[Network, str]:
    """OpenVINO in ``bf16``, ``f32`` or, where ``precision`` is empty, bf16 if this CPU computes in it."""
    import openvino

    core = openvino.Core()
    has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and not has_bf16:
        raise Unfit("runtime is openvino-bf16 and this CPU does not compute in bf16; openvino-f32 and auto are served")
    chosen = precision or ("bf16" if has_bf16 else "f32")
    settings = {
        "INFERENCE_PRECISION_HINT": chosen,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
    }

    def built(model: Any) -> Network:
        compiled = core.compile_model(model, "CPU", settings)
        wanted = {name for port in compiled.inputs for name in port.names}
        request = compiled.create_infer_request()

        def network(inputs: Arrays) -> Arrays:
            request.infer({name: array for name, array in inputs.items() if name in wanted}, share_inputs=True)
            # The request's own memory is overwritten by the next call.
            return {name: request.get_tensor(name).data.copy() for name in outputs}

        return network

    def built_for(shapes: Shapes) -> Network:
        model = core.read_model(graph)
        known = {name for port in model.inputs for name in port.names}
        model.reshape({name: list(shape) for name, shape in shapes if name in known})
        return built(model)

    model = core.read_model(graph)
    weights = sum(op.get_byte_size() for op in model.get_ops() if op.get_type_name() == "Constant")
    begun_s = time.perf_counter()
    network = built(model)
    # In bf16 a row has the same bits alone and in any batch, which graphs of one shape each would not promise.
    if own_shapes and chosen == "f32" and weights <= SMALL_BYTES:
        network = OwnShapes(network, built_for, time.perf_counter() - begun_s, own_shapes)
    return network, chosen


def _told(shapes: Shapes) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes)


def _dtype(entry: Mapping[str, str]) -> "np.dtype[Any]":
    dtype: np.dtype[Any] = np.dtype(pb_utils.triton_string_to_numpy(entry["data_type"]))
    return dtype


def _sentence(model: str, error: Exception) -> str:
    said = f"{error}" or type(error).__name__
    lack = ("bad_alloc", "Failed to allocate", "bad allocation")
    if isinstance(error, MemoryError) or any(sign in said for sign in lack):
        return f"{model} ran out of memory: {said}"
    return f"{model} failed: {said}"
