"""Rendered ``config.pbtxt`` files, parsed with Triton's own definition of them."""

import importlib.util
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import tritonclient
from export_checkpoints import SD15_BLOCKS, projections
from google.protobuf import text_format

from export.config_pbtxt import Serving, render
from export.specs import (
    FAMILIES,
    Architecture,
    Axis,
    Device,
    Graph,
    Precision,
    Runtime,
    TextEncoder,
    graphs_of,
    precision_of,
    profiles_of,
)

ROOT = Path(__file__).parents[2]
SD15 = Architecture(
    FAMILIES["sd1"], (TextEncoder("text_encoder", 768, 768),), 4, 8, 8, tuple(projections(SD15_BLOCKS, 768))
)
SERVINGS = [
    (Serving(Runtime.ONNX, Device.CPU), Precision.FP32),
    (Serving(Runtime.ONNX, Device.GPU), Precision.FP16),
    (Serving(Runtime.TENSORRT, Device.GPU), Precision.FP16),
    (Serving(Runtime.TENSORRT, Device.GPU), Precision.BF16),
]
CASES = [
    pytest.param(graph, serving, precision, id=f"{graph.name}-{serving.runtime}-{serving.device}-{precision}")
    for graph, (serving, precision) in product(graphs_of(SD15), SERVINGS)
]
# (dims, type at fp32, type at fp16) of every tensor clients may rely on.
TENSORS = {
    ("text_encoder", "input_ids"): ([77], "TYPE_INT64", "TYPE_INT64"),
    ("text_encoder", "last_hidden_state"): ([77, 768], "TYPE_FP32", "TYPE_FP16"),
    ("text_encoder", "pooler_output"): ([768], "TYPE_FP32", "TYPE_FP16"),
    ("unet", "sample"): ([4, -1, -1], "TYPE_FP32", "TYPE_FP16"),
    ("unet", "timestep"): ([1], "TYPE_FP32", "TYPE_FP32"),
    ("unet", "encoder_hidden_states"): ([-1, 768], "TYPE_FP32", "TYPE_FP16"),
    ("unet", "style"): ([1_594_368], "TYPE_FP32", "TYPE_FP16"),
    ("unet", "out_sample"): ([4, -1, -1], "TYPE_FP32", "TYPE_FP16"),
    ("vae_decoder", "latent_sample"): ([4, -1, -1], "TYPE_FP32", "TYPE_FP16"),
    ("vae_decoder", "sample"): ([-1, -1, 3], "TYPE_UINT8", "TYPE_UINT8"),
    ("vae_decoder", "mean"): ([1], "TYPE_FP32", "TYPE_FP32"),
    ("vae_encoder", "sample"): ([-1, -1, 3], "TYPE_UINT8", "TYPE_UINT8"),
    ("vae_encoder", "latent_mean"): ([4, -1, -1], "TYPE_FP32", "TYPE_FP16"),
    ("vae_encoder", "latent_std"): ([4, -1, -1], "TYPE_FP32", "TYPE_FP16"),
}


def _model_config() -> Any:
    """Triton's ModelConfig, loaded by path: the package around it would import gRPC."""
    path = Path(tritonclient.__path__[0]) / "grpc" / "model_config_pb2.py"
    specification = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


MODEL_CONFIG = _model_config()


def parse(text: str) -> Any:
    return text_format.Parse(text, MODEL_CONFIG.ModelConfig())


@pytest.mark.parametrize(("graph", "serving", "precision"), CASES)
def test_every_tensor_of_the_table_is_declared_with_its_type_and_dims(
    graph: Graph, serving: Serving, precision: Precision
) -> None:
    config = parse(render(graph, serving, precision))

    type_name = MODEL_CONFIG.DataType.Name
    found = {
        tensor.name: (list(tensor.dims), type_name(tensor.data_type)) for tensor in (*config.input, *config.output)
    }
    which = 2 if precision is Precision.FP16 else 1
    expected = {key[1]: (entry[0], entry[which]) for key, entry in TENSORS.items() if key[0] == graph.name}
    assert found == expected


@pytest.mark.parametrize(("graph", "serving", "precision"), CASES)
def test_batcher_gets_a_queue_delay_and_no_policy_that_would_stall_it(
    graph: Graph, serving: Serving, precision: Precision
) -> None:
    config = parse(render(graph, serving, precision))

    assert [field.name for field, _ in config.dynamic_batching.ListFields()] == ["max_queue_delay_microseconds"]
    assert config.max_batch_size >= 4


