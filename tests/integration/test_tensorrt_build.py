"""Engines built through the code that drives TensorRT, by TensorRT-RTX's builder, which needs no GPU."""

import importlib.util
import os
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from export import specs, to_tensorrt
from export.binding import bind
from export.build_engines import main
from export.checkpoint import Checkpoint, open_checkpoint
from export.errors import ExportError
from export.graph_cache import SHIPPED, GraphCache

ROOT = Path(__file__).parents[2]
RTX = specs.Runtime.TENSORRT_RTX

if importlib.util.find_spec("tensorrt_rtx") is None and not os.environ.get("CI"):
    pytest.skip("tensorrt-rtx is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def demo() -> Checkpoint:
    return open_checkpoint(str(ROOT / "demo" / "checkpoint"))


@pytest.fixture(scope="module")
def unet(demo: Checkpoint) -> specs.Graph:
    return next(graph for graph in specs.graphs_of(demo.architecture) if graph.name == "unet")


@pytest.fixture(scope="module")
def half_unet(demo: Checkpoint, unet: specs.Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's UNet in fp16, as a GPU node would serve it."""
    model = GraphCache(SHIPPED).find(unet, demo, specs.Precision.FP16)
    assert model is not None
    path = tmp_path_factory.mktemp("half") / "model.onnx"
    bind(model, demo.weights("unet"), path)
    return path


def test_our_unet_becomes_an_engine_for_a10_and_l4(unet: specs.Graph, half_unet: Path, tmp_path: Path) -> None:
    told: list[str] = []

    size_bytes = to_tensorrt.build_engine(
        half_unet, to_tensorrt.Order(unet, RTX, (86, 89)), tmp_path / "model.plan", told.append
    )

    assert (tmp_path / "model.plan").stat().st_size == size_bytes
    # An engine without its weights would be far smaller than they are.
    assert size_bytes > 0.9 * half_unet.with_name("model.onnx.data").stat().st_size
    assert told


def test_gpu_that_the_library_does_not_know_is_refused_with_those_it_does(
    unet: specs.Graph, half_unet: Path, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=r"--sm is 42; tensorrt_rtx .* builds for 75, 80, 86, 89"):
        to_tensorrt.build_engine(half_unet, to_tensorrt.Order(unet, RTX, (42,)), tmp_path / "model.plan")

    assert not (tmp_path / "model.plan").exists()


def test_graph_that_the_parser_cannot_read_is_refused_with_its_reason(unet: specs.Graph, tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("sample", TensorProto.FLOAT, [1])
    node = helper.make_node("NoSuchOperator", ["sample"], ["out_sample"])
    output = helper.make_tensor_value_info("out_sample", TensorProto.FLOAT, [1])
    model = helper.make_model(helper.make_graph([node], "g", [value], [output]))
    onnx.save_model(model, tmp_path / "model.onnx")

    with pytest.raises(ExportError, match="cannot read unet: .*NoSuchOperator"):
        to_tensorrt.build_engine(tmp_path / "model.onnx", to_tensorrt.Order(unet, RTX), tmp_path / "model.plan")


def test_interruption_stops_the_builder_and_leaves_no_engine(
    unet: specs.Graph, half_unet: Path, tmp_path: Path
) -> None:
    def interrupted(text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        to_tensorrt.build_engine(half_unet, to_tensorrt.Order(unet, RTX, (86,)), tmp_path / "model.plan", interrupted)

    assert not (tmp_path / "model.plan").exists()


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed here")
def test_runtime_whose_library_is_missing_is_refused_before_anything_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(ROOT / "demo" / "checkpoint")

    code = main(["--checkpoint", checkpoint, "--runtime", "tensorrt", "--out", str(tmp_path / "models")])

    assert code == 2
    assert "--runtime tensorrt needs the package tensorrt" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_whole_repository_of_engines_is_built(tmp_path: Path) -> None:
    out = tmp_path / "models"
    checkpoint = str(ROOT / "demo" / "checkpoint")

    code = main(["--checkpoint", checkpoint, "--runtime", "tensorrt-rtx", "--sm", "86", "--out", str(out)])

    assert code == 0
    for name in ("text_encoder", "unet", "vae_decoder", "vae_encoder"):
        assert (out / name / "1" / "model.plan").stat().st_size > 100_000
        assert 'platform: "tensorrt_plan"' in (out / name / "config.pbtxt").read_text()
    assert (out / "remarque.json").is_file()
    assert not list(out.rglob("*.onnx"))
