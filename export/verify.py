"""Compares a bound graph, run by ONNX Runtime, with the checkpoint's own network in torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export import specs, to_onnx
from export.checkpoint import Checkpoint
from export.errors import VerificationError
from export.session import Session
from export.style_input import merged

# Largest difference allowed, as a share of the output's largest value. A picture is rounded to 255 levels, so values
# that differ in their last bit may come out one level apart.
_TOLERANCE: Final[Mapping[specs.Precision, float]] = {specs.Precision.FP32: 1e-4, specs.Precision.FP16: 3e-2}
_TOLERANCE_LEVELS: Final[Mapping[specs.Precision, int]] = {specs.Precision.FP32: 1, specs.Precision.FP16: 12}
_STYLE_STRENGTH: Final = 0.1
_SEED: Final = 0


@dataclass(frozen=True)
class Difference:
    """How far one output is from torch's, at worst, over every case compared."""

    output: str
    largest: float
    scale: float
    """The largest value of torch's output: 255 for pictures."""
    allowed: float

    @property
    def share(self) -> float:
        return self.largest / self.scale

    def __str__(self) -> str:
        return f"{self.output} {self.largest:.2g} of {self.scale:.3g}"


def can_run(precision: specs.Precision) -> bool:
    """Whether ONNX Runtime computes in this precision on a CPU."""
    return precision in _TOLERANCE


def verify(
    graph: specs.Graph,
    path: Path,
    checkpoint: Checkpoint,
    precision: specs.Precision,
    changed: Mapping[str, NDArray[Any]] = MappingProxyType({}),
) -> tuple[Difference, ...]:
    """The largest difference of each output over one row and three, square and not; torch computes in fp32.

    ``changed`` are tensors that the graph holds instead of the checkpoint's.

    The first row of several has no style, every other one its own; torch has each merged into its weights.

    Raises VerificationError where one exceeds what the precision explains.
    """
    generator = np.random.default_rng(_SEED)
    cases = [example(graph, checkpoint, rows, stretch, generator) for rows, stretch in ((1, 0), (3, 1))]
    said = _torch_says(graph, checkpoint, changed, cases)
    session = Session(path)
    wire = {tensor.name: specs.wire_type(tensor.kind, precision) for tensor in graph.inputs}
    worst: dict[str, Difference] = {}
    for inputs, expected in zip(cases, said, strict=True):
        reached = session.run({name: value.astype(wire[name]) for name, value in inputs.items()})
        for tensor, value in zip(graph.outputs, expected, strict=True):
            found = _difference(tensor, value, reached[tensor.name], precision, tensor.name == graph.checked)
            worst[tensor.name] = max(worst.get(tensor.name, found), found, key=lambda d: d.share)
    for difference in worst.values():
        # Written so that NaN fails too.
        if not difference.share <= difference.allowed:
            raise VerificationError(
                f"{graph.name}: {difference.output} is {difference.largest:.2g} from torch's, whose largest "
                f"value is {difference.scale:.3g}; {precision} explains {difference.allowed * difference.scale:.2g}"
            )
    return tuple(worst.values())


def _torch_says(
    graph: specs.Graph,
    checkpoint: Checkpoint,
    changed: Mapping[str, NDArray[Any]],
    cases: Sequence[Mapping[str, NDArray[Any]]],
) -> list[tuple[NDArray[Any], ...]]:
    """Every output for each of ``cases``; the network is gone when the graph is loaded, for SDXL's are 10 GB each."""
    network = to_onnx.load(graph, checkpoint)
    for name, value in changed.items():
        network.get_submodule("network").get_parameter(name).data.copy_(torch.from_numpy(value))
    return [
        _answer(graph, network, {name: torch.from_numpy(value) for name, value in inputs.items()}) for inputs in cases
    ]


def _answer(graph: specs.Graph, network: nn.Module, inputs: dict[str, Tensor]) -> tuple[NDArray[Any], ...]:
    if graph.style is None:
        with torch.no_grad():
            answer = network(*inputs.values())
        return tuple(value.numpy() for value in (answer if isinstance(answer, tuple) else (answer,)))
    rows = []
    styles = inputs.pop("style")
    for i, style in enumerate(styles):
        with merged(network.get_submodule("network"), graph.style, style), torch.no_grad():
            rows.append(network(*(value[i : i + 1] for value in inputs.values())).numpy())
    return (np.concatenate(rows),)


def example(
    graph: specs.Graph, checkpoint: Checkpoint, rows: int, stretch: int, generator: np.random.Generator
) -> dict[str, NDArray[Any]]:
    """Inputs of the smallest size served, ``stretch`` steps wider than high and as many chunks of text longer."""

    def size(dim: int | specs.Axis) -> int:
        if isinstance(dim, int):
            return dim
        return dim.minimum + (stretch * dim.multiple if dim.name not in ("h", "H") else 0)

    inputs: dict[str, NDArray[Any]] = {}
    for tensor in graph.inputs:
        shape = (rows, *(size(dim) for dim in tensor.dims))
        if tensor.name == "input_ids":
            vocabulary = checkpoint.configs[graph.component]["vocab_size"]
            inputs[tensor.name] = generator.integers(0, vocabulary, shape, dtype=np.int64)
        elif tensor.name == "timestep":
            inputs[tensor.name] = generator.integers(0, 1000, shape).astype(np.float32)
        elif tensor.name == "time_ids":
            inputs[tensor.name] = generator.integers(0, 1024, shape).astype(np.float32)
        elif graph.style is not None and tensor.name == "style":
            inputs[tensor.name] = random_styles(graph.style, rows, generator)
        elif tensor.kind is specs.Kind.UINT8:
            inputs[tensor.name] = generator.integers(0, 256, shape, dtype=np.uint8)
        else:
            inputs[tensor.name] = generator.standard_normal(shape, dtype=np.float32)
    return inputs


def random_styles(style: specs.StyleInput, rows: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """Styles [rows, size], each another, that change a layer's output by about half of it; none for a first of many."""
    values = generator.standard_normal((rows, style.size), dtype=np.float32)
    start = 0
    for layer in style.layers:
        for numbers, deviation in ((layer.width_in, layer.width_in**-0.5), (layer.width_out, _STYLE_STRENGTH)):
            values[:, start : start + style.rank * numbers] *= deviation
            start += style.rank * numbers
    if rows > 1:
        values[0] = 0.0
    return values


def _difference(
    tensor: specs.Tensor, expected: NDArray[Any], reached: NDArray[Any], precision: specs.Precision, checked: bool
) -> Difference:
    """``checked``: the output says whether a row went wrong, and its own size says nothing."""
    if expected.shape != reached.shape:
        raise VerificationError(f"{tensor.name} has shape {reached.shape}; torch gives {expected.shape}")
    largest = float(np.abs(expected.astype(np.float64) - reached.astype(np.float64)).max())
    if tensor.kind is specs.Kind.UINT8:
        return Difference(tensor.name, largest, 255.0, _TOLERANCE_LEVELS[precision] / 255.0)
    scale = 1.0 if checked else float(np.abs(expected).max())
    return Difference(tensor.name, largest, max(scale, 1e-3), _TOLERANCE[precision])
