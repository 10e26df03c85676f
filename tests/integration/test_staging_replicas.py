"""Two replicas of the staging service on one store: what each says of the other's work."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fakes.staging import Staging, encoded, room, staging


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[Staging]:
    """A replica that takes its time."""
    with staging(tmp_path, STAGING_MOCK_SECONDS="1.5") as running:
        yield running


@pytest.fixture
def other(busy: Staging, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Staging]:
    """Another one, whose looks at the store follow each other quickly."""
    monkeypatch.setattr("orchestrator.api.LOOK_EVERY_S", 0.05)
    with staging(tmp_path) as running:
        yield running


def told(served: Staging, image_id: str) -> list[tuple[str, str]]:
    """The events of a stream until it ends: name and status."""
    parts = [part.splitlines() for part in served.call("GET", f"/infer/{image_id}/events").text.split("\n\n")]
    return [
        (lines[0].removeprefix("event: "), json.loads(lines[2].removeprefix("data: "))["status"])
        for lines in parts
        if len(lines) == 3
    ]


def test_a_stream_at_another_replica_says_what_changed_and_ends(busy: Staging, other: Staging):
    busy.infer(busy.wish("a"), prefer="respond-async")
    assert told(other, "a") == [("progress", "queued"), ("end", "succeeded")]


def test_a_failure_that_another_replica_mended_is_told_by_none(busy: Staging, other: Staging):
    late = busy.wish("a", original_key="uploads/late.jpg")
    assert busy.infer(late).status_code == 404
    assert busy.call("GET", "/infer/a").json()["status"] == "failed"
    busy.put("uploads/late.jpg", encoded(room()))
    assert other.infer(late).status_code == 200
    assert busy.call("GET", "/infer/a").json()["status"] == "succeeded"
    assert told(busy, "a") == [("end", "succeeded")]


def test_a_service_that_stops_hands_over_what_it_promised_and_refuses_the_rest(tmp_path: Path):
    with (
        staging(tmp_path, STAGING_MOCK_SECONDS="600", STAGING_CONCURRENCY="1") as served,
        ThreadPoolExecutor(3) as pool,
    ):
        running = pool.submit(served.infer, served.wish("running"))
        wait_for(served, "running", "running")
        assert served.infer(served.wish("queued"), prefer="respond-async").status_code == 202
        patient = pool.submit(served.infer, served.wish("queued"), prefer="respond-async, wait=60")
        followed = pool.submit(told, served, "queued")
        time.sleep(0.3)
        served.service.desk.stop(0)
        assert (running.result().status_code, running.result().json()["code"]) == (503, "rate_limited")
        assert "the service stops" in running.result().json()["detail"]
        assert patient.result().status_code == 202
        assert followed.result() == [("progress", "queued")]
        assert served.call("GET", "/infer/queued").json()["status"] == "queued"


def wait_for(served: Staging, image_id: str, status: str) -> None:
    for _ in range(200):
        answer = served.call("GET", f"/infer/{image_id}")
        if answer.status_code == 200 and answer.json()["status"] == status:
            return
        time.sleep(0.05)
    raise AssertionError(f"{image_id} was never {status}")
