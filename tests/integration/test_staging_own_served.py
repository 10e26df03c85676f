"""Staging by our own networks on the real Triton, with the demo's checkpoint."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fakes.staging import Staging, staging
from integration.own_staging import put, settings, staged, until, wish, working

from local.triton import LocalTriton

NETWORKS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")


@pytest.fixture(scope="module")
def own_settings(
    serve_models: Callable[..., LocalTriton], demo_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., dict[str, str]]:
    triton, folder = serve_models(demo_repository, models=NETWORKS), tmp_path_factory.mktemp("own")
    return lambda **more: settings(triton.http_url, demo_repository, folder, **more)


@pytest.fixture(scope="module")
def served(own_settings: Callable[..., dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Staging]:
    with staging(tmp_path_factory.mktemp("service"), **own_settings()) as running:
        put(running)
        yield running


@pytest.fixture
def patient(own_settings: Callable[..., dict[str, str]], tmp_path: Path) -> Iterator[Staging]:
    """Takes many steps, so that there is time to end it in the middle."""
    with staging(tmp_path, **own_settings(STAGING_STEPS="150", STAGING_STRENGTH="1")) as running:
        put(running)
        yield running


def test_a_staging_says_what_it_took_and_which_networks_were_called(served: Staging):
    assert served.call("GET", "/readyz").status_code == 200
    _, body = staged(served, "parts")
    assert {"provider", "text", "denoise", "decode"} <= set(body["durations_ms"])
    meta = body["inference_meta"]
    assert (meta["provider"], meta["mock"], meta["mask"], meta["upscaled"]) == ("self", False, "given", False)
    assert 0 < meta["gpu_seconds"] * 1000 <= body["durations_ms"]["provider"]
    for model in NETWORKS:
        assert served.metric(f'remarque_staging_model_seconds_count{{model="{model}"}}') >= 1, model


def test_outside_the_mask_every_byte_is_the_working_images(served: Staging):
    pixels, body = staged(served, "bytes")
    photograph, inside = working()
    assert pixels.shape == (body["height"], body["width"], 3) == photograph.shape
    assert np.array_equal(pixels[~inside], photograph[~inside])
    assert np.abs(pixels[inside].astype(int) - photograph[inside]).mean() > 5


def test_the_same_seed_gives_the_same_bytes_and_another_others(served: Staging):
    one, again, other = (staged(served, f"seed-{n}", seed=seed)[0] for n, seed in enumerate((5, 5, 6)))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_without_a_network_for_depth_the_mask_is_guessed_and_the_answer_says_so(served: Staging):
    _, body = staged(served, "unmasked", mask_key=None)
    assert body["inference_meta"]["mask"] == "floor"
    assert any("mask_key" in warning for warning in body["warnings"])


def test_stagings_side_by_side_get_what_they_get_alone(served: Staging):
    alone = {seed: staged(served, f"alone-{seed}", seed=seed)[0] for seed in (1, 2)}
    together: dict[int, np.ndarray] = {}

    def stage(seed: int) -> None:
        together[seed] = staged(served, f"both-{seed}", seed=seed)[0]

    threads = [threading.Thread(target=stage, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(together[seed], alone[seed]) for seed in (1, 2))


def test_a_cancelled_staging_ends_between_two_steps(patient: Staging):
    patient.infer(wish(patient, "a"), prefer="respond-async")
    until(lambda: patient.call("GET", "/infer/a").json()["percent"] >= 1)
    assert patient.call("DELETE", "/infer/a").status_code == 202
    until(lambda: patient.call("GET", "/infer/a").json()["status"] == "cancelled")
    assert patient.metric('remarque_staging_model_seconds_count{model="vae_decoder"}') == 0


def test_a_deadline_ends_a_staging_and_is_a_timeout(patient: Staging):
    answer = patient.infer(wish(patient, "a"), prefer="wait=1")
    assert (answer.status_code, answer.json()["code"]) == (504, "timeout")
    until(lambda: patient.metric("remarque_staging_running") == 0)
    assert patient.metric('remarque_staging_model_seconds_count{model="vae_decoder"}') == 0
