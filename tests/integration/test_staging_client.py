"""The worker's client against a service that it must be patient with, and replicas that take over from each other."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random

import pytest
import requests
from fakes.predictions import PredictionServer
from fakes.staging import TOKEN, Staging, staging

from orchestrator.clients.staging import StagingClient
from orchestrator.errors import Conflict, DeadlineExceeded, ModelUnavailable, NotFound, RateLimited, Unauthorized
from orchestrator.staging.breaker import BreakerSettings

ROOT = Path(__file__).parents[2]
WELL = (200, {"staged_key": "k"}, {})


class Scripted(ThreadingHTTPServer):
    """Answers as told; the last answer again and again. None hangs up."""

    daemon_threads = True

    def __init__(self, *answers: tuple[int, dict, dict] | None) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.answers, self.bodies, self.prefers = list(answers), [], []
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answering(BaseHTTPRequestHandler):
    server: Scripted

    def do_POST(self) -> None:
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.server.prefers.append(self.headers["Prefer"])
        answer = self.server.answers.pop(0) if len(self.server.answers) > 1 else self.server.answers[0]
        if answer is None:
            return
        status, document, headers = answer
        body = json.dumps(document).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def slept() -> list[float]:
    return []


def client(server: Scripted, slept: list[float], **options: object) -> StagingClient:
    return StagingClient(server.url, token="t", rng=Random(1), sleep=slept.append, **options)  # type: ignore[arg-type]


def problem(status: int, code: str, **headers: str) -> tuple[int, dict, dict]:
    return status, {"code": code, "detail": "said"}, headers


def test_what_may_go_better_is_repeated_with_the_same_id(slept: list[float]):
    server = Scripted(
        problem(503, "provider_transient"), None, problem(429, "rate_limited", **{"Retry-After": "3"}), WELL
    )
    assert client(server, slept).infer({"image_id": "a"}, deadline_s=60) == {"staged_key": "k"}
    assert server.bodies == [{"image_id": "a"}] * 4
    assert 3 <= slept[2] <= 4
    assert server.prefers[0] == "wait=59"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (problem(404, "not_found"), NotFound),
        (problem(401, "invalid_input"), Unauthorized),
        (problem(409, "invalid_input"), Conflict),
    ],
)
def test_what_will_not_go_better_is_not_repeated(answer: tuple, error: type[Exception], slept: list[float]):
    server = Scripted(answer)
    with pytest.raises(error):
        client(server, slept).infer({"image_id": "a"}, deadline_s=60)
    assert len(server.bodies) == 1


def test_no_wait_goes_past_the_deadline(slept: list[float]):
    server = Scripted(problem(429, "rate_limited", **{"Retry-After": "30"}))
    with pytest.raises(RateLimited):
        client(server, slept).infer({"image_id": "a"}, deadline_s=10)
    assert slept == []


def test_a_service_that_keeps_failing_is_left_alone(slept: list[float]):
    server = Scripted(problem(503, "provider_transient"))
    found = client(server, slept, attempts=1, breaker=BreakerSettings(window=4, least_calls=4))
    for _ in range(6):
        with pytest.raises(ModelUnavailable):
            found.infer({"image_id": "a"}, deadline_s=60)
    assert len(server.bodies) == 4


def test_refusals_do_not_open_the_breaker(slept: list[float]):
    server = Scripted(problem(404, "not_found"))
    found = client(server, slept, breaker=BreakerSettings(window=2, least_calls=2))
    for _ in range(4):
        with pytest.raises(NotFound):
            found.infer({"image_id": "a"}, deadline_s=60)


def test_a_slow_service_is_given_up_at_the_deadline(slept: list[float]):
    with PredictionServer(looks_until_done=10_000) as provider:
        silent = StagingClient(provider.url, token=provider.token, sleep=slept.append)
        with pytest.raises((DeadlineExceeded, ModelUnavailable)):
            silent.infer({"image_id": "a"}, deadline_s=1)


def test_the_client_and_the_service_understand_each_other(tmp_path: Path):
    with staging(tmp_path) as served:
        found = StagingClient(served.url, token=TOKEN)
        assert found.infer(served.wish("a"), deadline_s=60)["staged_key"].startswith("staged/backend/a/")
        with pytest.raises(Conflict):
            found.infer(served.wish("a", seed=1), deadline_s=60)
        with pytest.raises(NotFound):
            found.infer(served.wish("b", original_key="uploads/none.jpg"), deadline_s=60)


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Staging]:
    with staging(tmp_path) as running:
        yield running


def test_a_second_replica_replays_shows_and_follows_what_the_first_staged(replica: Staging, tmp_path: Path):
    first = replica.infer(replica.wish("a")).json()
    with staging(tmp_path) as other:
        assert other.infer(other.wish("a")).json() == first
        assert other.call("GET", "/infer/a").json()["result"] == first
        assert "event: end" in other.call("GET", "/infer/a/events").text
        assert other.call("DELETE", "/infer/a").status_code == 409


def test_the_command_stops_in_order_and_its_promise_is_kept_by_another(replica: Staging, tmp_path: Path):
    environ = {
        "INFERENCE_MODE": "mock",
        "STAGING_MOCK_SECONDS": "600",
        "RESULT_STORE": (tmp_path / "results").as_uri(),
        "STAGING_ORIGINALS": (tmp_path / "originals").as_uri(),
        "STAGING_CLIENTS_FILE": str(tmp_path / "clients.toml"),
        "DEVELOPMENT_KEY_FOLDER": str(tmp_path / "key"),
        "HTTP_ADDRESS": "127.0.0.1:0",
        "GRACE_SECONDS": "6",
    }
    command = [sys.executable, "-W", "error", "-m", "orchestrator", "serve"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, env=os.environ | environ) as process:
        assert process.stderr is not None
        url = next(
            line.split("http://")[1].split('"')[0]
            for line in map(bytes.decode, process.stderr)
            if "staging with" in line
        )
        threading.Thread(target=process.stderr.read, daemon=True).start()
        asked = requests.post(
            f"http://{url}/infer",
            json=replica.wish("a"),
            headers={"Authorization": f"Bearer {TOKEN}", "Prefer": "respond-async"},
            timeout=60,
        )
        assert asked.status_code == 202
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    waited = threading.Event()
    for _ in range(600):
        if replica.call("GET", "/infer/a").json()["status"] == "succeeded":
            break
        waited.wait(0.1)
    assert replica.call("GET", "/infer/a").json()["result"]["staged_key"].startswith("staged/backend/a/")
