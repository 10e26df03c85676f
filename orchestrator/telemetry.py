"""Listens to events and counts them; nothing else knows that it is there.

Every metric is listed with its meaning in docs/metrics.md. A log line carries the generation's number, never a prompt.
"""

import json
import logging
import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from orchestrator import errors
from orchestrator.clients.gate import Batch
from orchestrator.job import Event, Failed, HandedBack, Progress, Retried, Staged, Started, Stepped, Succeeded

# What makes metrics elsewhere comes from here: this module alone imports the library.
__all__ = [
    "CollectorRegistry",
    "Counter",
    "Gauge",
    "Histogram",
    "JsonLines",
    "Telemetry",
    "generate_latest",
    "log_to_stderr",
]

STEP_BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
JOB_BUCKETS_S = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
STAGE_BUCKETS_S = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)
WAIT_BUCKETS_S = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 300.0, 1800.0)
ROW_BUCKETS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 64)
SIZES_PX = (512, 768, 1024)
STYLE_BUCKETS_S = (0.0001, 0.001, 0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
ENDINGS: tuple[type[errors.RemarqueError], ...] = (
    errors.InvalidInput,
    errors.UnsupportedAspectRatio,
    errors.LoraNotFound,
    errors.LoraIncompatible,
    errors.SignatureNotFound,
    errors.SignatureInvalid,
    errors.OutOfMemory,
    errors.ModelUnavailable,
    errors.DeadlineExceeded,
    errors.StorageError,
    errors.Cancelled,
    errors.GenerationFailed,
)
"""What a job can fail with."""
LOG = logging.getLogger("remarque")


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message and whatever fields the caller attached."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def log_to_stderr(level: str) -> None:
    """Send every logger's lines to stderr as JSON."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # Both tell of every turn of theirs; what matters of it, we log ourselves.
    logging.getLogger("pika").setLevel("ERROR")
    logging.getLogger("uvicorn").setLevel("WARNING")


class Telemetry:
    """Prometheus metrics and log lines out of events; call it with each one. Threads may share it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun: dict[int, float] = {}
        self.registry = CollectorRegistry()
        running = Gauge("remarque_jobs_running", "Jobs between start and outcome", registry=self.registry)
        # Not counted up and down: a job that is delivered again while its end is told would be begun twice, ended once.
        running.set_function(lambda: len(self._begun))
        self._jobs = Counter("remarque_jobs", "Jobs by outcome", ["outcome", "error_code"], registry=self.registry)
        self._retries = Counter("remarque_retries", "Attempts that broke", ["error_code"], registry=self.registry)
        self._handed_back = Counter("remarque_jobs_handed_back", "Jobs given back to the queue", registry=self.registry)
        self._job_seconds = Histogram(
            "remarque_job_seconds", "Start to outcome, by size", ["size"], buckets=JOB_BUCKETS_S, registry=self.registry
        )
        self._stage_seconds = Histogram(
            "remarque_stage_seconds", "Parts of a job", ["stage"], buckets=STAGE_BUCKETS_S, registry=self.registry
        )
        self._wait_seconds = Histogram(
            "remarque_queue_wait_seconds",
            "Publication, or delivery where nobody stamped it, to start",
            ["since"],
            buckets=WAIT_BUCKETS_S,
            registry=self.registry,
        )
        self._batch_rows = Histogram(
            "remarque_batch_rows", "Rows of a batch of steps", ["model"], buckets=ROW_BUCKETS, registry=self.registry
        )
        self._batch_members = Histogram(
            "remarque_batch_members", "Jobs in a batch of steps", ["model"], buckets=ROW_BUCKETS, registry=self.registry
        )
        self._batch_seconds = Histogram(
            "remarque_batch_seconds",
            "A batch of steps, from its release to its last answer",
            ["model"],
            buckets=STEP_BUCKETS_S,
            registry=self.registry,
        )
        self._waiting = Gauge("remarque_jobs_waiting", "Jobs taken that wait for their turn", registry=self.registry)
        self._step_seconds = Histogram(
            "remarque_step_seconds", "One turn of the denoise loop", buckets=STEP_BUCKETS_S, registry=self.registry
        )
        self._webhooks = Counter(
            "remarque_webhooks", "Webhook calls by kind and answer", ["kind", "answer"], registry=self.registry
        )

        self._styles = Counter(
            "remarque_style_uses", "Styles taken, by where they came from", ["style", "origin"], registry=self.registry
        )
        self._style_seconds = Histogram(
            "remarque_style_seconds",
            "To have a style ready, by where it came from",
            ["origin"],
            buckets=STYLE_BUCKETS_S,
            registry=self.registry,
        )

        self._merged = Counter(
            "remarque_merged_models",
            "Merged models met, written, loaded and evicted",
            ["model", "action"],
            registry=self.registry,
        )
        self._merged_seconds = Histogram(
            "remarque_merged_seconds",
            "To write, load or evict a merged model",
            ["action"],
            buckets=STYLE_BUCKETS_S,
            registry=self.registry,
        )
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        """Have every series that alerts count: of one that begins at 1, Prometheus sees no increase."""
        self._jobs.labels("complete", "")
        for error in ENDINGS:
            self._jobs.labels("failed", error.code)
            if error.retryable:
                self._retries.labels(error.code)
        for kind in ("progress", "complete", "failed"):
            for answer in ("accepted", "undelivered", "refused"):
                self._webhooks.labels(kind, answer)

    def __call__(self, event: Event) -> None:
        """Count one event and log it, unless it is one of a job's many steps."""
        match event:
            case Stepped():
                self._step_seconds.observe(event.seconds)
            case Staged():
                self._stage_seconds.labels(event.stage).observe(event.seconds)
            case Started():
                self._begun[event.generation_id] = self._clock()
                if event.waited_s is not None:
                    self._wait_seconds.labels(event.waited_from).observe(event.waited_s)
                self._say(event, f"started attempt {event.attempt}")
            case Progress():
                self._say(event, f"reached {event.progress_percent} %", logging.DEBUG)
            case Retried():
                self._retries.labels(event.error_code).inc()
                self._end(event)
                text = f"attempt {event.attempt} broke ({event.error_code}: {event.error_message}), "
                self._say(event, text + f"next one in {event.delay_s:.0f} s", logging.WARNING)
            case HandedBack():
                self._handed_back.inc()
                self._end(event)
                self._say(event, "went back to the queue")
            case Succeeded():
                self._conclude(event, "complete", "")
            case Failed():
                self._conclude(event, "failed", event.error_code)

    def webhook(self, kind: str, answer: str) -> None:
        """Count one call of the backend: ``answer`` is accepted, undelivered or refused."""
        self._webhooks.labels(kind, answer).inc()

    def style(self, sha256: str, origin: str, seconds: float) -> None:
        """Count one use of a style: ``origin`` is memory, disk or store."""
        self._styles.labels(sha256[:12], origin).inc()
        self._style_seconds.labels(origin).observe(seconds)

    def merged(self, model: str, action: str, seconds: float) -> None:
        """Count what was done with a merged model: ``hit``, ``merge``, ``load`` or ``evict``."""
        self._merged.labels(model, action).inc()
        self._merged_seconds.labels(action).observe(seconds)

    def batch(self, batch: Batch) -> None:
        """Count one group of rows that several jobs' steps went through Triton in.

        A merged style counts as the model it was merged from: each would be some fifty series that nothing ever ends.
        """
        model = batch.model.partition("--")[0]
        self._batch_rows.labels(model).observe(batch.rows)
        self._batch_members.labels(model).observe(batch.members)
        self._batch_seconds.labels(model).observe(batch.seconds)

    def watch_waiting(self, count: Callable[[], int]) -> None:
        """Have ``count`` asked for the jobs that wait, whenever the metrics are read."""
        self._waiting.set_function(count)

    def page(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _conclude(self, event: Succeeded | Failed, outcome: str, error_code: str) -> None:
        self._jobs.labels(outcome, error_code).inc()
        seconds = self._end(event)
        if seconds is not None:
            self._job_seconds.labels(_size(event)).observe(seconds)
        took = "" if seconds is None else f" after {seconds:.1f} s"
        self._say(event, f"ended {outcome}{took}{' with ' + error_code if error_code else ''}")

    def _end(self, event: Event) -> float | None:
        """Seconds since the job's start, where its start was here."""
        begun = self._begun.pop(event.generation_id, None)
        if begun is None:
            return None
        return self._clock() - begun

    @staticmethod
    def _say(event: Event, text: str, level: int = logging.INFO) -> None:
        name = type(event).__name__.lower()
        fields = {"generation_id": event.generation_id, "event": name}
        LOG.log(level, "generation %d %s", event.generation_id, text, extra={"fields": fields})


def _size(event: Succeeded | Failed) -> str:
    """The longer side up to the next of a few sizes, for each of which promises are made; "" where it is not known."""
    metadata = event.metadata if isinstance(event, Succeeded) else {}
    width, height = metadata.get("width"), metadata.get("height")
    if not isinstance(width, int) or not isinstance(height, int):
        return ""
    return str(next((size for size in SIZES_PX if max(width, height) <= size), "larger"))
