import io
import json
import logging
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from orchestrator.api import HttpServer, build_app
from orchestrator.clients.gate import Batch
from orchestrator.clients.webhook import Kind
from orchestrator.errors import ServiceError
from orchestrator.job import Event, Failed, HandedBack, Progress, Retried, Staged, Started, Stepped, Succeeded
from orchestrator.telemetry import JsonLines, Telemetry


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("remarque")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield stream
    logger.removeHandler(handler)


DONE = Succeeded(generation_id=1, result_url="gs://b/gen-1.png", metadata={"seed": 1})


def value(telemetry: Telemetry, name: str, **labels: str) -> float | None:
    return telemetry.registry.get_sample_value(name, labels)


def test_a_job_is_counted_and_timed_from_start_to_outcome() -> None:
    clock = Clock()
    telemetry = Telemetry(clock)
    telemetry(Started(generation_id=1, attempt=1))
    assert value(telemetry, "remarque_jobs_running") == 1
    clock.now_s += 8.2
    telemetry(DONE)
    assert value(telemetry, "remarque_jobs_running") == 0
    assert value(telemetry, "remarque_jobs_total", outcome="complete", error_code="") == 1
    assert value(telemetry, "remarque_job_seconds_sum", size="") == pytest.approx(8.2)


def test_an_outcome_that_was_found_and_not_made_is_counted_without_a_time() -> None:
    telemetry = Telemetry()
    telemetry(DONE)
    assert value(telemetry, "remarque_jobs_total", outcome="complete", error_code="") == 1
    assert value(telemetry, "remarque_job_seconds_count", size="") is None


@pytest.mark.parametrize(
    ("width", "height", "size"), [(512, 512, "512"), (512, 1024, "1024"), (640, 768, "768"), (1536, 64, "larger")]
)
def test_a_jobs_time_is_kept_by_the_pictures_longer_side(width: int, height: int, size: str) -> None:
    telemetry = Telemetry()
    telemetry(Started(generation_id=1, attempt=1))
    metadata = {"width": width, "height": height}
    telemetry(Succeeded(generation_id=1, result_url="gs://b/gen-1.png", metadata=metadata))
    assert value(telemetry, "remarque_job_seconds_count", size=size) == 1


def test_the_wait_in_the_queue_is_measured_from_the_stamp_where_there_is_one() -> None:
    telemetry = Telemetry()
    telemetry(Started(generation_id=1, attempt=1, waited_s=3.0, waited_from="published"))
    telemetry(Started(generation_id=2, attempt=1, waited_s=1.0))
    telemetry(Started(generation_id=3, attempt=2))
    assert value(telemetry, "remarque_queue_wait_seconds_sum", since="published") == 3.0
    assert value(telemetry, "remarque_queue_wait_seconds_count", since="delivered") == 1


def test_the_parts_of_a_job_are_timed() -> None:
    telemetry = Telemetry()
    telemetry(Staged(generation_id=1, stage="decode", began_s=0.0, seconds=0.3))
    assert value(telemetry, "remarque_stage_seconds_sum", stage="decode") == pytest.approx(0.3)


def test_batches_of_steps_are_counted_by_rows_and_by_jobs() -> None:
    telemetry = Telemetry()
    telemetry.batch(Batch("unet", rows=6, members=3, seconds=0.2))
    assert value(telemetry, "remarque_batch_rows_sum", model="unet") == 6
    assert value(telemetry, "remarque_batch_members_sum", model="unet") == 3
    assert value(telemetry, "remarque_batch_seconds_count", model="unet") == 1


def test_batches_of_merged_styles_make_no_series_of_their_own() -> None:
    telemetry = Telemetry()
    for style in range(3):
        telemetry.batch(Batch(f"unet--{style:016x}", rows=2, members=1, seconds=0.2))
    assert value(telemetry, "remarque_batch_rows_sum", model="unet") == 6
    assert b"unet--" not in telemetry.page()


def test_jobs_that_wait_are_asked_for_when_the_page_is_read() -> None:
    telemetry, waiting = Telemetry(), [1, 2]
    telemetry.watch_waiting(lambda: len(waiting))
    waiting.append(3)
    assert b"remarque_jobs_waiting 3.0" in telemetry.page()


@pytest.mark.parametrize(
    "end",
    [
        Failed(generation_id=1, error_message="no", error_code="TIMEOUT", retry_count=2),
        Retried(generation_id=1, attempt=1, error_code="GPU_OOM", error_message="full", delay_s=5.0),
        HandedBack(generation_id=1),
    ],
    ids=lambda event: type(event).__name__,
)
def test_every_end_of_an_attempt_frees_its_place(end: Event) -> None:
    telemetry = Telemetry()
    telemetry(Started(generation_id=1, attempt=1))
    telemetry(end)
    assert value(telemetry, "remarque_jobs_running") == 0


