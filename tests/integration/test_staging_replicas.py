"""Two replicas of the staging service on one store: what each says of the other's work."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.staging import Staging, staging


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
