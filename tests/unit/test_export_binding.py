"""Graphs without weights, filled from a checkpoint's tensors."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.binding import bind, detach, sources
from export.errors import ExportError
from export.session import Session

GENERATOR = np.random.default_rng(3)
TENSORS = {
    "linear.weight": GENERATOR.standard_normal((3, 4)).astype(np.float16),
    "norm.weight": GENERATOR.standard_normal(3).astype(np.float16),
}
X = GENERATOR.standard_normal((2, 5, 4)).astype(np.float32)


def traced_model(constant: np.ndarray | None = None) -> onnx.ModelProto:
    """y = (x @ linear.weight.T) * norm.weight, as a tracer leaves it: a transposed and an unsqueezed weight."""
    initializers = [
        numpy_helper.from_array(np.zeros((3, 4), np.float32), "p.linear.weight"),
        numpy_helper.from_array(np.zeros(3, np.float32), "p.norm.weight"),
        numpy_helper.from_array(np.array([0, 1], np.int64), "axes"),
    ]
    nodes = [
        helper.make_node("Transpose", ["p.linear.weight"], ["turned"], perm=[1, 0]),
        helper.make_node("Unsqueeze", ["p.norm.weight", "axes"], ["scale"]),
        helper.make_node("MatMul", ["x", "turned"], ["product"]),
        helper.make_node("Mul", ["product", "scale"], ["y"]),
    ]
    if constant is not None:
        initializers.append(numpy_helper.from_array(constant, "nameless"))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "k", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "k", 3])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def weightless() -> onnx.ModelProto:
    return detach(traced_model(), {"p.linear.weight": "linear.weight", "p.norm.weight": "norm.weight"})


def test_bound_graph_computes_with_the_checkpoints_tensors_in_the_graphs_own_dtype(tmp_path: Path) -> None:
    bind(weightless(), TENSORS, tmp_path / "model.onnx")

    y = Session(tmp_path / "model.onnx").run({"x": X})["y"]

    expected = X @ TENSORS["linear.weight"].astype(np.float32).T * TENSORS["norm.weight"].astype(np.float32)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_one_graph_serves_two_checkpoints(tmp_path: Path) -> None:
    graph = weightless()
    other = {name: tensor * 2 for name, tensor in TENSORS.items()}
    bind(graph, TENSORS, tmp_path / "one.onnx")
    bind(graph, other, tmp_path / "two.onnx")

    one, two = (Session(tmp_path / name).run({"x": X})["y"] for name in ("one.onnx", "two.onnx"))

    np.testing.assert_allclose(two, one * 4, rtol=1e-5)


def test_weightless_graph_holds_no_value_and_names_every_tensor_it_needs() -> None:
    graph = weightless()

    assert sorted(sources(graph)) == ["linear.weight", "norm.weight"]
    assert all(not entry.raw_data for entry in graph.graph.initializer if entry.name != "axes")


def test_transposed_and_unsqueezed_weights_are_stored_in_that_form_once() -> None:
    graph = weightless().graph

    assert [node.op_type for node in graph.node] == ["MatMul", "Mul"]
    assert {entry.name: list(entry.dims) for entry in graph.initializer} == {"turned": [4, 3], "scale": [1, 1, 3]}


def test_weights_lie_beside_the_graph_and_progress_counts_their_bytes(tmp_path: Path) -> None:
    counted: list[int] = []

    bind(weightless(), TENSORS, tmp_path / "model.onnx", counted.append)

    assert sum(counted) == (12 + 3) * 4
    assert (tmp_path / "model.onnx.data").stat().st_size >= sum(counted)
    assert (tmp_path / "model.onnx").stat().st_size < 1000


def test_large_constant_that_no_tensor_names_is_refused_instead_of_being_shipped_with_the_graph() -> None:
    model = traced_model(np.zeros(20_000, np.float32))
    model.graph.node.append(helper.make_node("Identity", ["nameless"], ["unused"]))

    with pytest.raises(ExportError, match=r"nameless \[20000\] is a weight that no checkpoint tensor names"):
        detach(model, {"p.linear.weight": "linear.weight", "p.norm.weight": "norm.weight"})


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"asks for norm\.weight, which its weights do not hold"):
        bind(weightless(), {"linear.weight": TENSORS["linear.weight"]}, tmp_path / "model.onnx")


@pytest.mark.parametrize("shape", [(4, 3), (12,), (3, 4, 1)])
def test_tensor_of_another_shape_is_refused_even_where_its_size_fits(tmp_path: Path, shape: tuple[int, ...]) -> None:
    wrong = TENSORS | {"linear.weight": TENSORS["linear.weight"].reshape(shape)}

    with pytest.raises(ExportError, match=r"linear\.weight has shape"):
        bind(weightless(), wrong, tmp_path / "model.onnx")


def test_tensor_apart_lies_in_a_file_of_its_own_in_the_form_the_answer_tells(tmp_path: Path) -> None:
    parts = bind(weightless(), TENSORS, tmp_path / "model.onnx", apart={"linear.weight"})

    (part,) = parts["linear.weight"]
    assert (part.file, part.dtype, part.axes, part.dims) == ("weights/linear.weight", "float32", "1,0", (4, 3))
    stored = np.fromfile(tmp_path / part.file, part.dtype).reshape(part.dims)
    np.testing.assert_array_equal(stored, TENSORS["linear.weight"].T.astype(np.float32))
    assert (tmp_path / "model.onnx.data").stat().st_size == 3 * 4


def test_graph_with_a_tensor_apart_computes_the_same(tmp_path: Path) -> None:
    (tmp_path / "apart").mkdir()
    bind(weightless(), TENSORS, tmp_path / "model.onnx")
    bind(weightless(), TENSORS, tmp_path / "apart" / "model.onnx", apart=TENSORS.keys())

    together, apart = (Session(tmp_path / name).run({"x": X})["y"] for name in ("model.onnx", "apart/model.onnx"))

    np.testing.assert_array_equal(together, apart)


def test_tensor_that_a_graph_holds_in_two_forms_has_a_file_for_each(tmp_path: Path) -> None:
    model = traced_model()
    model.graph.node.append(helper.make_node("MatMul", ["y", "p.linear.weight"], ["z"]))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", "k", 4]))
    graph = detach(model, {"p.linear.weight": "linear.weight", "p.norm.weight": "norm.weight"})

    parts = bind(graph, TENSORS, tmp_path / "model.onnx", apart={"linear.weight"})

    assert {part.file: part.axes for part in parts["linear.weight"]} == {
        "weights/linear.weight": "0,1",
        "weights/linear.weight.2": "1,0",
    }
    assert sorted(path.name for path in (tmp_path / "weights").iterdir()) == ["linear.weight", "linear.weight.2"]