def test_a_job_that_is_delivered_again_before_its_end_is_told_holds_one_place() -> None:
    telemetry = Telemetry()
    telemetry(Started(generation_id=1, attempt=1))
    telemetry(Started(generation_id=1, attempt=1))  # a duplicate, which finds the outcome
    telemetry(DONE)
    telemetry(DONE)
    assert value(telemetry, "remarque_jobs_running") == 0


def test_steps_are_measured_and_not_logged(lines: io.StringIO) -> None:
    telemetry = Telemetry()
    telemetry(Stepped(generation_id=1, seconds=0.1))
    milestone = Progress(generation_id=1, current_step=1, total_steps=2, progress_percent=50, estimated_seconds=1.0)
    telemetry(milestone)
    assert value(telemetry, "remarque_step_seconds_count") == 1
    assert lines.getvalue() == ""


def test_styles_are_counted_by_file_and_by_where_they_came_from() -> None:
    telemetry = Telemetry()
    telemetry.style("0f1e2d3c4b5a" + "0" * 52, "store", 1.5)
    assert value(telemetry, "remarque_style_uses_total", style="0f1e2d3c4b5a", origin="store") == 1
    assert value(telemetry, "remarque_style_seconds_sum", origin="store") == 1.5


def test_a_log_line_is_json_that_names_the_job(lines: io.StringIO) -> None:
    Telemetry()(Failed(generation_id=7, error_message="prompt text", error_code="INVALID_INPUT", retry_count=0))
    line = json.loads(lines.getvalue())
    assert (line["generation_id"], line["event"], line["level"]) == (7, "failed", "info")
    assert "prompt text" not in lines.getvalue()


def test_an_exception_travels_in_its_line() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("remarque.test")
    logger.addHandler(handler)
    try:
        raise ZeroDivisionError("nothing")
    except ZeroDivisionError:
        logger.exception("broke")
    assert "ZeroDivisionError: nothing" in json.loads(stream.getvalue())["exception"]


def test_what_alerts_count_is_there_at_zero_before_the_first_event() -> None:
    """A series that begins at 1 has no increase, so the first refused outcome of a worker would alert nobody."""
    telemetry = Telemetry()
    page = (Path(__file__).parents[2] / "docs" / "errors.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (yes|no) \|", page, re.MULTILINE)
    codes = {
        code: retried == "yes" for code, meaning, retried in rows if not meaning.startswith(("staging", "only in"))
    }
    for code, retried in codes.items():
        assert value(telemetry, "remarque_jobs_total", outcome="failed", error_code=code) == 0, code
        assert value(telemetry, "remarque_retries_total", error_code=code) == (0 if retried else None), code
    assert value(telemetry, "remarque_jobs_total", outcome="complete", error_code="") == 0
    for kind in get_args(Kind):
        for answer in ("accepted", "undelivered", "refused"):
            assert value(telemetry, "remarque_webhooks_total", kind=kind, answer=answer) == 0


def test_every_metric_is_explained_in_the_docs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    telemetry = Telemetry()
    names = {sample.name for family in telemetry.registry.collect() for sample in family.samples}
    families = {family.name + ("_total" if family.type == "counter" else "") for family in telemetry.registry.collect()}
    assert {family for family in families if f"`{family}`" not in text} == set(), names


class Parts:
    missing: dict[str, str]

    def __init__(self) -> None:
        self.missing = {}


@pytest.fixture
def served() -> Iterator[tuple[str, Parts]]:
    parts = Parts()
    telemetry = Telemetry()
    server = HttpServer(build_app(lambda: parts.missing, telemetry.page), "127.0.0.1", 0)
    server.start()
    yield server.url, parts
    server.stop()


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_health_is_that_the_process_answers(served: tuple[str, Parts]) -> None:
    assert get(served[0] + "/healthz") == (200, '{"alive": true}')


def test_readiness_names_what_does_not_work(served: tuple[str, Parts]) -> None:
    url, parts = served
    assert get(url + "/readyz") == (200, '{"ready": true, "not_ready": {}}')
    parts.missing = {"store": "the bucket answers 403"}
    assert get(url + "/readyz") == (503, '{"ready": false, "not_ready": {"store": "the bucket answers 403"}}')


def test_metrics_are_served_in_prometheus_text(served: tuple[str, Parts]) -> None:
    code, page = get(served[0] + "/metrics")
    assert code == 200
    assert "# TYPE remarque_jobs_running gauge" in page


def test_an_address_that_is_taken_stops_the_start_with_the_remedy(served: tuple[str, Parts]) -> None:
    port = int(served[0].rpartition(":")[2])
    server = HttpServer(build_app(dict, bytes), "127.0.0.1", port)
    with pytest.raises(ServiceError, match="HTTP_ADDRESS"):
        server.start()
