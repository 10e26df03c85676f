"""Rendered ``config.pbtxt`` files, parsed with Triton's own definition of them."""

import importlib.util
from itertools import product
from pathlib import Path
from typing import Any

import onnx
import pytest
import tritonclient
from export_checkpoints import SD15_BLOCKS, projections
from google.protobuf import text_format

from export.checkpoint import open_checkpoint
from export.companions import with_depth, with_upscaler
from export.config_pbtxt import NATIVE, Serving, render
from export.graph_cache import SHIPPED, file_name
from export.profiles import profiles_of
from export.specs import (
    FAMILIES,
    Architecture,
    Device,
    Graph,
    Precision,
    Runtime,
    TextEncoder,
    graphs_of,
    precision_of,
)

ROOT = Path(__file__).parents[2]
SD15 = Architecture(
    FAMILIES["sd1"], (TextEncoder("text_encoder", 768, 768),), 4, 8, 8, tuple(projections(SD15_BLOCKS, 768))
)
SERVINGS = [
    (Serving(Runtime.ONNX, Device.CPU), Precision.FP32),
    (Serving(Runtime.ONNX, Device.CPU, NATIVE), Precision.FP32),
    (Serving(Runtime.ONNX, Device.GPU), Precision.FP16),
    (Serving(Runtime.TENSORRT, Device.GPU), Precision.FP16),
    (Serving(Runtime.TENSORRT, Device.GPU), Precision.BF16),
]
CASES = [
    pytest.param(
        graph,
        serving,
        precision,
        id=f"{graph.name}-{serving.runtime}-{serving.device}-{serving.local_runtime}-{precision}",
    )
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
    native = ("", "onnxruntime_onnx") if serving.local_runtime == NATIVE else None
    assert (config.backend, config.platform) == (native or expected[serving.runtime, serving.device])


def test_local_models_are_told_their_runtime_graph_and_threads() -> None:
    unet = next(graph for graph in graphs_of(SD15) if graph.name == "unet")
    serving = Serving(Runtime.ONNX, Device.CPU, "onnxruntime-f32", 2)

    config = parse(render(unet, serving, Precision.FP32))

    parameters = {key: value.string_value for key, value in config.parameters.items()}
    assert parameters == {"runtime": "onnxruntime-f32", "graph": "model.onnx", "threads": "2", "own_shapes": "4"}


def test_tritons_own_backend_on_a_cpu_is_told_its_threads_and_nothing_of_ours() -> None:
    decoder = next(graph for graph in graphs_of(SD15) if graph.name == "vae_decoder")

    config = parse(render(decoder, Serving(Runtime.ONNX, Device.CPU, NATIVE, 2), Precision.FP32))

    assert {key: value.string_value for key, value in config.parameters.items()} == {"intra_op_thread_count": "2"}
    assert config.default_model_filename == "model.onnx"


def test_decoder_is_told_to_refuse_a_picture_that_overflowed() -> None:
    decoder = next(graph for graph in graphs_of(SD15) if graph.name == "vae_decoder")

    config = parse(render(decoder, Serving(Runtime.ONNX, Device.CPU), Precision.FP32))

    assert config.parameters["check_output"].string_value == "mean"


@pytest.mark.parametrize("graph", graphs_of(SD15), ids=lambda graph: graph.name)
def test_committed_configs_are_what_is_rendered_for_sd15_on_tensorrt(graph: Graph) -> None:
    committed = (ROOT / "model_repository" / graph.name / "config.pbtxt").read_text()

    assert committed == render(graph, Serving(Runtime.TENSORRT, Device.GPU), Precision.FP16)


ENGINES = Serving(Runtime.TENSORRT, Device.GPU, plan_file="tensorrt-11.1.0.4-sm89.plan", compute_capability="8.9")


@pytest.mark.parametrize("graph", graphs_of(SD15), ids=lambda graph: graph.name)
def test_every_profile_of_an_engine_is_named_so_that_triton_uses_it(graph: Graph) -> None:
    config = parse(render(graph, ENGINES, Precision.FP16))

    (group,) = config.instance_group
    count = len(profiles_of(graph, graph.batching[Device.GPU]))
    assert list(group.profile) == [str(index) for index in range(count)]
    # Else each profile's context would take the memory of the largest.
    assert config.parameters["execution_context_allocation_strategy"].string_value == "ON_PROFILE_CHANGE"


@pytest.mark.parametrize("graph", graphs_of(SD15), ids=lambda graph: graph.name)
def test_engine_is_found_on_the_gpu_it_was_built_for_and_on_no_other(graph: Graph) -> None:
    config = parse(render(graph, ENGINES, Precision.FP16))

    assert dict(config.cc_model_filenames) == {"8.9": "tensorrt-11.1.0.4-sm89.plan"}
    assert config.default_model_filename == ""


def test_cuda_graphs_are_captured_for_exact_shapes_of_every_input() -> None:
    unet = next(graph for graph in graphs_of(SD15) if graph.name == "unet")

    config = parse(render(unet, ENGINES, Precision.FP16))

    cuda = config.optimization.cuda
    assert cuda.graphs
    assert len(cuda.graph_spec) == 26
    inputs = {tensor.name: tensor for tensor in config.input}
    for spec in cuda.graph_spec:
        assert 1 <= spec.batch_size <= config.max_batch_size
        assert not spec.HasField("graph_lower_bound")
        assert spec.input.keys() == inputs.keys()
        for name, shape in spec.input.items():
            declared = inputs[name].dims
            assert all(size in (wanted, -1) or wanted == -1 for size, wanted in zip(shape.dim, declared, strict=True))
            assert all(size > 0 for size in shape.dim)


@pytest.mark.parametrize(("graph", "serving", "precision"), CASES)
def test_only_engines_have_profiles_and_cuda_graphs(graph: Graph, serving: Serving, precision: Precision) -> None:
    config = parse(render(graph, serving, precision))

    is_engine = serving.runtime is Runtime.TENSORRT
    assert bool(config.instance_group[0].profile) == is_engine
    assert config.optimization.cuda.graphs == (is_engine and graph.name == "unet")


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


GRAPHS = {
    path: onnx.load_model(path, load_external_data=False).graph for folder in SHIPPED for path in folder.glob("*.onnx")
}
_ONNX_TYPES = {"TYPE_INT64": 7, "TYPE_FP32": 1, "TYPE_FP16": 10, "TYPE_UINT8": 2}


ROOMS = ROOT / "demo" / "rooms"
DEMOS = (
    open_checkpoint(str(ROOT / "demo" / "checkpoint")),
    with_upscaler(
        with_depth(
            open_checkpoint(
                str(ROOMS / "checkpoint"),
                {name: ROOMS / "checkpoint" / f"controlnet_{name}" for name in ("depth", "canny")},
            ),
            str(ROOMS / "depth"),
        ),
        ROOMS / "upscaler",
    ),
)


def graph_in(path: Path, precision: Precision, style_rank: int) -> Graph:
    """What the table says of a committed graph: a demo's has its own key in its name, any other is SD 1.5's."""
    if path.parent != ROOT / "demo" / "graphs":
        return next(g for g in graphs_of(SD15, style_rank) if path.name.startswith(f"{g.name}-"))
    return next(
        graph
        for checkpoint in DEMOS
        for graph in graphs_of(checkpoint.architecture, style_rank)
        if file_name(graph, checkpoint, precision) == path.name
    )


def declared_and_held(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors as ``config.pbtxt`` declares them for a committed graph, and as the graph has them; -1 is open."""
    precision = Precision(path.stem.split("-")[-2])
    held = {}
    for entry in (*GRAPHS[path].input, *GRAPHS[path].output):
        dims = [dim.dim_value or -1 for dim in entry.type.tensor_type.shape.dim]
        held[entry.name] = (entry.type.tensor_type.elem_type, dims[1:])
    graph = graph_in(path, precision, 8 if "style" in held else 0)
    config = parse(render(graph, Serving(Runtime.ONNX, Device.GPU), precision))
    declared = {
        tensor.name: (_ONNX_TYPES[MODEL_CONFIG.DataType.Name(tensor.data_type)], list(tensor.dims))
        for tensor in (*config.input, *config.output)
    }
    return declared, held


@pytest.mark.parametrize("path", GRAPHS, ids=lambda path: path.stem)
def test_config_declares_the_tensors_that_the_onnx_graph_has(path: Path) -> None:
    declared, held = declared_and_held(path)

    assert declared.keys() == held.keys()
    for name, (element_type, dims) in declared.items():
        assert element_type == held[name][0]
        assert len(dims) == len(held[name][1])
        # A tracer leaves outputs' sizes open that the table knows; what both say must agree.
        assert all(-1 in pair or pair[0] == pair[1] for pair in zip(dims, held[name][1], strict=True)), name
    inputs = {entry.name for entry in GRAPHS[path].input}
    assert all(declared[name][1] == held[name][1] for name in inputs)
