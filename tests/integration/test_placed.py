"""What stays the same between a job's steps, in shared memory and without."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.inference_server import Error, Served, serving

from orchestrator.clients import placed, shared_memory
from orchestrator.clients.kserve import InferenceServer
from orchestrator.clients.placed import Places
from orchestrator.clients.shared_memory import PREFIX, Region, left_behind
from orchestrator.clients.triton import TritonModels
from orchestrator.errors import DeadlineExceeded, GenerationFailed, OutOfMemory

EMBEDDINGS = np.arange(2 * 77 * 8, dtype=np.float32).reshape(2, 77, 8)
SAMPLE = np.arange(2 * 4 * 8 * 8, dtype=np.float32).reshape(2, 4, 8, 8) / 100
TIMESTEP = np.full((2, 1), 500, np.float32)
WORDS = {"encoder_hidden_states": EMBEDDINGS}


@pytest.fixture
def served(tmp_path: Path) -> Served:
    """A server that sees the same shared memory."""
    served = Served()
    served.shared_memory = tmp_path
    return served


@pytest.fixture
def models(served: Served, tmp_path: Path) -> Iterator[TritonModels]:
    with serving(served) as url:
        models = TritonModels(url, deadline_s=5, load_within_s=5, shared_memory=tmp_path)
        yield models
        models.close()


def regions(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob(f"{PREFIX}*"))


def test_a_step_in_shared_memory_is_text_alone(models: TritonModels, served: Served) -> None:
    with models.conditioned("unet", WORDS) as network:
        for level in (3.0, 4.0):
            np.testing.assert_array_equal(network(SAMPLE * level, TIMESTEP), SAMPLE * level * 2)
    assert max(served.body_bytes) < 1200
    for received in served.received:
        np.testing.assert_array_equal(received["encoder_hidden_states"], EMBEDDINGS)
        np.testing.assert_array_equal(received["timestep"], TIMESTEP)


def test_memory_is_registered_once_for_all_steps_and_gone_with_the_job(
    models: TritonModels, served: Served, tmp_path: Path
) -> None:
    with models.conditioned("unet", WORDS) as network:
        for _ in range(3):
            network(SAMPLE, TIMESTEP)
        assert len(served.regions) == len(regions(tmp_path)) == 1
    assert [line for line in served.log if line.endswith("/register")].__len__() == 1
    assert (served.regions, regions(tmp_path)) == ({}, [])


def test_memory_is_gone_where_the_job_breaks(models: TritonModels, served: Served, tmp_path: Path) -> None:
    def stop() -> None:
        with models.conditioned("unet", WORDS) as network:
            network(SAMPLE, TIMESTEP)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert (served.regions, regions(tmp_path)) == ({}, [])


def test_answers_outlive_the_memory_they_came_through(models: TritonModels) -> None:
    with models.conditioned("unet", WORDS) as network:
        first = network(SAMPLE, TIMESTEP)
        network(SAMPLE * 9, TIMESTEP)
    np.testing.assert_array_equal(first, SAMPLE * 2)


def test_half_precision_is_written_and_read_where_the_engine_wants_it(models: TritonModels, served: Served) -> None:
    served.inputs["unet"] |= {"sample": "FP16", "encoder_hidden_states": "FP16"}
    with models.conditioned("unet", WORDS) as network:
        answer = network(SAMPLE, TIMESTEP)
    assert answer.dtype == np.float32 and served.received[0]["encoder_hidden_states"].dtype == np.float16
    np.testing.assert_allclose(answer, SAMPLE * 2, rtol=2e-3)


def test_latents_of_another_size_get_another_place(models: TritonModels, tmp_path: Path) -> None:
    large = np.ones((2, 4, 16, 16), np.float32)
    with models.conditioned("unet", WORDS) as network:
        network(SAMPLE, TIMESTEP)
        np.testing.assert_array_equal(network(large, TIMESTEP), large * 2)
        assert len(regions(tmp_path)) == 1


@pytest.mark.parametrize("why", ["forbidden", "elsewhere", "no folder"])
def test_where_memory_is_not_shared_everything_travels_and_that_is_said_once(
    served: Served, tmp_path: Path, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    served.shared_memory = None if why == "forbidden" else tmp_path / "elsewhere"
    folder = tmp_path / "none" if why == "no folder" else tmp_path
    caplog.set_level(logging.INFO)
    with serving(served) as url:
        models = TritonModels(url, deadline_s=5, shared_memory=folder)
        for _ in range(3):
            with models.conditioned("unet", WORDS) as network:
                np.testing.assert_array_equal(network(SAMPLE, TIMESTEP), SAMPLE * 2)
        models.close()
    assert len([record for record in caplog.records if "shares no memory" in record.message]) == 1
    assert min(served.body_bytes) > EMBEDDINGS.nbytes and regions(tmp_path) == []


def test_a_full_folder_is_noticed_before_anything_is_written(
    models: TritonModels, served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shared_memory.os, "posix_fallocate", full)
    with models.conditioned("unet", WORDS) as network:
        np.testing.assert_array_equal(network(SAMPLE, TIMESTEP), SAMPLE * 2)
    assert regions(tmp_path) == []


def test_a_server_that_refused_is_asked_again_later(
    models: TritonModels, served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.shared_memory = None
    with models.conditioned("unet", WORDS) as network:
        network(SAMPLE, TIMESTEP)
    served.shared_memory = tmp_path
    monkeypatch.setattr(placed.time, "monotonic", lambda real=placed.time.monotonic: real() + placed.REFUSED_FOR_S)
    with models.conditioned("unet", WORDS) as network:
        network(SAMPLE, TIMESTEP)
        assert len(served.regions) == 1


def test_a_server_that_was_started_anew_is_given_the_memory_again(models: TritonModels, served: Served) -> None:
    with models.conditioned("unet", WORDS) as network:
        network(SAMPLE, TIMESTEP)
        served.regions.clear()
        np.testing.assert_array_equal(network(SAMPLE * 5, TIMESTEP), SAMPLE * 10)
    assert served.regions == {}


def test_a_network_survives_the_reload_of_its_model(models: TritonModels, served: Served) -> None:
    with models.conditioned("unet", WORDS) as network:
        network(SAMPLE, TIMESTEP)
        served.inputs["unet"]["sample"] = "FP16"
        models.load("unet")
        np.testing.assert_allclose(network(SAMPLE, TIMESTEP), SAMPLE * 2, rtol=2e-3)


def test_a_network_survives_the_death_of_its_model(models: TritonModels, served: Served) -> None:
    served.kill_unet()
    with models.conditioned("unet", WORDS) as network:
        np.testing.assert_array_equal(network(SAMPLE, TIMESTEP), SAMPLE)


def test_memory_that_the_server_may_still_write_to_stays_registered(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.wait_s = 0.05
    with serving(served) as url:
        models = TritonModels(url, deadline_s=0.2, shared_memory=tmp_path)
        with models.conditioned("unet", WORDS) as network:
            network(SAMPLE, TIMESTEP)
            served.wait_s = 0.5
            with pytest.raises(DeadlineExceeded):
                network(SAMPLE, TIMESTEP)
            served.wait_s = 0.0
        assert len(served.regions) == 1 and regions(tmp_path) == []
        monkeypatch.setattr(placed.time, "monotonic", lambda real=placed.time.monotonic: real() + placed.BUSY_FOR_S)
        with models.conditioned("unet", WORDS) as network:
            network(SAMPLE, TIMESTEP)
        models.close()
    assert served.regions == {}


def test_leaving_a_server_that_died_raises_nothing(served: Served, tmp_path: Path) -> None:
    with serving(served) as url:
        models = TritonModels(url, deadline_s=5, shared_memory=tmp_path)
        job = models.conditioned("unet", WORDS)
        job.__enter__()(SAMPLE, TIMESTEP)
        models.close()
    job.__exit__(None, None, None)
    assert regions(tmp_path) == []


def test_what_dead_processes_left_is_removed_here_and_in_the_server(
    models: TritonModels, served: Served, tmp_path: Path
) -> None:
    dead, elsewhere = f"{PREFIX}1-dead", f"{PREFIX}2-unlinked"
    (tmp_path / dead).write_bytes(bytes(64))
    (tmp_path / "not-ours").write_bytes(b"")
    for name in (dead, elsewhere, "not-ours"):
        served.regions[name] = None  # type: ignore[assignment]
    living = Region({"x": ((4,), np.dtype(np.float32))}, tmp_path)
    served.regions[living.name] = None  # type: ignore[assignment]
    with models.conditioned("unet", WORDS) as network:
        network(SAMPLE, TIMESTEP)
    assert set(served.regions) == {"not-ours", living.name}
    assert regions(tmp_path) == [living.name] and (tmp_path / "not-ours").exists()
    living.close()


def test_a_region_is_locked_while_its_owner_lives(tmp_path: Path) -> None:
    region = Region({"x": ((4,), np.dtype(np.float32))}, tmp_path)
    assert list(left_behind(tmp_path)) == []
    name = region.name
    del region
    assert list(left_behind(tmp_path)) == [name]


def test_a_server_of_the_same_group_may_write_to_a_region_and_nobody_else(tmp_path: Path) -> None:
    region = Region({"x": ((4,), np.dtype(np.float32))}, tmp_path)
    assert (tmp_path / region.name).stat().st_mode & 0o777 == 0o660
    region.close()


def test_arrays_of_a_region_do_not_overlap_and_are_aligned(tmp_path: Path) -> None:
    region = Region({"a": ((3,), np.dtype(np.float16)), "b": ((2, 2), np.dtype(np.float32))}, tmp_path)
    region.arrays["a"][...] = 7
    region.arrays["b"][...] = np.eye(2)
    assert region.arrays["a"].tolist() == [7, 7, 7] and region.offsets["b"] % 64 == 0
    content = (tmp_path / region.name).read_bytes()
    assert len(content) == region.size_bytes
    assert np.frombuffer(content, np.float32, 4, region.offsets["b"]).tolist() == [1, 0, 0, 1]
    region.close()


def test_a_region_swept_before_it_was_locked_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, swept = shared_memory.fcntl.flock, []

    def late(descriptor: int, flags: int) -> None:
        if not swept:
            swept.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
            Path(swept[0]).unlink()
        real(descriptor, flags)

    monkeypatch.setattr(shared_memory.fcntl, "flock", late)
    region = Region({"a": ((3,), np.dtype(np.float16))}, tmp_path)
    assert regions(tmp_path) == [region.name] and region.name not in swept[0]
    region.close()


def test_rows_that_do_not_fit_are_halved_in_shared_memory_too(models: TritonModels, served: Served) -> None:
    def narrow(inputs: dict[str, np.ndarray]) -> Any:
        if len(inputs["sample"]) > 1:
            raise Error("unet ran out of memory: std::bad_alloc", 500)
        return {"out_sample": inputs["sample"] + inputs["encoder_hidden_states"][:, :1, :1, None]}

    served.answers["unet"] = narrow
    with models.conditioned("unet", WORDS) as network:
        answer = network(SAMPLE, TIMESTEP)
        network(SAMPLE, TIMESTEP)
    np.testing.assert_array_equal(answer, SAMPLE + EMBEDDINGS[:, :1, :1, None])
    assert [len(inputs["sample"]) for inputs in served.received[-2:]] == [1, 1]


def test_one_row_that_does_not_fit_fails_the_job(models: TritonModels, served: Served) -> None:
    def never(inputs: dict[str, np.ndarray]) -> Any:
        raise Error("unet ran out of memory: std::bad_alloc", 500)

    served.answers["unet"] = never
    with models.conditioned("unet", WORDS) as network, pytest.raises(OutOfMemory):
        network(SAMPLE, TIMESTEP)


def test_a_call_that_fails_alone_too_is_the_one_to_blame(models: TritonModels, served: Served) -> None:
    def broken(inputs: dict[str, np.ndarray]) -> Any:
        raise Error("CUDA error: an illegal value", 500)

    served.answers["unet"] = broken
    with models.conditioned("unet", WORDS) as network, pytest.raises(GenerationFailed, match="illegal value"):
        network(SAMPLE, TIMESTEP)
    assert len(served.received) == 2


def test_places_are_refused_by_a_server_of_another_kind() -> None:
    with serving(Served()) as url:
        server = InferenceServer(url, deadline_s=5)
        assert Places(server).take({"x": ((4,), np.dtype(np.float32))}) is None
        server.close()
