"""The service on a real broker, killed, starved and lied to at every point; each fault with the outcome it must have."""

import json
import random
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from fakes.backend import DONE_THEN_500, DOWN, slow, status
from fakes.dying_worker import POINTS
from integration.service import Service, message, service, until
from PIL import Image

from orchestrator.imaging.inspection import read

__all__ = ["service"]


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def result(service: Service, generation_id: int) -> Path:
    return service.results / "generations" / f"gen-{generation_id}.png"


def test_a_message_becomes_a_signed_picture_and_its_webhooks(service: Service) -> None:
    service.start_worker()
    service.publish(message(1, prompt="portrait, 노을", artist_name="김민수", signature_config={"size": "small"}))
    service.wait([1])
    kinds = [call.kind for call in service.backend.processed(1)]
    assert kinds == ["progress"] * 6 + ["complete"]
    percents = [call.body["progress"]["progress_percent"] for call in service.backend.processed(1)[:-1]]
    assert percents == [0, 25, 50, 75, 90, 100]
    complete = service.backend.processed(1)[-1].body
    assert complete["result_url"] == result(service, 1).as_uri()
    assert (complete["metadata"]["seed"], complete["metadata"]["mock"]) == (1, True)
    inspection = read(result(service, 1).read_bytes())
    assert not inspection.is_broken


@pytest.mark.parametrize("point", sorted(POINTS))
def test_kill_9_at_any_point_of_a_job_leaves_one_outcome_with_a_readable_picture(service: Service, point: str) -> None:
    dying = service.start_worker(dying=point)
    service.publish(message(1))
    until(lambda: dying.poll() is not None)
    assert dying.returncode == -signal.SIGKILL, service.logs()
    service.start_worker()
    service.wait([1])
    service.wait_settled()
    assert service.backend.outcomes(1) == ["complete"]
    assert pixels(result(service, 1)).shape == (512, 512, 3)


def test_a_job_interrupted_by_sigterm_resumes_elsewhere_with_the_identical_picture(service: Service) -> None:
    service.start_worker()
    service.publish(message(1, seed=77, sampler="euler_a", num_inference_steps=30))
    service.wait([1])
    service.publish(message(2, seed=77, sampler="euler_a", num_inference_steps=30))
    service.wait([2])
    service.workers[0].terminate()
    assert service.workers[0].wait(20) == 0, service.logs()
    slow_worker = service.start_worker(MOCK_SECONDS="8", GRACE_SECONDS="3")
    service.publish(message(3, seed=77, sampler="euler_a", num_inference_steps=30))
    until(lambda: any(call.body["progress"]["progress_percent"] >= 25 for call in service.backend.processed(3)))
    slow_worker.terminate()
    assert slow_worker.wait(20) == 0, service.logs()
    assert service.backend.outcomes(3) == []
    service.start_worker()
    service.wait([3])
    log = (service.folder / "worker-2.log").read_text()
    assert "generation 3 resumed after step" in log
    assert np.array_equal(pixels(result(service, 3)), pixels(result(service, 1)))
    assert np.array_equal(pixels(result(service, 2)), pixels(result(service, 1)))


def test_a_paused_worker_that_wakes_after_its_job_was_done_elsewhere_changes_nothing(service: Service) -> None:
    paused = service.start_worker(MOCK_SECONDS="2")
    service.publish(message(1))
    until(lambda: service.backend.processed(1))
    paused.send_signal(signal.SIGSTOP)
    # The broker misses the paused worker's heartbeats after a minute; closing its connections is what it does then.
    service.rabbitmq.ctl("close_all_connections", "paused in a test")
    service.start_worker()
    service.wait([1])
    first = result(service, 1).read_bytes()
    paused.send_signal(signal.SIGCONT)
    until(lambda: "ended complete" in (service.folder / "worker-0.log").read_text())
    service.wait_settled()
    assert service.backend.outcomes(1) == ["complete"]
    assert result(service, 1).read_bytes() == first
    assert not list((service.results / "attempts").iterdir())


