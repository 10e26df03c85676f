"""A graph in fp8: which layers, in which form, and how far from the numbers it was made of."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from export_checkpoints import change_config, write_checkpoint, write_json
from onnx import TensorProto, helper

from export.binding import ask, bind
from export.calibration import WORDS, random_prompts
from export.checkpoint import open_checkpoint
from export.errors import ExportError
from export.session import Session
from export.to_fp8 import LARGEST, EightBit, largest_inputs, layers_of, quantised, watched

FLOAT = TensorProto.FLOAT
RNG = np.random.default_rng(3)
WEIGHTS = {
    "conv_in.weight": RNG.standard_normal((8, 4, 3, 3)).astype(np.float32),
    "mid.conv1.weight": (RNG.standard_normal((6, 8, 3, 3)) * np.logspace(-3, 2, 6)[:, None, None, None]).astype(np.float32),
    "mid.to_q.weight": RNG.standard_normal((5, 6)).astype(np.float32),
    "mid.to_k.weight": RNG.standard_normal((5, 6)).astype(np.float32),
    "mid.time_emb_proj.weight": RNG.standard_normal((5, 5)).astype(np.float32),
}  # fmt: skip
LAYERS = ["mid.conv1.weight", "mid.to_q.weight", "mid.to_k.weight"]


def weightless() -> onnx.ModelProto:
    """Convolutions, two projections of one input with their weights transposed, and an embedding."""

    def weight(name: str, dims: tuple[int, ...], axes: str) -> onnx.TensorProto:
        entry = TensorProto(name=name.replace(".", "_"), data_type=FLOAT, dims=dims)
        ask(entry, name, axes.split(","))
        return entry

    node = helper.make_node
    graph = helper.make_graph(
        [
            node("Conv", ["x", "conv_in_weight"], ["a"], pads=[1, 1, 1, 1]),
            node("Conv", ["a", "mid_conv1_weight"], ["b"], pads=[1, 1, 1, 1]),
            node("ReduceMean", ["b", "axes"], ["pooled"], keepdims=0),
            node("MatMul", ["pooled", "mid_to_q_weight"], ["q"]),
            node("MatMul", ["pooled", "mid_to_k_weight"], ["k"]),
            node("MatMul", ["k", "mid_time_emb_proj_weight"], ["t"]),
            node("Add", ["q", "t"], ["y"]),
        ],
        "small",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 4, 8, 8])],
        [helper.make_tensor_value_info("y", FLOAT, ["n", 5])],
        [
            weight("conv_in.weight", (8, 4, 3, 3), "0,1,2,3"),
            weight("mid.conv1.weight", (6, 8, 3, 3), "0,1,2,3"),
            weight("mid.to_q.weight", (6, 5), "1,0"),
            weight("mid.to_k.weight", (6, 5), "1,0"),
            weight("mid.time_emb_proj.weight", (5, 5), "1,0"),
            helper.make_tensor("axes", TensorProto.INT64, (2,), [2, 3]),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


X = RNG.standard_normal((3, 4, 8, 8)).astype(np.float32)


def run(graph: onnx.ModelProto, folder: Path) -> dict[str, np.ndarray]:
    path = folder / "model.onnx"
    bind(graph, EightBit(WEIGHTS), path)
    return Session(path).run({"x": X})


@pytest.fixture
def largest(tmp_path: Path) -> dict[str, float]:
    return largest_inputs(weightless(), [run(watched(weightless()), tmp_path)])


def test_every_convolution_and_projection_is_a_layer_but_the_first_and_the_embeddings() -> None:
    found = layers_of(weightless())
    assert [layer.source for layer in found] == LAYERS
    assert [layer.axis for layer in found] == [0, 1, 1]


def test_the_largest_input_of_a_layer_is_what_a_run_saw(largest: dict[str, float]) -> None:
    padded = np.pad(X, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    before = np.einsum("nchwij,ocij->nohw", windows, WEIGHTS["conv_in.weight"])
    assert largest["mid.conv1.weight"] == pytest.approx(float(np.abs(before).max()), rel=1e-5)
    assert largest["mid.to_q.weight"] == largest["mid.to_k.weight"]
    assert set(largest) == set(LAYERS)


def test_the_answer_is_within_a_tenth_and_not_the_same(tmp_path: Path, largest: dict[str, float]) -> None:
    wide, narrow = (run(graph, tmp_path)["y"] for graph in (weightless(), quantised(weightless(), largest)))
    error = np.sqrt(((wide - narrow) ** 2).mean() / (wide**2).mean())
    assert 1e-4 < error < 0.1  # a number is off by a sixteenth at most, and here few are summed up


def test_a_small_channel_beside_a_large_one_keeps_its_precision() -> None:
    tensors = EightBit(WEIGHTS)
    stored = tensors["mid.conv1.weight#e4m3"].astype(np.float32)
    again = stored * tensors["mid.conv1.weight#scale"][:, None, None, None]
    weight = WEIGHTS["mid.conv1.weight"]
    largest = np.abs(weight).reshape(6, -1).max(axis=1)[:, None, None, None]
    assert np.abs(stored).max() == LARGEST
    assert (np.abs(again - weight) <= np.maximum(np.abs(weight) / 16, largest * 2.0**-10 / LARGEST)).all()


def test_a_channel_of_zeros_stays_zeros() -> None:
    tensors = EightBit({"w": np.zeros((2, 3), np.float32)})
    assert not tensors["w#e4m3"].astype(np.float32).any()
    assert np.isfinite(tensors["w#scale"]).all()


def test_layers_that_read_the_same_are_given_it_once(largest: dict[str, float]) -> None:
    made = [node for node in quantised(weightless(), largest).graph.node if node.op_type == "QuantizeLinear"]
    assert [node.input[0] for node in made] == ["a", "pooled"]


def test_weights_take_a_byte_each(tmp_path: Path, largest: dict[str, float]) -> None:
    bind(quantised(weightless(), largest), EightBit(WEIGHTS), tmp_path / "model.onnx")
    kinds = {
        entry.name: entry.data_type
        for entry in onnx.load(tmp_path / "model.onnx", load_external_data=False).graph.initializer
    }
    assert {name for name, kind in kinds.items() if kind == TensorProto.FLOAT8E4M3FN and not name.endswith("#zero")} == {
        "mid_conv1_weight", "mid_to_q_weight", "mid_to_k_weight",
    }  # fmt: skip


def test_a_tensor_that_the_checkpoint_has_not_is_not_made_up() -> None:
    assert "mid.other.weight#e4m3" not in EightBit(WEIGHTS)


def test_random_prompts_end_as_the_vocabulary_says_whatever_the_published_config_does(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    change_config(folder, "text_encoder", bos_token_id=0, eos_token_id=2, pad_token_id=1)
    words = {f"{number}</w>": number for number in range(5)}
    write_json(folder / "tokenizer" / "vocab.json", {**words, "<|startoftext|>": 5, "<|endoftext|>": 6})

    ids = random_prompts(open_checkpoint(str(folder)))

    assert ids[0].tolist() == [5] + [6] * 76
    assert set(ids[:, 0]) == {5} and set(ids[1:, 1 + WORDS :].flat) == {6}
    assert set(ids[1:, 1 : 1 + WORDS].flat) <= set(range(5))


def test_random_prompts_are_padded_as_the_checkpoint_pads(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    write_json(folder / "tokenizer" / "vocab.json", {"!": 0, "a</w>": 1, "<|startoftext|>": 2, "<|endoftext|>": 3})
    write_json(folder / "tokenizer" / "tokenizer_config.json", {"pad_token": "!"})

    ids = random_prompts(open_checkpoint(str(folder)))

    assert ids[0].tolist() == [2, 3] + [0] * 75
    assert ids[1, 1 + WORDS :].tolist() == [3] + [0] * (75 - WORDS)


def test_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    write_json(folder / "tokenizer" / "vocab.json", {"a</w>": 0, "<|startoftext|>": 1})

    with pytest.raises(ExportError, match=r"tokenizer has no <\|endoftext\|>"):
        random_prompts(open_checkpoint(str(folder)))
