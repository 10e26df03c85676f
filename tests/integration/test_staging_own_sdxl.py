"""Staging by our own networks on the real Triton: SDXL's layout with two ControlNets, a depth network and an upscaler.

The weights are random, so the furniture is noise; what is tested is everything around it. Tracing took seven minutes, so
the graphs lie in `graphs`; where one is missing, because its architecture or the wrappers changed, it is traced again.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fakes.staging import Staging, staging
from integration.own_staging import photo, put, settings, staged, working

from export.random_checkpoint import write
from local.triton import LocalTriton

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
build_engines = pytest.importorskip("export.build_engines")
compact = pytest.importorskip("export.compact_upscaler")
safetensors = pytest.importorskip("safetensors.torch")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
CONTROLS = ("depth", "canny")
GRAPHS = Path(__file__).with_name("graphs")


def write_depth(folder: Path) -> Path:
    """A GLPN of random weights that sees squares of 64 px."""
    torch.manual_seed(1)
    sizes = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "decoder_hidden_size": 16}
    shape = transformers.GLPNConfig(**sizes, num_attention_heads=[1, 2, 2, 4], mlp_ratios=[2] * 4)
    transformers.GLPNForDepthEstimation(shape).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_resize": True, "do_rescale": True}))
    return folder


def write_upscaler(folder: Path) -> Path:
    """A compact Real-ESRGAN of random weights that doubles."""
    torch.manual_seed(2)
    shape = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_conv": 1, "upscale": 2, "act_type": "prelu"}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"_class_name": "SRVGGNetCompact", **shape}))
    safetensors.save_file(compact.CompactUpscaler(compact.Shape.of(shape)).state_dict(), folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    graphs = shutil.copytree(GRAPHS, folder / "graphs")
    checkpoint, out = folder / "checkpoint", folder / "models"
    write(checkpoint, "tiny-sdxl", controlnets=CONTROLS)
    controls = [f"--controlnet={name}={checkpoint}/controlnet_{name}" for name in CONTROLS]
    beside = ["--depth", str(write_depth(folder / "depth")), "--depth-size", "64"]
    beside += ["--upscaler", str(write_upscaler(folder / "upscaler")), "--graphs", str(graphs)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        built = build_engines.main(
            ["--checkpoint", str(checkpoint), "--runtime", "onnx", "--out", str(out), *controls, *beside]
        )
    finally:
        torch.set_num_threads(threads)
    assert built == 0
    return out


@pytest.fixture(scope="module")
def triton(serve_models: Callable[..., LocalTriton], repository: Path) -> LocalTriton:
    return serve_models(repository, models=tuple(path.parent.name for path in repository.glob("*/config.pbtxt")))


@pytest.fixture(scope="module")
def served(triton: LocalTriton, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Staging]:
    more = {"UPSCALE_ENABLED": "true", "STAGING_UPSCALE_TIERS": "business"}
    folder = tmp_path_factory.mktemp("service")
    with staging(folder, **settings(triton.http_url, repository, folder, **more)) as running:
        put(running)
        yield running


def test_all_models_are_ready_and_a_staging_says_what_it_took(served: Staging):
    assert served.call("GET", "/readyz").status_code == 200
    _, body = staged(served, "parts")
    assert {"depth", "mask", "provider", "text", "denoise", "decode"} <= set(body["durations_ms"])
    meta = body["inference_meta"]
    assert (meta["provider"], meta["mock"], meta["mask"], meta["upscaled"]) == ("self", False, "given", False)
    assert meta["gpu_seconds"] > 0
    assert body["model_rev"].count("+") == 1
    for model in ("depth", "text_encoder_2", "unet", "unet_controlnet", "vae_encoder", "vae_decoder"):
        assert served.metric(f'remarque_staging_model_seconds_count{{model="{model}"}}') >= 1, model


def test_outside_the_mask_every_byte_is_the_working_images(served: Staging):
    pixels, _ = staged(served, "bytes")
    photograph, inside = working()
    assert np.array_equal(pixels[~inside], photograph[~inside])
    assert np.abs(pixels[inside].astype(int) - photograph[inside]).mean() > 5


def test_an_enlarged_picture_has_the_photographs_size_and_its_bytes_outside_the_mask(served: Staging):
    pixels, body = staged(served, "large", tier="business")
    assert (body["width"], body["height"], body["inference_meta"]["upscaled"]) == (640, 640, True)
    assert "upscale" in body["durations_ms"]
    far = np.ones((640, 640), np.bool_)
    far[376:604, 96:544] = False  # the working image's mask is rounded to its pixels
    assert np.array_equal(pixels[far], np.asarray(photo())[far])
    assert np.abs(pixels[420:560, 140:500].astype(int) - np.asarray(photo())[420:560, 140:500]).mean() > 5


def test_without_a_mask_random_depth_finds_a_floor_or_warns(served: Staging):
    _, body = staged(served, "unmasked", mask_key=None)
    found = body["inference_meta"]["mask"]
    assert found in ("found", "floor")
    assert any("mask_key" in warning for warning in body.get("warnings", [])) == (found == "floor")
