"""The networks beside a checkpoint that see pictures alone: which are accepted, and what is said of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_checkpoints import write_checkpoint, write_json
from safetensors.numpy import save_file

from export.build_engines import main
from export.checkpoint import Checkpoint, open_checkpoint
from export.companions import with_depth, with_upscaler
from export.config_pbtxt import Serving, render
from export.description import describe
from export.errors import ExportError
from export.graph_cache import file_name
from export.profiles import BUCKETS_PX, profiles_of
from export.specs import Device, Graph, Kind, Precision, Runtime, graphs_of, precision_of

GLPN = {"architectures": ["GLPNForDepthEstimation"], "model_type": "glpn", "max_depth": 10}
SEEN = {"size": {"height": 256, "width": 256}, "size_divisor": 32, "do_rescale": True}
COMPACT = {"_class_name": "SRVGGNetCompact", "num_in_ch": 3, "num_out_ch": 3, "act_type": "prelu"}
COMPACT |= {"num_feat": 8, "num_conv": 2, "upscale": 2}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return open_checkpoint(str(write_checkpoint(tmp_path / "checkpoint")))


def write_depth(folder: Path, seen: dict[str, Any] = SEEN, **changes: Any) -> str:
    write_json(folder / "config.json", {**GLPN, **changes})
    write_json(folder / "preprocessor_config.json", seen)
    save_file({"glpn.x": np.ones(2, np.float16)}, folder / "model.safetensors")
    return str(folder)


def write_upscaler(folder: Path, **changes: Any) -> Path:
    write_json(folder / "config.json", {**COMPACT, **changes})
    save_file({"body.6.weight": np.ones((12, 8, 3, 3), np.float16)}, folder / "model.safetensors")
    return folder


def graph_of(checkpoint: Checkpoint, name: str) -> Graph:
    return next(graph for graph in graphs_of(checkpoint.architecture) if graph.name == name)


def decode(latents: np.ndarray) -> np.ndarray:
    return np.zeros((len(latents), latents.shape[2] * 8, latents.shape[3] * 8, 3), np.uint8)


def test_depth_network_turns_squares_of_bytes_into_inverse_depth(checkpoint: Checkpoint, tmp_path: Path) -> None:
    graph = graph_of(with_depth(checkpoint, write_depth(tmp_path / "depth")), "depth")

    assert [(tensor.name, tensor.kind, tensor.dims) for tensor in (*graph.inputs, *graph.outputs)] == [
        ("sample", Kind.UINT8, (256, 256, 3)),
        ("inverse_depth", Kind.FLOAT32, (256, 256)),
    ]


def test_size_asked_for_counts_more_than_the_preprocessors(checkpoint: Checkpoint, tmp_path: Path) -> None:
    made = with_depth(checkpoint, write_depth(tmp_path / "depth"), 128)

    assert made.architecture.depth_size_px == 128


@pytest.mark.parametrize(
    ("changes", "metres"),
    [
        ({"model_type": "glpn"}, True),
        ({"model_type": "zoedepth"}, True),
        ({"model_type": "dpt"}, False),
        ({"model_type": "depth_anything", "depth_estimation_type": "relative"}, False),
        ({"model_type": "depth_anything", "depth_estimation_type": "metric"}, True),
    ],
)
def test_whether_a_network_says_metres_or_their_inverse_is_known(
    checkpoint: Checkpoint, tmp_path: Path, changes: dict[str, Any], metres: bool
) -> None:
    made = with_depth(checkpoint, write_depth(tmp_path / "depth", **changes))

    assert made.configs["depth"]["is_metric"] is metres


def test_colours_are_normalised_as_the_preprocessor_says(checkpoint: Checkpoint, tmp_path: Path) -> None:
    plain = with_depth(checkpoint, write_depth(tmp_path / "plain")).configs["depth"]
    seen = {**SEEN, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1], "rescale_factor": 0.25}
    normalised = with_depth(checkpoint, write_depth(tmp_path / "normalised", seen)).configs["depth"]

    assert (plain["scale"], plain["mean"], plain["std"]) == (1 / 255, [0.0] * 3, [1.0] * 3)
    assert (normalised["scale"], normalised["mean"], normalised["std"]) == (0.25, [0.5, 0.4, 0.3], [0.2, 0.2, 0.1])


@pytest.mark.parametrize(
    ("seen", "changes", "size_px", "sentence"),
    [
        (SEEN, {"model_type": "chmv2"}, None, "is a chmv2; depth_anything, depth_pro, dpt, glpn, .* are served"),
        ({}, {}, None, "names size None; --depth-size gives a square's edge"),
        ({"size": {"height": 384, "width": 512}}, {}, None, "names size .*512.*; --depth-size"),
        (SEEN, {}, 250, "--depth-size is 250 px; depth sees edges in steps of 32 px"),
        (SEEN, {"backbone_config": {"patch_size": 14}, "model_type": "dpt"}, 0, "--depth-size is 0 px"),
    ],
)
def test_depth_networks_that_cannot_be_served_are_refused(
    checkpoint: Checkpoint, tmp_path: Path, seen: Any, changes: dict[str, Any], size_px: int | None, sentence: str
) -> None:
    with pytest.raises(ExportError, match=sentence):
        with_depth(checkpoint, write_depth(tmp_path / "depth", seen, **changes), size_px)


def test_depth_that_is_neither_a_folder_nor_a_hub_id_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(ExportError, match="--depth is /nowhere/at/all, which is neither a folder nor a hub id"):
        with_depth(checkpoint, "/nowhere/at/all")


def test_graph_of_a_depth_network_depends_on_its_size_and_on_how_it_sees(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    folder = write_depth(tmp_path / "depth")
    other = write_depth(tmp_path / "other", {**SEEN, "image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    again = write_depth(tmp_path / "again", transformers_version="9.9", dtype="float16")
    made = [with_depth(checkpoint, path, size) for path, size in ((folder, 256), (folder, 128), (other, 256))]
    names = [file_name(graph_of(one, "depth"), one, Precision.FP32) for one in made]

    assert len(set(names)) == 3
    same = with_depth(checkpoint, again, 256)
    assert file_name(graph_of(same, "depth"), same, Precision.FP32) == names[0]


def test_upscaler_turns_pictures_of_any_size_into_larger_ones(checkpoint: Checkpoint, tmp_path: Path) -> None:
    graph = graph_of(with_upscaler(checkpoint, write_upscaler(tmp_path / "upscaler")), "upscaler")
    config = render(graph, Serving(Runtime.ONNX, Device.CPU), Precision.FP32)

    (seen,), (given,) = graph.inputs, graph.outputs
    assert (seen.name, seen.kind, given.name, given.kind) == ("sample", Kind.UINT8, "upscaled", Kind.UINT8)
    assert config.count("dims: [ -1, -1, 3 ]") == 2


def test_upscalers_engine_has_a_profile_for_every_size(checkpoint: Checkpoint, tmp_path: Path) -> None:
    graph = graph_of(with_upscaler(checkpoint, write_upscaler(tmp_path / "upscaler")), "upscaler")
    profiles = {each.name: each.shapes["sample"] for each in profiles_of(graph, graph.batching[Device.GPU])}

    assert profiles["1024x512"][1][1:] == (512, 1024, 3)
    assert (len(profiles), profiles["any other"][0][1:]) == (len(BUCKETS_PX) + 1, (16, 16, 3))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"_class_name": "RRDBNet"}, "is a RRDBNet; SRVGGNetCompact is served"),
        ({"num_feat": "many"}, "says num_feat many; a whole number above 0"),
        ({"upscale": 1}, "enlarges 1 times; 2 to 8 times"),
        ({"act_type": "gelu"}, "has act_type gelu; prelu, relu, leakyrelu are served"),
        ({"num_in_ch": 12}, "three channels"),
        ({"num_conv": 32}, r"lacks body\.66\.weight, which num_conv 32 asks for"),
    ],
)
def test_upscalers_that_cannot_be_served_are_refused(
    checkpoint: Checkpoint, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ExportError, match=sentence):
        with_upscaler(checkpoint, write_upscaler(tmp_path / "upscaler", **changes))


def test_description_says_what_the_orchestrator_must_know_of_them(checkpoint: Checkpoint, tmp_path: Path) -> None:
    made = with_depth(checkpoint, write_depth(tmp_path / "depth"))
    made = with_upscaler(made, write_upscaler(tmp_path / "upscaler"))
    told, plain = (describe(one, graphs_of(one.architecture), "small", decode) for one in (made, checkpoint))

    assert (told["depth"], told["upscaler"]) == ({"size_px": 256}, {"factor": 2})
    assert {"depth", "upscaler"} <= told["models"].keys()
    assert not {"depth", "upscaler"} & plain.keys()


def test_they_are_no_part_of_the_checkpoints_name(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Pictures bear it, and styles are merged by it."""
    made = with_upscaler(checkpoint, write_upscaler(tmp_path / "upscaler"))

    assert made.weights_sha256 == checkpoint.weights_sha256


