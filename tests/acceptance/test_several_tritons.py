"""Two Tritons under one worker: one is killed while jobs run on both, and none of them is lost."""

import os
import signal
from pathlib import Path

import numpy as np
from integration.service import Service, message, service, until
from PIL import Image

from local.triton import LocalTriton

__all__ = ["service"]
JOBS = range(1, 7)


def pixels(service: Service, generation_id: int) -> np.ndarray:
    return np.asarray(Image.open(service.results / "generations" / f"gen-{generation_id}.png"))


def small(generation_id: int) -> dict[str, object]:
    """Of 256 px, the same picture each."""
    return message(generation_id, aspect_ratio=None, width=256, height=256, num_inference_steps=24, seed=5)


def begun(service: Service, generation_id: int) -> bool:
    calls = [call for call in service.backend.processed(generation_id) if call.kind == "progress"]
    return any(call.body["progress"]["progress_percent"] >= 25 for call in calls)


def test_a_triton_killed_under_load_loses_no_job(service: Service, demo_repository: Path) -> None:
    options = {"runtime": "onnxruntime-f32", "models": ("text_encoder", "unet", "vae_decoder", "vae_encoder")}
    with LocalTriton(demo_repository, **options) as first, LocalTriton(demo_repository, **options) as second:
        worker = {"INFERENCE_MODE": "self", "MODEL_REPOSITORY": str(demo_repository), "GRACE_SECONDS": "25"}
        service.start_worker(**worker, TRITON_URL=f"{first.http_url}, {second.http_url}")
        service.publish(*(small(number) for number in JOBS))
        until(lambda: any(begun(service, number) for number in JOBS), within_s=120)
        assert first.server_pid is not None
        os.kill(first.server_pid, signal.SIGKILL)
        service.wait(JOBS, within_s=180)
        service.wait_settled()
    assert [service.backend.outcomes(number) for number in JOBS] == [["complete"]] * len(JOBS), service.logs()
    assert f"Triton at {first.http_url} is down" in (service.folder / "worker-0.log").read_text()
    # On ONNX Runtime a picture does not depend on the server it was made on, nor on a move between two.
    assert all(np.array_equal(pixels(service, number), pixels(service, 1)) for number in JOBS)