def test_the_same_message_five_times_is_one_picture_and_one_outcome(service: Service) -> None:
    service.start_worker()
    service.publish(*[message(1)] * 5)
    service.wait([1])
    service.publish(message(1))
    service.wait_settled()
    assert service.backend.outcomes(1) == ["complete"]
    assert service.dead() == []


def test_the_same_id_with_another_payload_is_dead_lettered(service: Service) -> None:
    service.start_worker()
    service.publish(message(1))
    service.wait([1])
    service.publish(message(1, seed=2))
    until(lambda: service.settled() and service.dead_count() == 1)
    ((_, headers),) = service.dead()
    assert headers["x-reason"] == "INVALID_INPUT"
    assert service.backend.outcomes(1) == ["complete"]


HOSTILE = {
    "invalid JSON": b"{",
    "wrong types": json.dumps(message(21, seed="many", prompt=[1])).encode(),
    "NaN": b'{"task_id": "t", "type": "image_generation", "data": {"generation_id": 22, "guidance_scale": NaN}}',
    "10 MB": json.dumps(message(23, prompt="x" * 10_000_000)).encode(),
    "unknown type": json.dumps(message(24) | {"type": "video"}).encode(),
    "no such size": json.dumps(message(25, aspect_ratio="16:9")).encode(),
    "a style": json.dumps(message(26, lora_path="gs://bucket/none.safetensors")).encode(),
    "a path outside": json.dumps(message(27, signature_path="file:///etc/passwd")).encode(),
}


def test_hostile_messages_end_in_one_sentence_each_and_stop_nobody(service: Service) -> None:
    bomb = service.folder / "bomb.png"
    _write_bomb(bomb)
    missing = json.dumps(message(28, signature_path=(service.folder / "none.png").as_uri())).encode()
    huge = json.dumps(message(29, signature_path=bomb.as_uri())).encode()
    bodies = [*HOSTILE.values(), missing, huge]
    service.start_worker()
    service.publish(*bodies, message(1))
    service.wait([1, 21, 25, 26, 27, 28, 29])
    until(lambda: service.settled() and service.dead_count() == len(bodies))
    codes = {
        call.body["generation_id"]: call.body["error_code"] for call in service.backend.ledger if call.kind == "failed"
    }
    assert codes == {
        21: "INVALID_INPUT",
        25: "UNSUPPORTED_ASPECT_RATIO",
        26: "LORA_INCOMPATIBLE",
        27: "SIGNATURE_INVALID",
        28: "SIGNATURE_NOT_FOUND",
        29: "SIGNATURE_INVALID",
    }
    assert service.backend.outcomes(1) == ["complete"]
    assert service.workers[0].poll() is None


def test_a_cancel_stops_a_running_job_and_tells_it_once(service: Service) -> None:
    service.start_worker(MOCK_SECONDS="20")
    service.publish(message(1))
    until(lambda: service.backend.processed(1))
    begun = time.monotonic()
    service.publish({"type": "cancel", "data": {"generation_id": 1}})
    service.wait([1], within_s=10)
    assert time.monotonic() - begun < 8
    (outcome,) = [call for call in service.backend.processed(1) if call.kind == "failed"]
    assert outcome.body["error_code"] == "CANCELLED"


@pytest.mark.parametrize(
    "answers",
    [(DOWN, DOWN), (status(500), status(503)), (DONE_THEN_500,), (status(429, retry_after="1"),), (slow(2.0),)],
    ids=["down", "500", "done then 500", "429", "slow"],
)
def test_an_outage_of_the_backend_delays_an_outcome_and_loses_none(service: Service, answers: tuple) -> None:
    service.backend.script("complete", *answers)
    service.start_worker()
    service.publish(message(1))
    service.wait([1])
    service.wait_settled()
    assert service.backend.outcomes(1) == ["complete"]
    bodies = {call.data for call in service.backend.ledger if call.kind == "complete"}
    assert len(bodies) == 1


def test_a_backend_that_refuses_for_good_leaves_the_event_for_the_operator(service: Service) -> None:
    service.backend.script("complete", status(410))
    service.start_worker()
    service.publish(message(1))
    until(lambda: service.dead_count() == 1)
    ((body, headers),) = service.dead()
    assert (json.loads(body)["kind"], headers["x-reason"]) == ("complete", "WEBHOOK_REFUSED")
    assert len([call for call in service.backend.ledger if call.kind == "complete"]) == 1


