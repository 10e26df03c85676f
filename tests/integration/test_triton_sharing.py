"""Shared memory and joint steps with the real server."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tiny_graphs

from local.triton import LocalTriton, Ports
from orchestrator.clients import triton as triton_client
from orchestrator.clients.kserve import InferenceServer
from orchestrator.clients.shared_memory import PREFIX, SHARED
from orchestrator.clients.triton import TritonModels
from orchestrator.errors import GenerationFailed

WORDS = {"encoder_hidden_states": np.linspace(-1, 1, 2 * 77 * tiny_graphs.WIDTH, dtype=np.float32).reshape(2, 77, -1)}
TIMESTEP = np.full((2, 1), 500, np.float32)


def latents(seed: int, side: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((2, 4, side, side)).astype(np.float32)


def regions(url: str) -> list[str]:
    """What the server has registered of ours."""
    server = InferenceServer(url, deadline_s=10)
    names = [entry["name"] for entry in server.ask("GET", "/v2/systemsharedmemory/status")]
    server.close()
    return [name for name in names if name.startswith(PREFIX)]


@pytest.fixture
def unshared(local_triton: LocalTriton) -> Iterator[TritonModels]:
    """A client that shares no memory."""
    models = TritonModels(local_triton.http_url, deadline_s=60, shared_memory=Path("/nonexistent"))
    yield models
    models.close()


def test_steps_through_shared_memory_give_the_bits_of_those_that_travel(
    triton_models: TritonModels, unshared: TritonModels, local_triton: LocalTriton
) -> None:
    with triton_models.conditioned("unet", WORDS) as near, unshared.conditioned("unet", WORDS) as far:
        for seed in range(3):
            np.testing.assert_array_equal(near(latents(seed), TIMESTEP), far(latents(seed), TIMESTEP))
        registered = regions(local_triton.http_url)
    assert len(registered) == 1 and not list(SHARED.glob(f"{registered[0]}*"))
    assert regions(local_triton.http_url) == []


def test_jobs_in_shared_memory_do_not_see_each_other(triton_models: TritonModels) -> None:
    alone = [latents(seed) for seed in range(8)]
    with triton_models.conditioned("unet", WORDS) as network:
        expected = [network(sample, TIMESTEP) for sample in alone]

    def job(index: int) -> list[np.ndarray]:
        with triton_models.conditioned("unet", WORDS) as network:
            return [network(alone[index], TIMESTEP) for _ in range(5)]

    with ThreadPoolExecutor(8) as pool:
        for index, answers in enumerate(pool.map(job, range(8))):
            for answer in answers:
                np.testing.assert_array_equal(answer, expected[index])


def test_steps_of_jobs_that_run_together_are_let_go_together(local_triton: LocalTriton) -> None:
    told: list[triton_client.Batch] = []
    models = TritonModels(local_triton.http_url, deadline_s=60, on_batch=told.append)

    def job(index: int) -> None:
        with models.conditioned("unet", WORDS) as network:
            for _ in range(10):
                network(latents(index), TIMESTEP)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(job, range(4)))
    models.close()
    assert sum(batch.members for batch in told) == 40
    assert len(told) < 30, [batch.members for batch in told]
    assert all(batch.rows == 2 * batch.members <= 8 for batch in told)


def test_jobs_of_different_sizes_do_not_wait_for_each_other(triton_models: TritonModels) -> None:
    stop = threading.Event()

    def busy() -> int:
        steps = 0
        with triton_models.conditioned("unet", WORDS) as network:
            while not stop.is_set():
                network(latents(1, side=16), TIMESTEP)
                steps += 1
        return steps

    with ThreadPoolExecutor(1) as pool, triton_models.conditioned("unet", WORDS) as network:
        others = pool.submit(busy)
        for _ in range(10):
            network(latents(2), TIMESTEP)
            time.sleep(0.05)  # longer than a step: a job that waited for this one would make no more steps than it
        stop.set()
        assert others.result() > 20


def test_a_server_that_was_started_anew_in_mid_job_is_given_the_memory_again(
    serve_models: Callable[..., LocalTriton], tiny_repository: Path
) -> None:
    with LocalTriton(tiny_repository, models=["unet"]) as triton:
        port = int(triton.http_url.rpartition(":")[2])
        models = TritonModels(triton.http_url, deadline_s=60)
        with models.conditioned("unet", WORDS) as network:
            expected = network(latents(3), TIMESTEP)
            triton.stop()
            with LocalTriton(tiny_repository, models=["unet"], ports=Ports(http=port)) as again:
                np.testing.assert_array_equal(network(latents(3), TIMESTEP), expected)
                assert len(regions(again.http_url)) == 1
        models.close()
    assert not list(SHARED.glob(f"{PREFIX}{os.getpid()}-*"))


def test_a_server_that_forbids_shared_memory_is_served_without(
    tiny_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = LocalTriton._command
    forbidden = "--http-restricted-api=shared-memory:admin-key=admin-value"
    monkeypatch.setattr(LocalTriton, "_command", lambda self, prefix: [*plain(self, prefix), forbidden])
    with LocalTriton(tiny_repository, models=["unet"]) as triton:
        models = TritonModels(triton.http_url, deadline_s=60)
        with models.conditioned("unet", WORDS) as network:
            answer = network(latents(4), TIMESTEP)
        models.close()
    assert answer.shape == (2, 4, 8, 8)


def test_memory_of_a_process_that_was_killed_is_taken_back(
    triton_models: TritonModels, local_triton: LocalTriton
) -> None:

    lines = (
        "import numpy as np, os, signal, sys",
        "from orchestrator.clients.triton import TritonModels",
        "models = TritonModels(sys.argv[1])",
        f"words = np.zeros((2, 77, {tiny_graphs.WIDTH}), np.float32)",
        "job = models.conditioned('unet', {'encoder_hidden_states': words})",
        "job.__enter__()(np.zeros((2, 4, 8, 8), np.float32), np.ones((2, 1), np.float32))",
        "os.kill(os.getpid(), signal.SIGKILL)",
    )
    subprocess.run([sys.executable, "-c", "\n".join(lines), local_triton.http_url], check=False)
    left = regions(local_triton.http_url)
    with triton_models.conditioned("unet", WORDS) as network:
        network(latents(5), TIMESTEP)
    assert len(left) == 1
    assert regions(local_triton.http_url) == [] and not (SHARED / left[0]).exists()


def test_a_row_that_fails_alone_too_fails_its_own_job_only(triton_models: TritonModels) -> None:
    wrong = {"encoder_hidden_states": np.zeros((2, 77, tiny_graphs.WIDTH + 1), np.float32)}
    with triton_models.conditioned("unet", wrong) as network, pytest.raises(GenerationFailed):
        network(latents(6), TIMESTEP)
    with triton_models.conditioned("unet", WORDS) as network:
        assert network(latents(6), TIMESTEP).shape == (2, 4, 8, 8)