def test_depth_stays_fp32_and_the_upscaler_leaves_bfloat16(checkpoint: Checkpoint, tmp_path: Path) -> None:
    made = with_depth(checkpoint, write_depth(tmp_path / "depth"))
    made = with_upscaler(made, write_upscaler(tmp_path / "upscaler"))
    found = {
        (name, asked): precision_of(graph_of(made, name), asked)
        for name in ("depth", "upscaler")
        for asked in (Precision.FP16, Precision.BF16)
    }

    assert found == {
        ("depth", Precision.FP16): Precision.FP32,
        ("depth", Precision.BF16): Precision.FP32,
        ("upscaler", Precision.FP16): Precision.FP16,
        ("upscaler", Precision.BF16): Precision.FP32,
    }


def test_dry_run_tells_of_them(checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    beside = ["--depth", write_depth(tmp_path / "depth"), "--upscaler", str(write_upscaler(tmp_path / "upscaler"))]
    out = ["--out", str(tmp_path / "models"), "--graphs", str(tmp_path / "graphs"), "--dry-run"]

    assert main(["--checkpoint", str(checkpoint.folder), "--runtime", "tensorrt", *out, *beside]) == 0

    said = capsys.readouterr().out
    assert "depth: fp32" in said and "sample [256, 256, 3]" in said
    assert "upscaler: fp16" in said and "sample [16..1024, 16..1024, 3]" in said


def test_size_without_a_depth_network_is_refused(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "models"), "--depth-size", "256"]

    assert main(["--checkpoint", str(checkpoint.folder), "--runtime", "onnx", *out]) == 2
    assert "--depth-size is 256; it is the edge of what --depth sees" in capsys.readouterr().err