def test_a_dead_job_that_is_replayed_has_a_second_life(service: Service) -> None:
    signature = service.folder / "signature.png"
    service.start_worker()
    service.publish(message(1, signature_path=signature.as_uri()))
    service.wait([1])
    until(lambda: service.dead_count() == 1)
    Image.new("RGBA", (80, 40), (0, 0, 0, 255)).save(signature)
    assert service.command("dead", "replay", "--all") == 0
    until(lambda: service.backend.outcomes(1) == ["failed", "complete"])


def test_a_broker_killed_with_unacked_jobs_delivers_them_again(service: Service) -> None:
    service.start_worker(MOCK_SECONDS="1.5")
    service.publish(*[message(number) for number in range(1, 9)])
    until(lambda: service.backend.processed())
    service.rabbitmq.kill_9()
    service.rabbitmq.restart()
    service.wait(range(1, 9))
    service.wait_settled()
    assert {tuple(service.backend.outcomes(number)) for number in range(1, 9)} == {("complete",)}


def test_sigterm_under_load_loses_nothing_and_exits_in_time(service: Service) -> None:
    worker = service.start_worker(MOCK_SECONDS="2", GRACE_SECONDS="4")
    service.publish(*[message(number) for number in range(1, 31)])
    until(lambda: service.backend.processed())
    begun = time.monotonic()
    worker.terminate()
    assert worker.wait(30) == 0, service.logs()
    assert time.monotonic() - begun < 4 + 6
    service.start_worker()
    service.wait(range(1, 31))
    service.wait_settled()
    assert {tuple(service.backend.outcomes(number)) for number in range(1, 31)} == {("complete",)}


def test_no_user_starves_another(service: Service) -> None:
    service.publish(*[message(number, user_id=1) for number in range(1, 31)], message(99, user_id=2))
    service.start_worker(MAX_CONCURRENT_GENERATIONS="2")
    service.wait([99])
    finished = sum(bool(service.backend.outcomes(number)) for number in range(1, 31))
    assert finished < 15
    service.wait(range(1, 31))


@pytest.mark.slow
def test_four_hundred_jobs_under_random_kills_have_exactly_one_outcome_each(service: Service) -> None:
    rng = random.Random(20261122)
    jobs = range(1, 401)
    fast = {"MOCK_SECONDS": "0.2", "MAX_CONCURRENT_GENERATIONS": "8"}
    service.settings = fast
    alive = [service.start_worker() for _ in range(2)]
    service.backend.script("complete", *[rng.choice([DONE_THEN_500, status(503), DOWN]) for _ in range(20)])
    publisher = threading.Thread(target=lambda: [_publish_slowly(service, number) for number in jobs])
    publisher.start()
    kills = 0
    while sum(bool(service.backend.outcomes(number)) for number in jobs) < len(jobs) or kills < 10:
        time.sleep(rng.uniform(0.3, 1.8))
        victim = rng.randrange(len(alive))
        if rng.random() < 0.15:
            service.rabbitmq.kill_9()
            service.rabbitmq.restart()
        else:
            alive[victim].send_signal(rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
            alive[victim].wait(30)
            alive[victim] = service.start_worker()
        kills += 1
        assert kills < 150, service.logs()
    publisher.join()
    service.wait_settled(60)
    wrong = {number: found for number in jobs if (found := service.backend.outcomes(number)) != ["complete"]}
    assert wrong == {}
    unreadable = [number for number in jobs if pixels(result(service, number)).shape != (512, 512, 3)]
    assert unreadable == []


def _publish_slowly(service: Service, number: int) -> None:
    service.publish(message(number, num_inference_steps=5))
    time.sleep(0.05)


def _write_bomb(path: Path) -> None:
    """A picture of 20000x20000 px in few bytes."""
    Image.MAX_IMAGE_PIXELS, before = None, Image.MAX_IMAGE_PIXELS
    try:
        Image.new("1", (20_000, 20_000)).save(path, optimize=True)
    finally:
        Image.MAX_IMAGE_PIXELS = before
