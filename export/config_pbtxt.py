"""Renders a model's ``config.pbtxt`` from its specification."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from export.specs import Axis, Device, Graph, Precision, Runtime, Tensor, wire_type

CONFIG_FILE: Final = "config.pbtxt"
GRAPH_FILE: Final = "model.onnx"
PLAN_FILE: Final = "model.plan"
LOCAL_RUNTIMES: Final = ("auto", "openvino-bf16", "openvino-f32", "onnxruntime-f32")

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
    """What the shared ``model.py`` runs the graphs with; on a GPU Triton's own backends run them."""
    threads: int = 0
    """Of one model on a CPU; 0 takes every core the server may use."""


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
        f"instance_group [ {{ count: 1 kind: KIND_{serving.device.name} }} ]",
    ]
    if serving.device is Device.CPU:
        lines += [_parameter(key, value) for key, value in _parameters(graph, serving).items()]
    return "\n".join(lines) + "\n"


def _backend(serving: Serving) -> str:
    if serving.device is Device.CPU:
        return 'backend: "python"'
    if serving.runtime is Runtime.ONNX:
        return f'platform: "onnxruntime_onnx"\ndefault_model_filename: "{GRAPH_FILE}"'
    return f'platform: "tensorrt_plan"\ndefault_model_filename: "{PLAN_FILE}"'


def _parameters(graph: Graph, serving: Serving) -> Mapping[str, str]:
    parameters = {"runtime": serving.local_runtime, "graph": GRAPH_FILE, "threads": str(serving.threads)}
    return parameters if graph.checked is None else parameters | {"check_output": graph.checked}


def _parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'


def _tensor(field: str, tensor: Tensor, precision: Precision) -> str:
    dims = ", ".join("-1" if isinstance(dim, Axis) else str(dim) for dim in tensor.dims)
    kind = _TYPES[wire_type(tensor.kind, precision)]
    inner = (f'name: "{tensor.name}"', f"data_type: {kind}", f"dims: [ {dims} ]")
    return "\n".join((f"{field} {{", *(_INDENT + line for line in inner), "}"))
