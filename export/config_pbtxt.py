"""Renders a model's ``config.pbtxt`` from its specification."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from export.profiles import BUCKETS_PX, CudaGraph, cuda_graphs_of, profiles_of
from export.specs import Axis, Device, Graph, Precision, Runtime, Tensor, wire_type

CONFIG_FILE: Final = "config.pbtxt"
GRAPH_FILE: Final = "model.onnx"
PLAN_FILE: Final = "model.plan"
LOCAL_RUNTIMES: Final = ("auto", "openvino-bf16", "openvino-f32", "onnxruntime-f32")
"""What the shared ``model.py`` runs graphs with."""
NATIVE: Final = "triton-onnxruntime"
"""Triton's own ONNX Runtime backend instead of the shared ``model.py``."""

_TYPES: Final = {
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "int64": "TYPE_INT64",
    "uint8": "TYPE_UINT8",
}
_INDENT: Final = "  "


@dataclass(frozen=True)
class Serving:
    """How a repository is served, the same for all of its models."""

    runtime: Runtime
    device: Device
    local_runtime: str = "auto"
    """What runs the graphs on a CPU; on a GPU Triton's own backends do."""
    threads: int = 0
    """Of one model on a CPU; 0 takes every core the server may use."""
    plan_file: str = PLAN_FILE
    compute_capability: str = ""
    """The GPU that the plan is for, such as ``8.9``; on another one Triton finds no plan and refuses the model."""
    buckets_px: tuple[tuple[int, int], ...] = BUCKETS_PX
    """Sizes that an engine has profiles of their own for."""

    @property
    def has_python_model(self) -> bool:
        """Whether the shared ``model.py`` runs the graphs."""
        return self.device is Device.CPU and self.local_runtime != NATIVE


def render(graph: Graph, serving: Serving, precision: Precision) -> str:
    """The text of ``config.pbtxt``. Dynamic axes are -1; the batch dimension is left out, as Triton wants it.

    ``dynamic_batching`` holds the queue delay alone: each other policy puts a timer of 500 ms into the batcher.
    """
    batching = graph.batching[serving.device]
    lines = [
        f'name: "{graph.name}"',
        _backend(serving),
        f"max_batch_size: {batching.max_rows}",
        *(_tensor("input", tensor, precision) for tensor in graph.inputs),
        *(_tensor("output", tensor, precision) for tensor in graph.outputs),
        f"dynamic_batching {{ max_queue_delay_microseconds: {batching.max_queue_delay_us} }}",
        f"instance_group [ {{ count: 1 kind: KIND_{serving.device.name}{_profiles(graph, serving)} }} ]",
        *(_parameter(key, value) for key, value in _parameters(graph, serving).items()),
        *_optimization(graph, serving),
    ]
    return "\n".join(lines) + "\n"


def _backend(serving: Serving) -> str:
    if serving.has_python_model:
        return 'backend: "python"'
    if serving.runtime is Runtime.ONNX:
        return f'platform: "onnxruntime_onnx"\ndefault_model_filename: "{GRAPH_FILE}"'
    if not serving.compute_capability:
        return f'platform: "tensorrt_plan"\ndefault_model_filename: "{serving.plan_file}"'
    by_gpu = f'cc_model_filenames {{ key: "{serving.compute_capability}" value: "{serving.plan_file}" }}'
    return f'platform: "tensorrt_plan"\n{by_gpu}'


def _is_engine(serving: Serving) -> bool:
    return serving.device is Device.GPU and serving.runtime is not Runtime.ONNX


def _profiles(graph: Graph, serving: Serving) -> str:
    """Every profile by its index: of those not named here Triton uses none but the first."""
    if not _is_engine(serving):
        return ""
    count = len(profiles_of(graph, graph.batching[Device.GPU], serving.buckets_px))
    indices = ", ".join(f'"{index}"' for index in range(count))
    return f" profile: [ {indices} ]"


def _optimization(graph: Graph, serving: Serving) -> Iterator[str]:
    captured = cuda_graphs_of(graph, graph.batching[Device.GPU], serving.buckets_px) if _is_engine(serving) else ()
    if captured:
        yield "optimization { cuda {"
        yield f"{_INDENT}graphs: true"
        yield from map(_graph_spec, captured)
        yield "} }"


def _graph_spec(graph: CudaGraph) -> str:
    """Exactly these shapes: a lower bound would run a graph over memory that nobody filled."""
    inputs = (
        f'input {{ key: "{name}" value {{ dim: [ {", ".join(map(str, shape))} ] }} }}'
        for name, shape in graph.shapes.items()
    )
    return "\n".join(
        (f"{_INDENT}graph_spec {{ batch_size: {graph.rows}", *(_INDENT * 2 + line for line in inputs), "  }")
    )


def _parameters(graph: Graph, serving: Serving) -> Mapping[str, str]:
    if _is_engine(serving):
        # Otherwise the context of each profile takes the memory of the largest.
        return {"execution_context_allocation_strategy": "ON_PROFILE_CHANGE"}
    if not serving.has_python_model:
        return {"intra_op_thread_count": str(serving.threads)} if serving.threads else {}
    parameters = {"runtime": serving.local_runtime, "graph": GRAPH_FILE, "threads": str(serving.threads)}
    if graph.own_shapes:
        parameters["own_shapes"] = str(graph.own_shapes)
    if graph.checked is not None:
        parameters["check_output"] = graph.checked
    return parameters


def _parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'


def _tensor(field: str, tensor: Tensor, precision: Precision) -> str:
    dims = ", ".join("-1" if isinstance(dim, Axis) else str(dim) for dim in tensor.dims)
    kind = _TYPES[wire_type(tensor.kind, precision)]
    inner = (f'name: "{tensor.name}"', f"data_type: {kind}", f"dims: [ {dims} ]")
    return "\n".join((f"{field} {{", *(_INDENT + line for line in inner), "}"))
