"""Graphs of a few kilobytes in a model repository: the four networks' tensors, and four that go wrong on demand."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

MODEL_PY = Path(__file__).parents[2] / "model_repository" / "model.py"
NETWORKS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")
WIDTH = 16


@dataclass(frozen=True)
class TinyGraph:
    """A graph in ONNX's text form, with the weights it names and what its ``config.pbtxt`` says of each tensor."""

    text: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    weights: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)
    max_delay_us: int = 20_000


GRAPHS = {
    "text_encoder": TinyGraph(
        """(int64[n,77] input_ids) => (float[n,77,16] last_hidden_state, float[n,16] pooler_output) {
            axes = Constant<value_ints = [2]>()
            middle = Constant<value_ints = [1]>()
            ids = Cast<to = 1>(input_ids)
            column = Unsqueeze(ids, axes)
            angles = Mul(column, frequencies)
            last_hidden_state = Sin(angles)
            pooler_output = ReduceMean<keepdims = 0>(last_hidden_state, middle)
        }""",
        {"input_ids": "TYPE_INT64 77"},
        {"last_hidden_state": f"TYPE_FP32 77,{WIDTH}", "pooler_output": f"TYPE_FP32 {WIDTH}"},
        {"frequencies": (1, 1, WIDTH)},
    ),
    "unet": TinyGraph(
        """(float[n,4,h,w] sample, float[n,1] timestep, float[n,k,16] encoder_hidden_states) => (float[n,4,h,w] out_sample)
        {
            corner = Constant<value_ints = [-1, 1, 1, 1]>()
            axes = Constant<value_ints = [1, 2]>()
            thousandth = Constant<value_float = 0.001>()
            seen = Conv<pads = [1, 1, 1, 1]>(sample, kernel)
            meant = ReduceMean<keepdims = 0>(encoder_hidden_states, axes)
            word = Reshape(meant, corner)
            level = Reshape(timestep, corner)
            scaled = Mul(level, thousandth)
            sum = Sum(seen, word, scaled)
            out_sample = Tanh(sum)
        }""",
        {"sample": "TYPE_FP32 4,-1,-1", "timestep": "TYPE_FP32 1", "encoder_hidden_states": f"TYPE_FP32 -1,{WIDTH}"},
        {"out_sample": "TYPE_FP32 4,-1,-1"},
        {"kernel": (4, 4, 3, 3)},
    ),
    "vae_decoder": TinyGraph(
        """(float[n,4,h,w] latent_sample) => (uint8[n,a,b,3] sample, float[n,1] mean) {
            axes = Constant<value_ints = [1, 2, 3]>()
            half = Constant<value_float = 127.5>()
            colours = Conv(latent_sample, kernel)
            sizes = Constant<value_floats = [1.0, 1.0, 8.0, 8.0]>()
            large = Resize<mode = "nearest">(colours, , sizes)
            averaged = ReduceMean<keepdims = 0>(large, axes)
            one = Constant<value_ints = [1]>()
            mean = Unsqueeze(averaged, one)
            bounded = Tanh(large)
            doubled = Mul(bounded, half)
            bright = Add(doubled, half)
            last = Transpose<perm = [0, 2, 3, 1]>(bright)
            sample = Cast<to = 2>(last)
        }""",
        {"latent_sample": "TYPE_FP32 4,-1,-1"},
        {"sample": "TYPE_UINT8 -1,-1,3", "mean": "TYPE_FP32 1"},
        {"kernel": (3, 4, 1, 1)},
        {"check_output": "mean"},
    ),
    "vae_encoder": TinyGraph(
        """(uint8[n,a,b,3] sample) => (float[n,4,h,w] latent_mean, float[n,4,h,w] latent_std) {
            part = Constant<value_float = 0.0078125>()
            values = Cast<to = 1>(sample)
            first = Transpose<perm = [0, 3, 1, 2]>(values)
            small = AveragePool<kernel_shape = [8, 8], strides = [8, 8]>(first)
            unit = Mul(small, part)
            latent_mean = Conv(unit, kernel)
            size = Abs(latent_mean)
            latent_std = Mul(size, part)
        }""",
        {"sample": "TYPE_UINT8 -1,-1,3"},
        {"latent_mean": "TYPE_FP32 4,-1,-1", "latent_std": "TYPE_FP32 4,-1,-1"},
        {"kernel": (4, 3, 1, 1)},
    ),
    # Several layers, so that a runtime which divides the work by batch would show in the last bits.
    "convolutions": TinyGraph(
        """(float[n,4,h,w] sample) => (float[n,32,h,w] out_sample) {
            a = Conv<pads = [1, 1, 1, 1]>(sample, first)
            b = Relu(a)
            c = Conv<pads = [1, 1, 1, 1]>(b, second)
            d = Relu(c)
            out_sample = Conv<pads = [1, 1, 1, 1]>(d, third)
        }""",
        {"sample": "TYPE_FP32 4,-1,-1"},
        {"out_sample": "TYPE_FP32 32,-1,-1"},
        {"first": (32, 4, 3, 3), "second": (32, 32, 3, 3), "third": (32, 32, 3, 3)},
    ),
    # The same, with graphs of one shape each for shapes that run often.
    "convolutions_of_one_shape": TinyGraph(
        """(float[n,4,h,w] sample) => (float[n,32,h,w] out_sample) {
            a = Conv<pads = [1, 1, 1, 1]>(sample, first)
            b = Sigmoid(a)
            c = Mul(a, b)
            out_sample = Conv<pads = [1, 1, 1, 1]>(c, second)
        }""",
        {"sample": "TYPE_FP32 4,-1,-1"},
        {"out_sample": "TYPE_FP32 32,-1,-1"},
        {"first": (32, 4, 3, 3), "second": (32, 32, 3, 3)},
        {"runtime": "openvino-f32", "own_shapes": "2"},
    ),
    # An index outside the table fails the whole run that it is part of.
    "lookup": TinyGraph(
        "(int64[n,1] index) => (float[n,1,8] row) { row = Gather(table, index) }",
        {"index": "TYPE_INT64 1"},
        {"row": "TYPE_FP32 1,8"},
        {"table": (10, 8)},
    ),
    "reciprocal": TinyGraph(
        "(float[n,w] value) => (float[n,w] result) { result = Reciprocal(value) }",
        {"value": "TYPE_FP32 -1"},
        {"result": "TYPE_FP32 -1"},
        parameters={"check_output": "result"},
    ),
    "reciprocal_unchecked": TinyGraph(
        "(float[n,w] value) => (float[n,w] result) { result = Reciprocal(value) }",
        {"value": "TYPE_FP32 -1"},
        {"result": "TYPE_FP32 -1"},
    ),
}


