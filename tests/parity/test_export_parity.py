"""Graphs against torch: the committed ones filled with the demo's weights, and freshly traced ones."""

import inspect
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export import specs
from export.binding import bind
from export.checkpoint import Checkpoint, open_checkpoint
from export.config_defaults import DEFAULTS
from export.errors import VerificationError
from export.graph_cache import SHIPPED, GraphCache
from export.random_checkpoint import write
from export.session import Session

ROOT = Path(__file__).parents[2]
GRAPHS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")

verify = pytest.importorskip("export.verify").verify
random_styles = pytest.importorskip("export.verify").random_styles
to_onnx = pytest.importorskip("export.to_onnx")


@pytest.fixture(scope="module")
def demo() -> Checkpoint:
    return open_checkpoint(str(ROOT / "demo" / "checkpoint"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A checkpoint of random weights that no committed graph fits."""
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    write(folder, "tiny")
    return open_checkpoint(str(folder))


def graph_of(checkpoint: Checkpoint, name: str, style_rank: int = specs.STYLE_RANK) -> specs.Graph:
    return next(graph for graph in specs.graphs_of(checkpoint.architecture, style_rank) if graph.name == name)


def bind_committed(
    checkpoint: Checkpoint, name: str, precision: specs.Precision, out: Path, style_rank: int = specs.STYLE_RANK
) -> Path:
    """The committed graph filled with the checkpoint's weights."""
    graph = graph_of(checkpoint, name, style_rank)
    model = GraphCache(SHIPPED).find(graph, checkpoint, precision)
    assert model is not None, f"demo/graphs holds no {name} for this checkpoint; build it with --graphs demo/graphs"
    bind(model, checkpoint.weights(graph.component), out / "model.onnx")
    return out / "model.onnx"


@pytest.mark.parametrize("name", GRAPHS)
def test_committed_graph_with_the_demos_weights_computes_what_torch_does(
    demo: Checkpoint, name: str, tmp_path: Path
) -> None:
    path = bind_committed(demo, name, specs.Precision.FP32, tmp_path)

    differences = verify(graph_of(demo, name), path, demo, specs.Precision.FP32)

    assert {difference.output for difference in differences} == {tensor.name for tensor in graph_of(demo, name).outputs}
    assert all(difference.share <= difference.allowed for difference in differences)


def test_committed_half_precision_unet_is_within_what_fp16_explains(demo: Checkpoint, tmp_path: Path) -> None:
    path = bind_committed(demo, "unet", specs.Precision.FP16, tmp_path)

    (difference,) = verify(graph_of(demo, "unet"), path, demo, specs.Precision.FP16)

    assert 0 < difference.share < 0.03


def unet_inputs(demo: Checkpoint, rows: int) -> dict[str, np.ndarray]:
    """Rows at different timesteps; the first has no style, each other its own."""
    style = graph_of(demo, "unet").style
    assert style is not None
    generator = np.random.default_rng(5)
    return {
        "sample": generator.standard_normal((rows, 4, 32, 32), dtype=np.float32),
        "timestep": np.linspace(999.0, 17.0, rows, dtype=np.float32).reshape(rows, 1),
        "encoder_hidden_states": generator.standard_normal((rows, 77, 128), dtype=np.float32),
        "style": random_styles(style, rows, generator),
    }


def test_rows_of_one_batch_may_be_at_different_timesteps_and_in_different_styles(
    demo: Checkpoint, tmp_path: Path
) -> None:
    unet = Session(bind_committed(demo, "unet", specs.Precision.FP32, tmp_path))
    inputs = unet_inputs(demo, 3)

    together = unet.run(inputs)["out_sample"]

    for row in range(3):
        alone = unet.run({name: value[row : row + 1] for name, value in inputs.items()})["out_sample"]
        np.testing.assert_array_equal(together[row : row + 1], alone)


def test_row_without_a_style_is_the_plain_unets_and_one_with_a_style_is_not(demo: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    styled = Session(bind_committed(demo, "unet", specs.Precision.FP32, tmp_path))
    plain = Session(bind_committed(demo, "unet", specs.Precision.FP32, tmp_path / "plain", style_rank=0))
    inputs = unet_inputs(demo, 2)

    answer = styled.run(inputs)["out_sample"]
    expected = plain.run({name: value for name, value in inputs.items() if name != "style"})["out_sample"]

    np.testing.assert_array_equal(answer[0], expected[0])
    assert np.abs(answer[1] - expected[1]).max() > 0.1


def test_comparison_notices_styles_that_reach_another_layer_than_they_should(demo: Checkpoint, tmp_path: Path) -> None:
    path = bind_committed(demo, "unet", specs.Precision.FP32, tmp_path)
    graph = graph_of(demo, "unet")
    assert graph.style is not None
    swapped = replace(graph, style=replace(graph.style, layers=graph.style.layers[::-1]))

    with pytest.raises(VerificationError, match="unet: out_sample is .* from torch's"):
        verify(swapped, path, demo, specs.Precision.FP32)


def test_comparison_notices_one_changed_weight(demo: Checkpoint, tmp_path: Path) -> None:
    graph = graph_of(demo, "text_encoder")
    model = GraphCache(SHIPPED).find(graph, demo, specs.Precision.FP32)
    assert model is not None
    weights = demo.weights("text_encoder")
    name = "encoder.layers.0.mlp.fc1.bias"
    changed = {key: weights[key] for key in weights} | {name: weights[name] + np.float16(0.05)}
    bind(model, changed, tmp_path / "model.onnx")

    with pytest.raises(VerificationError, match="text_encoder: .* from torch's"):
        verify(graph, tmp_path / "model.onnx", demo, specs.Precision.FP32)


def test_model_with_a_style_merged_is_compared_with_the_weights_it_holds(demo: Checkpoint, tmp_path: Path) -> None:
    graph = graph_of(demo, "text_encoder")
    model = GraphCache(SHIPPED).find(graph, demo, specs.Precision.FP32)
    assert model is not None
    weights = demo.weights("text_encoder")
    name = "encoder.layers.0.mlp.fc1.weight"
    changed = {name: weights[name].astype(np.float32) * 1.5}
    bind(model, {**weights, **changed}, tmp_path / "model.onnx")

    assert verify(graph, tmp_path / "model.onnx", demo, specs.Precision.FP32, changed)
    with pytest.raises(VerificationError, match="text_encoder: .* from torch's"):
        verify(graph, tmp_path / "model.onnx", demo, specs.Precision.FP32)


def test_broken_latents_show_in_the_decoders_mean(demo: Checkpoint, tmp_path: Path) -> None:
    decoder = Session(bind_committed(demo, "vae_decoder", specs.Precision.FP32, tmp_path))
    latents = np.zeros((2, 4, 32, 32), np.float32)
    latents[1, 0, 3, 3] = np.nan

    mean = decoder.run({"latent_sample": latents})["mean"]

    assert np.isfinite(mean[0, 0])
    assert np.isnan(mean[1, 0])


@pytest.mark.parametrize("precision", [specs.Precision.FP32, specs.Precision.FP16])
def test_architecture_nobody_prepared_is_traced_and_equals_torch(
    tiny: Checkpoint, precision: specs.Precision, tmp_path: Path
) -> None:
    graph = graph_of(tiny, "text_encoder")

    bind(to_onnx.trace(graph, tiny, precision), tiny.weights("text_encoder"), tmp_path / "model.onnx")

    assert verify(graph, tmp_path / "model.onnx", tiny, precision)


def test_weights_that_are_called_half_precise_are_compared_with_torchs_of_the_same_file(
    demo: Checkpoint, tmp_path: Path
) -> None:
    for part in demo.folder.iterdir():
        (tmp_path / part.name).symlink_to(part)
    (tmp_path / "text_encoder").unlink()
    folder = shutil.copytree(demo.folder / "text_encoder", tmp_path / "text_encoder")
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    checkpoint = open_checkpoint(str(tmp_path))
    path = bind_committed(checkpoint, "text_encoder", specs.Precision.FP32, tmp_path)

    assert verify(graph_of(checkpoint, "text_encoder"), path, checkpoint, specs.Precision.FP32)


CENTRE = {"latents_mean": [-1.6574, 1.886, -1.383, 2.5155], "latents_std": [8.4927, 5.9022, 6.5498, 5.2299]}
"""Of Playground v2.5's VAE."""


@pytest.fixture(scope="module")
def centred(tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = shutil.copytree(tiny.folder, tmp_path_factory.mktemp("centred") / "checkpoint")
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | CENTRE))
    return open_checkpoint(str(folder))


def centred_vae(checkpoint: Checkpoint) -> tuple[Any, Any, Any]:
    """diffusers' network, and the centre and the spread that SDXL's pipelines read from its config."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    vae = diffusers.AutoencoderKL.from_pretrained(checkpoint.folder / "vae", torch_dtype=torch.float32)
    return vae, *(torch.tensor(CENTRE[name]).view(1, 4, 1, 1) for name in ("latents_mean", "latents_std"))


def built_vae(checkpoint: Checkpoint, name: str, out: Path) -> Session:
    graph = graph_of(checkpoint, name)
    bind(to_onnx.trace(graph, checkpoint, specs.Precision.FP32), checkpoint.weights("vae"), out / "model.onnx")
    return Session(out / "model.onnx")


def test_latents_with_a_centre_are_decoded_as_sdxls_pipeline_does(centred: Checkpoint, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    vae, centre, spread = centred_vae(centred)
    latents = np.random.default_rng(2).standard_normal((2, 4, 32, 40), dtype=np.float32)

    sample = built_vae(centred, "vae_decoder", tmp_path).run({"latent_sample": latents})["sample"]

    with torch.no_grad():
        picture = vae.decode(torch.from_numpy(latents) * spread / vae.config.scaling_factor + centre).sample
    expected = ((picture / 2 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1).numpy()
    assert expected.std() > 1
    np.testing.assert_allclose(sample, expected, atol=0.51)


def test_picture_is_encoded_to_latents_with_a_centre_as_sdxls_pipeline_does(
    centred: Checkpoint, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    vae, centre, spread = centred_vae(centred)
    sample = np.random.default_rng(3).integers(0, 256, (2, 256, 320, 3), dtype=np.uint8)

    moments = built_vae(centred, "vae_encoder", tmp_path).run({"sample": sample})

    with torch.no_grad():
        seen = vae.encode(torch.from_numpy(sample).permute(0, 3, 1, 2).float() / 127.5 - 1).latent_dist
    factor = vae.config.scaling_factor
    np.testing.assert_allclose(moments["latent_mean"], (seen.mean - centre) * factor / spread, atol=1e-5)
    np.testing.assert_allclose(moments["latent_std"], seen.std * factor / spread, atol=1e-6)


def test_tracing_the_demos_text_encoder_again_gives_the_committed_graph(demo: Checkpoint) -> None:
    graph = graph_of(demo, "text_encoder")

    traced = to_onnx.trace(graph, demo, specs.Precision.FP32)

    committed = GraphCache(SHIPPED).find(graph, demo, specs.Precision.FP32)
    assert committed is not None
    assert [node.op_type for node in traced.graph.node] == [node.op_type for node in committed.graph.node]


def test_random_checkpoint_is_one_that_diffusers_loads(tiny: Checkpoint) -> None:
    diffusers = pytest.importorskip("diffusers")

    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tiny.folder, local_files_only=True)

    assert pipeline.tokenizer("a boat").input_ids[-1] == pipeline.tokenizer.eos_token_id


def test_table_of_defaults_is_what_the_libraries_assume() -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig

    def said_by(network: Any) -> dict[str, Any]:
        said = {name: parameter.default for name, parameter in inspect.signature(network.__init__).parameters.items()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in said.items()}

    for component, network in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        said = said_by(network)
        assert {name: said[name] for name in DEFAULTS[component]} == DEFAULTS[component]
        left_out = set(said) - set(DEFAULTS[component]) - {"self", "sample_size", "force_upcast"}
        assert {name for name in left_out if said[name] is not None} == set()
    text = CLIPTextConfig()
    assert {name: getattr(text, name) for name in DEFAULTS["text_encoder"]} == DEFAULTS["text_encoder"]
