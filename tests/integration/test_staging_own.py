"""Staging by our own networks on the real Triton: SDXL's layout with two ControlNets, a depth network and an upscaler.

The weights are random, so the furniture is noise; what is tested is everything around it. Tracing takes minutes the
first time, and graphs are kept where builds keep theirs.
"""

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.staging import Staging, encoded, room, staging
from PIL import Image

from export.random_checkpoint import write
from local.triton import LocalTriton
from orchestrator.staging.original import PhotoLimits, read_photo

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
LIMITS = PhotoLimits(longest_px=256, step_px=64)


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
    checkpoint, out = folder / "checkpoint", folder / "models"
    write(checkpoint, "tiny-sdxl", controlnets=CONTROLS)
    controls = [f"--controlnet={name}={checkpoint}/controlnet_{name}" for name in CONTROLS]
    beside = ["--depth", str(write_depth(folder / "depth")), "--depth-size", "64"]
    beside += ["--upscaler", str(write_upscaler(folder / "upscaler"))]
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


def settings(triton: LocalTriton, repository: Path, **more: str) -> dict[str, str]:
    return {
        "INFERENCE_MODE": "self",
        "TRITON_URL": triton.http_url,
        "MODEL_REPOSITORY": str(repository),
        "STAGING_WORKING_PX": "256",
        "STAGING_FALLBACK": "refuse",
        "STAGING_QUALITY": "off",
        "STAGING_STEPS": "4",
        "STAGING_ATTEMPTS": "1",
        "STAGING_DEADLINE_SECONDS": "600",
    } | more


@pytest.fixture(scope="module")
def served(triton: LocalTriton, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Staging]:
    more = {"UPSCALE_ENABLED": "true", "STAGING_UPSCALE_TIERS": "business"}
    with staging(tmp_path_factory.mktemp("service"), **settings(triton, repository, **more)) as running:
        running.put("uploads/room.png", encoded(photo(), "PNG"))
        running.put("uploads/mask.png", encoded(Image.fromarray(mask().astype(np.uint8) * 255), "PNG"))
        yield running


def photo() -> Image.Image:
    grain = np.random.default_rng(3).integers(0, 12, (640, 640, 3), np.uint8)
    return Image.fromarray(np.asarray(room(640, 640)) // 2 + grain)


def mask() -> np.ndarray:
    area = np.zeros((640, 640), np.bool_)
    area[380:600, 100:540] = True
    return area


def staged(served: Staging, image_id: str, **changes: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """Pixels and answer; at the working size unless it says otherwise."""
    wanted = {"original_key": "uploads/room.png", "mask_key": "uploads/mask.png", "tier": "pro", "seed": 5}
    answer = served.infer(served.wish(image_id, **(wanted | changes)))
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return np.asarray(Image.open(io.BytesIO(served.stored(body["staged_key"])))), body


def until(condition: Callable[[], bool], within_s: float = 120) -> None:
    end_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.1)


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
    pixels, body = staged(served, "bytes")
    working = read_photo(encoded(photo(), "PNG"), LIMITS).pixels
    inside = np.asarray(Image.fromarray(mask()).resize((256, 256), Image.Resampling.NEAREST))
    assert (body["width"], body["height"]) == (256, 256)
    assert np.array_equal(pixels[~inside], working[~inside])
    assert np.abs(pixels[inside].astype(int) - working[inside]).mean() > 5


def test_the_same_seed_gives_the_same_bytes_and_another_others(served: Staging):
    one, again, other = (staged(served, f"seed-{n}", seed=seed)[0] for n, seed in enumerate((5, 5, 6)))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


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


def test_a_cancelled_staging_ends_between_two_steps(triton: LocalTriton, repository: Path, tmp_path: Path):
    with staging(tmp_path, **settings(triton, repository, STAGING_STEPS="150")) as served:
        served.infer(served.wish("a"), prefer="respond-async")
        until(lambda: served.call("GET", "/infer/a").json()["percent"] >= 1)
        assert served.call("DELETE", "/infer/a").status_code == 202
        until(lambda: served.call("GET", "/infer/a").json()["status"] == "cancelled")
        assert served.metric('remarque_staging_model_seconds_count{model="vae_decoder"}') == 0


def test_a_deadline_ends_a_staging_and_is_a_timeout(triton: LocalTriton, repository: Path, tmp_path: Path):
    with staging(tmp_path, **settings(triton, repository, STAGING_STEPS="150")) as served:
        answer = served.infer(served.wish("a"), prefer="wait=1")
        assert (answer.status_code, answer.json()["code"]) == (504, "timeout")


def test_stagings_side_by_side_get_what_they_get_alone(served: Staging):
    alone = [staged(served, f"alone-{seed}", seed=seed)[0] for seed in (1, 2)]
    together: dict[int, np.ndarray] = {}
    threads = [
        threading.Thread(target=lambda seed=seed: together.update({seed: staged(served, f"both-{seed}", seed=seed)[0]}))
        for seed in (1, 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.array_equal(together[1], alone[0])
    assert np.array_equal(together[2], alone[1])
