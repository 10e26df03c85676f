"""Depth networks and upscalers of a few thousand weights: their graphs against the networks themselves, in torch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export import specs, to_tensorrt
from export.binding import bind
from export.checkpoint import Checkpoint, open_checkpoint
from export.companions import with_depth, with_upscaler
from export.profiles import profiles_of
from export.session import Session

ROOT = Path(__file__).parents[2]

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
to_onnx = pytest.importorskip("export.to_onnx")
verify = pytest.importorskip("export.verify").verify
compact = pytest.importorskip("export.compact_upscaler")

SHAPE = {"num_feat": 8, "num_conv": 2, "upscale": 3}
NORMALISED = {"do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}


def glpn() -> Any:
    sizes = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "decoder_hidden_size": 16}
    shape = transformers.GLPNConfig(**sizes, num_attention_heads=[1, 2, 2, 4], mlp_ratios=[2] * 4)
    network = transformers.GLPNForDepthEstimation(shape)
    for module in network.modules():
        # As if it had counted: a fresh one's zeros and ones would hide a count that the graph lacks.
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return network


def dpt() -> Any:
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
    necks = {"neck_hidden_sizes": [8, 16, 24, 32], "fusion_hidden_size": 16, "backbone_out_indices": [0, 1, 2, 3]}
    return transformers.DPTForDepthEstimation(transformers.DPTConfig(**sizes, **necks, image_size=64, patch_size=16))


def depth_anything() -> Any:
    stages = {"out_features": ["stage1", "stage2", "stage3", "stage4"], "reshape_hidden_states": False}
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
    necks = {"neck_hidden_sizes": [8, 16, 24, 32], "fusion_hidden_size": 16, "head_hidden_size": 8}
    shape = transformers.DepthAnythingConfig(
        backbone_config=transformers.Dinov2Config(**sizes, **stages), reassemble_hidden_size=32, patch_size=14, **necks
    )
    return transformers.DepthAnythingForDepthEstimation(shape)


def awake(network: Any) -> Any:
    """With a last layer that says something: a network that never learned ends below zero, and so in nothing."""
    *_, last = (each for each in network.modules() if isinstance(each, torch.nn.Conv2d) and each.out_channels == 1)
    with torch.no_grad():
        last.weight.normal_()
        last.bias.fill_(1.0)
    return network.eval()


# The network, the edge it sees, how it sees, and whether it says metres.
DEPTH: dict[str, tuple[Any, int, dict[str, Any], bool]] = {
    "glpn": (glpn, 64, {}, True),
    "dpt": (dpt, 64, NORMALISED, False),
    "depth_anything": (depth_anything, 70, NORMALISED, False),
}


@pytest.fixture(scope="module")
def demo() -> Checkpoint:
    return open_checkpoint(str(ROOT / "demo" / "checkpoint"))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(name: str, checkpoint: Checkpoint, out: Path) -> tuple[specs.Graph, Path]:
    """The companion's graph, traced and filled with its weights."""
    graph = next(graph for graph in specs.graphs_of(checkpoint.architecture) if graph.name == name)
    bind(to_onnx.trace(graph, checkpoint, specs.Precision.FP32), checkpoint.weights_of(graph), out / "model.onnx")
    return graph, out / "model.onnx"


@pytest.mark.parametrize("kind", DEPTH)
def test_depth_graph_says_what_the_network_says_nearer_being_larger(
    kind: str, demo: Checkpoint, tmp_path: Path
) -> None:
    make, edge_px, seen, says_metres = DEPTH[kind]
    torch.manual_seed(1)
    network = awake(make())
    network.save_pretrained(tmp_path / kind)
    said = {"size": {"height": edge_px, "width": edge_px}, **seen}
    (tmp_path / kind / "preprocessor_config.json").write_text(json.dumps(said))
    checkpoint = with_depth(demo, str(tmp_path / kind))
    graph, path = build("depth", checkpoint, tmp_path)

    (difference,) = verify(graph, path, checkpoint, specs.Precision.FP32)

    assert difference.share <= difference.allowed
    pictures = np.random.default_rng(0).integers(0, 256, (2, edge_px, edge_px, 3), dtype=np.uint8)
    values = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255
    if seen:
        mean, std = (torch.tensor(seen[f"image_{name}"]).reshape(1, 3, 1, 1) for name in ("mean", "std"))
        values = (values - mean) / std
    with torch.no_grad():
        told = network(pixel_values=values).predicted_depth.numpy()
    answer = Session(path).run({"sample": pictures})["inverse_depth"]
    np.testing.assert_allclose(answer, 1 / told if says_metres else np.maximum(told, 1e-6), rtol=1e-3, atol=1e-5)
    assert (answer > 0).all() and answer.std() > 0


def published_compact(picture: Any, weights: dict[str, Any], layers: int, factor: int) -> Any:
    """Real-ESRGAN's compact network, written once more from its names: conv, prelu, ..., conv, pixel shuffle, plus x."""
    functional = torch.nn.functional
    seen = picture
    for index in range(0, 2 * layers + 4, 2):
        seen = functional.conv2d(seen, weights[f"body.{index}.weight"], weights[f"body.{index}.bias"], padding=1)
        if f"body.{index + 1}.weight" in weights:
            seen = functional.prelu(seen, weights[f"body.{index + 1}.weight"])
    rows, channels, height, width = picture.shape
    cells = seen.reshape(rows, channels, factor, factor, height, width).permute(0, 1, 4, 2, 5, 3)
    enlarged = picture.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    return cells.reshape(rows, channels, factor * height, factor * width) + enlarged


@pytest.fixture(scope="module")
def upscaler(demo: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, specs.Graph, Path]:
    """An upscaler of random weights beside the demo's checkpoint, and its built graph."""
    from safetensors.torch import save_file

    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("upscaler")
    save_file(compact.CompactUpscaler(compact.Shape(**SHAPE)).state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"_class_name": "SRVGGNetCompact", "act_type": "prelu", **SHAPE}))
    checkpoint = with_upscaler(demo, folder)
    return checkpoint, *build("upscaler", checkpoint, folder)


def test_upscaler_graph_gives_the_published_networks_picture_at_any_size(
    upscaler: tuple[Checkpoint, specs.Graph, Path],
) -> None:
    checkpoint, graph, path = upscaler

    (difference,) = verify(graph, path, checkpoint, specs.Precision.FP32)

    assert difference.share <= difference.allowed
    weights = {name: torch.from_numpy(np.array(value)) for name, value in checkpoint.weights("upscaler").items()}
    picture = np.random.default_rng(0).integers(0, 256, (2, 21, 34, 3), dtype=np.uint8)
    with torch.no_grad():
        values = published_compact(torch.from_numpy(picture).permute(0, 3, 1, 2) / 255, weights, 2, 3)
    expected = (values.clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy()
    answer = Session(path).run({"sample": picture})["upscaled"]
    assert answer.shape == (2, 63, 102, 3)
    assert np.abs(answer.astype(int) - expected).max() <= 1


def test_upscaler_becomes_an_engine(upscaler: tuple[Checkpoint, specs.Graph, Path], tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    _, graph, path = upscaler
    profiles = profiles_of(graph, graph.batching[specs.Device.GPU], ((512, 512),))
    order = to_tensorrt.Order(graph, specs.Runtime.TENSORRT_RTX, profiles, (89,))

    engine = to_tensorrt.build_engine(path, order, tmp_path / "model.plan")

    assert engine.size_bytes == (tmp_path / "model.plan").stat().st_size
    assert len(engine.activations_bytes) == 2
