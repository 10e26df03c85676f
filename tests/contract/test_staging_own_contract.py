"""CONTRACT of POST /infer where our own networks stage: the same fields and codes; the networks are formulas."""

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from fakes.networks import FormulaServer
from fakes.staging import Staging, encoded, room, staging
from PIL import Image
from unit.small_checkpoint import write_repository

from orchestrator import staging_models
from orchestrator.errors import DeadlineExceeded, ModelUnavailable, OutOfMemory, RemarqueError
from orchestrator.imaging.inspection import read
from orchestrator.staging.original import PhotoLimits, read_photo

LIMITS = PhotoLimits(longest_px=320, step_px=64)
Serve = Callable[..., Any]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FormulaServer:
    server = FormulaServer()
    monkeypatch.setattr(staging_models, "build_models", lambda settings, models, on_batch: server)
    return server


@pytest.fixture
def serve(server: FormulaServer, tmp_path: Path) -> Serve:
    path = write_repository(tmp_path / "models") / "remarque.json"
    built = {"depth": {"size_px": 64}, "upscaler": {"factor": 2}, "controls": ["depth", "canny"], "max_chunks": 64}
    path.write_text(json.dumps(json.loads(path.read_text()) | built))

    @contextmanager
    def start(**settings: str) -> Iterator[Staging]:
        common = {
            "INFERENCE_MODE": "self",
            "MODEL_REPOSITORY": str(path.parent),
            "STAGING_WORKING_PX": "320",
            "STAGING_STEPS": "5",
            "STAGING_FALLBACK": "refuse",
            "STAGING_QUALITY": "off",
        }
        with staging(tmp_path / "service", **(common | settings)) as running:
            running.put("uploads/square.png", encoded(photo(), "PNG"))
            yield running

    return start


@pytest.fixture
def served(serve: Serve) -> Iterator[Staging]:
    with serve() as running:
        yield running


def photo() -> Image.Image:
    grain = np.random.default_rng(1).integers(0, 9, (640, 640, 3), np.uint8)
    return Image.fromarray(np.asarray(room(640, 640)) // 2 + grain)


def square(served: Staging, image_id: str, **changes: Any) -> dict[str, Any]:
    return served.wish(image_id, original_key="uploads/square.png", **changes)


def pixels(served: Staging, body: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(served.stored(body["staged_key"]))))


def test_an_answer_holds_the_fields_of_the_contract_and_more_parts(served: Staging):
    answer = served.infer(square(served, "fields"))
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert {name: type(body[name]) for name in ("staged_key", "width", "height", "model_rev", "duration_ms")} == {
        "staged_key": str, "width": int, "height": int, "model_rev": str, "duration_ms": int,
    }  # fmt: skip
    parts = {"queue", "fetch", "preprocess", "depth", "mask", "provider", "text", "denoise", "decode", "composite"}
    assert set(body["durations_ms"]) == parts | {"encode", "store"}
    meta = body["inference_meta"]
    assert (meta["provider"], meta["mock"], meta["upscaled"]) == ("self", False, False)
    assert body["model_rev"] == "small+000000000000"


def test_what_a_request_does_not_say_the_operator_has_said(serve: Serve):
    with serve(STAGING_STRENGTH="0.6", STAGING_GUIDANCE_SCALE="2.5") as served:
        silent = served.infer(square(served, "silent")).json()["inference_meta"]
        said = served.infer(square(served, "said", strength=0.9, guidance_scale=0)).json()["inference_meta"]
    assert (silent["strength"], silent["guidance_scale"]) == (0.6, 2.5)
    assert (said["strength"], said["guidance_scale"]) == (0.9, 0.0)


def test_outside_the_given_mask_every_byte_is_the_working_images(served: Staging):
    area = np.zeros((640, 640), np.uint8)
    area[380:600, 100:540] = 255
    served.put("uploads/mask.png", encoded(Image.fromarray(area), "PNG"))
    body = served.infer(square(served, "bytes", mask_key="uploads/mask.png")).json()
    working = read_photo(encoded(photo(), "PNG"), LIMITS).pixels
    inside = np.asarray(Image.fromarray(area).resize((320, 320), Image.Resampling.NEAREST)) > 127
    staged = pixels(served, body)
    assert np.array_equal(staged[~inside], working[~inside])
    assert not np.array_equal(staged[inside], working[inside])
    assert body["inference_meta"]["mask"] == "given"


def test_without_a_mask_the_floor_is_found_in_the_depth(served: Staging):
    body = served.infer(square(served, "found")).json()
    assert body["inference_meta"]["mask"] == "found"
    assert "warnings" not in body
    working = read_photo(encoded(photo(), "PNG"), LIMITS).pixels
    changed = (pixels(served, body) != working).any(axis=2)
    assert changed[250:300, 40:280].mean() > 0.9
    assert not changed[:140].any()
    assert not changed[-8:].any()