def write_repository(folder: Path, runtime: str = "onnxruntime-f32") -> Path:
    """All graphs as a model repository in ``folder``."""
    for name, graph in GRAPHS.items():
        write_model(folder, name, graph, runtime)
    return folder


def write_model(folder: Path, name: str, graph: TinyGraph, runtime: str = "onnxruntime-f32") -> None:
    """One model directory: graph, shared model.py, config.pbtxt."""
    version = folder / name / "1"
    version.mkdir(parents=True)
    onnx.save(build(name, graph), version / "model.onnx")
    shutil.copy(MODEL_PY, version / "model.py")
    (folder / name / "config.pbtxt").write_text(_config(name, graph, runtime))


def build(name: str, graph: TinyGraph) -> onnx.ModelProto:
    """The graph as a checked ONNX model with fixed pseudo-random weights."""
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 20]>\n{name} {graph.text}')
    draw = np.random.default_rng(7)
    for weight, shape in graph.weights.items():
        values = draw.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[1:])))
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), weight))
    onnx.checker.check_model(model)
    return model


def _config(name: str, graph: TinyGraph, runtime: str) -> str:
    parameters = {"runtime": runtime, "graph": "model.onnx", "threads": "2"} | dict(graph.parameters)
    lines = [f'name: "{name}"', 'backend: "python"', "max_batch_size: 8"]
    lines += [_tensor("input", key, kind, "allow_ragged_batch: true") for key, kind in graph.inputs.items()]
    lines += [_tensor("output", key, kind, "") for key, kind in graph.outputs.items()]
    lines += [f"dynamic_batching {{ max_queue_delay_microseconds: {graph.max_delay_us} }}"]
    lines += ["instance_group [ { count: 1 kind: KIND_CPU } ]"]
    lines += [f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}' for key, value in parameters.items()]
    return "\n".join(lines)


def _tensor(field_name: str, name: str, kind: str, more: str) -> str:
    dtype, dims = kind.split(" ")
    return f'{field_name} {{ name: "{name}" data_type: {dtype} dims: [ {dims} ] {more} }}'