@pytest.mark.parametrize(("graph", "serving", "precision"), CASES)
def test_models_run_where_the_serving_says(graph: Graph, serving: Serving, precision: Precision) -> None:
    config = parse(render(graph, serving, precision))

    kind = config.instance_group[0].KIND_CPU if serving.device is Device.CPU else config.instance_group[0].KIND_GPU
    assert [group.kind for group in config.instance_group] == [kind]
    expected = {
        (Runtime.ONNX, Device.CPU): ("python", ""),
        (Runtime.ONNX, Device.GPU): ("", "onnxruntime_onnx"),
        (Runtime.TENSORRT, Device.GPU): ("", "tensorrt_plan"),
    }
    assert (config.backend, config.platform) == expected[serving.runtime, serving.device]


def test_local_models_are_told_their_runtime_graph_and_threads() -> None:
    unet = next(graph for graph in graphs_of(SD15) if graph.name == "unet")
    serving = Serving(Runtime.ONNX, Device.CPU, "onnxruntime-f32", 2)

    config = parse(render(unet, serving, Precision.FP32))

    parameters = {key: value.string_value for key, value in config.parameters.items()}
    assert parameters == {"runtime": "onnxruntime-f32", "graph": "model.onnx", "threads": "2"}


def test_decoder_is_told_to_refuse_a_picture_that_overflowed() -> None:
    decoder = next(graph for graph in graphs_of(SD15) if graph.name == "vae_decoder")

    config = parse(render(decoder, Serving(Runtime.ONNX, Device.CPU), Precision.FP32))

    assert config.parameters["check_output"].string_value == "mean"


@pytest.mark.parametrize("graph", graphs_of(SD15), ids=lambda graph: graph.name)
def test_committed_configs_are_what_is_rendered_for_sd15_on_tensorrt(graph: Graph) -> None:
    committed = (ROOT / "model_repository" / graph.name / "config.pbtxt").read_text()

    assert committed == render(graph, Serving(Runtime.TENSORRT, Device.GPU), Precision.FP16)


@pytest.mark.parametrize("graph", graphs_of(SD15), ids=lambda graph: graph.name)
def test_every_profile_spans_the_whole_range_that_the_config_promises(graph: Graph) -> None:
    for profile in profiles_of(graph):
        for tensor in graph.inputs:
            low, best, high = profile.shapes[tensor.name]
            assert low[0] == 1
            assert high[0] == graph.batching[Device.GPU].max_rows
            for dim, smallest, tuned, largest in zip(tensor.dims, low[1:], best[1:], high[1:], strict=True):
                bounds = (dim.minimum, dim.maximum) if isinstance(dim, Axis) else (dim, dim)
                assert (smallest, largest) == bounds
                assert smallest <= tuned <= largest


def test_without_styles_the_unet_is_the_plain_one() -> None:
    plain, styled = (next(g for g in graphs_of(SD15, rank) if g.name == "unet") for rank in (0, 8))

    assert plain.style is None
    assert [tensor.name for tensor in plain.inputs] == ["sample", "timestep", "encoder_hidden_states"]
    assert [tensor.name for tensor in styled.inputs] == [tensor.name for tensor in plain.inputs] + ["style"]


def test_a_styles_row_grows_with_its_rank() -> None:
    sizes = [next(g.style.size for g in graphs_of(SD15, rank) if g.style is not None) for rank in (1, 4, 16)]

    assert sizes == [199_296, 4 * 199_296, 16 * 199_296]


def test_ten_guided_jobs_fit_into_one_execution_on_a_gpu() -> None:
    unet = next(graph for graph in graphs_of(SD15) if graph.name == "unet")

    assert unet.batching[Device.GPU].max_rows == 20


def test_a_vae_stays_in_fp32_where_the_rest_is_bfloat16() -> None:
    precisions = {graph.name: precision_of(graph, Precision.BF16) for graph in graphs_of(SD15)}

    assert precisions == {
        "text_encoder": Precision.BF16,
        "unet": Precision.BF16,
        "vae_decoder": Precision.FP32,
        "vae_encoder": Precision.FP32,
    }


def test_repository_readme_lists_every_tensor() -> None:
    page = (ROOT / "model_repository" / "README.md").read_text()

    for graph, tensor in TENSORS:
        assert f"`{graph}`" in page
        assert f"`{tensor}`" in page