def test_the_networks_depth_is_asked_for_once_by_mask_and_controlnet(served: Staging, server: FormulaServer):
    served.infer(square(served, "once"))
    assert len(server.depths) == 1
    assert server.controls[0]["control_depth"].max() == 255


def test_the_same_seed_gives_the_same_bytes(served: Staging):
    one, two = (served.infer(square(served, f"seed{n}", seed=7)).json() for n in range(2))
    assert np.array_equal(pixels(served, one), pixels(served, two))


def test_a_picture_says_that_a_trained_model_made_a_part_of_it(served: Staging):
    body = served.infer(square(served, "provenance")).json()
    found = read(served.stored(body["staged_key"]))
    assert found.xmp["Iptc4xmpExt:DigitalSourceType"].endswith("/compositeWithTrainedAlgorithmicMedia")


def test_tiers_that_get_it_have_their_picture_at_the_photographs_size(serve: Serve, server: FormulaServer):
    with serve(UPSCALE_ENABLED="true", STAGING_UPSCALE_TIERS="business") as served:
        large = served.infer(square(served, "large", tier="business")).json()
        small = served.infer(square(served, "small", tier="pro")).json()
        assert (large["width"], large["height"], large["inference_meta"]["upscaled"]) == (640, 640, True)
        assert (small["width"], small["height"], small["inference_meta"]["upscaled"]) == (320, 320, False)
        assert "upscale" in large["durations_ms"]
        staged, original = pixels(served, large), np.asarray(photo())
        assert np.array_equal(staged[:280], original[:280]), "nothing of the ceiling changes"
        assert not np.array_equal(staged[500:600, 80:560], original[500:600, 80:560])


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (OutOfMemory("no room"), 503, "oom"),
        (ModelUnavailable("unet held NaN or infinity"), 503, "provider_transient"),
        (DeadlineExceeded("unet took 5 s"), 504, "timeout"),
    ],
)
def test_what_goes_wrong_in_a_network_is_a_problem_with_its_code(
    serve: Serve, server: FormulaServer, error: RemarqueError, status: int, code: str
):
    with serve(STAGING_ATTEMPTS="1") as served:
        server.fault["unet"] = error
        answer = served.infer(square(served, "a"), prefer="wait=60")
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


def test_a_network_that_failed_is_tried_again(serve: Serve, server: FormulaServer):
    with serve() as served:
        server.fault["vae_decoder"] = ModelUnavailable("vae_decoder held NaN or infinity")
        server.hold = None
        served.infer(square(served, "a"), prefer="respond-async")
        assert server.steps.acquire(timeout=30)
        server.fault.clear()
        until(lambda: served.call("GET", "/infer/a").json()["status"] == "succeeded")


def test_a_mock_says_that_it_replaces_networks_that_are_away(serve: Serve, server: FormulaServer):
    with serve(STAGING_FALLBACK="mock", STAGING_ATTEMPTS="1") as served:
        for model in ("unet", "depth"):
            server.fault[model] = ModelUnavailable("nobody answers")
        body = served.infer(square(served, "a")).json()
        assert body["inference_meta"]["provider"] == "mock"
        assert body["warnings"][0].startswith("made by mock instead of self")
        assert body["inference_meta"]["gpu_seconds"] == 0


def test_a_cancelled_staging_stops_at_its_next_step(serve: Serve, server: FormulaServer):
    with serve() as served:
        server.hold = threading.Event()
        served.infer(square(served, "a"), prefer="respond-async")
        assert server.steps.acquire(timeout=30)
        assert served.call("DELETE", "/infer/a").status_code == 202
        server.hold.set()
        until(lambda: served.call("GET", "/infer/a").json()["status"] == "cancelled")
        assert len(server.predicted) <= 2
        assert server.decoded == 0


def test_the_service_is_ready_when_all_of_its_networks_are(served: Staging, server: FormulaServer):
    assert requests.get(served.url + "/readyz", timeout=10).status_code == 200
    server.missing = ("depth",)
    answer = requests.get(served.url + "/readyz", timeout=10)
    assert answer.status_code == 503
    assert "depth is not ready" in answer.text


def test_the_kill_switch_asks_no_network(served: Staging, server: FormulaServer):
    served.route(enabled=False)
    assert served.infer(square(served, "off")).status_code == 503
    assert (server.depths, server.predicted) == ([], [])


def until(condition: Callable[[], bool], within_s: float = 60) -> None:
    end_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.05)
