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
from export.profiles import profiles_of
from export.to_tensorrt import version_of

ROOT = Path(__file__).parents[2]
RTX = specs.Runtime.TENSORRT_RTX
NETWORKS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")

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


def order(unet: specs.Graph, *compute_capabilities: int) -> to_tensorrt.Order:
    """An engine for one size and for any other."""
    profiles = profiles_of(unet, unet.batching[specs.Device.GPU], ((512, 512),))
    return to_tensorrt.Order(unet, RTX, profiles, compute_capabilities)


def test_our_unet_with_styles_becomes_an_engine_for_a10_and_l4(
    unet: specs.Graph, half_unet: Path, tmp_path: Path
) -> None:
    told: list[str] = []

    engine = to_tensorrt.build_engine(half_unet, order(unet, 86, 89), tmp_path / "model.plan", told.append)

    assert unet.style is not None
    assert (tmp_path / "model.plan").stat().st_size == engine.size_bytes
    # An engine without its weights would be far smaller than they are.
    weights_bytes = half_unet.with_name("model.onnx.data").stat().st_size
    assert engine.size_bytes > 0.9 * weights_bytes
    assert engine.weights_bytes > 0.9 * weights_bytes
    # What it tells of its profiles: the largest size has four times the pixels of 512x512.
    small, any_other = engine.activations_bytes
    assert 3 * small < any_other < 5 * small
    assert told


def test_gpu_that_the_library_does_not_know_is_refused_with_those_it_does(
    unet: specs.Graph, half_unet: Path, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=r"--sm is 42; tensorrt_rtx .* builds for 75, 80, 86, 89"):
        to_tensorrt.build_engine(half_unet, order(unet, 42), tmp_path / "model.plan")

    assert not (tmp_path / "model.plan").exists()


def test_graph_that_the_parser_cannot_read_is_refused_with_its_reason(unet: specs.Graph, tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("sample", TensorProto.FLOAT, [1])
    node = helper.make_node("NoSuchOperator", ["sample"], ["out_sample"])
    output = helper.make_tensor_value_info("out_sample", TensorProto.FLOAT, [1])
    model = helper.make_model(helper.make_graph([node], "g", [value], [output]))
    onnx.save_model(model, tmp_path / "model.onnx")

    with pytest.raises(ExportError, match="cannot read unet: .*NoSuchOperator"):
        to_tensorrt.build_engine(tmp_path / "model.onnx", order(unet), tmp_path / "model.plan")


def test_interruption_stops_the_builder_and_leaves_no_engine(
    unet: specs.Graph, half_unet: Path, tmp_path: Path
) -> None:
    def interrupted(text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        to_tensorrt.build_engine(half_unet, order(unet, 86), tmp_path / "model.plan", interrupted)

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


def test_whole_repository_of_engines_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    engines = tmp_path / "models"
    common = ["--checkpoint", str(ROOT / "demo" / "checkpoint"), "--runtime", "tensorrt-rtx", "--sm", "86"]

    assert main([*common, "--sizes", "512x512", "--out", str(engines)]) == 0

    for name in NETWORKS:
        (plan,) = (engines / name / "1").glob("*.plan")
        assert plan.name == f"tensorrt_rtx-{tensorrt_rtx_version()}-sm86.plan"
        assert plan.stat().st_size > 100_000
        config = (engines / name / "config.pbtxt").read_text()
        assert 'platform: "tensorrt_plan"' in config and plan.name in config
        assert plan.with_name(f"{plan.name}.json").is_file()
    assert (engines / "remarque.json").is_file()
    assert not list(engines.rglob("*.onnx"))


def tensorrt_rtx_version() -> str:
    return version_of(RTX)
