"""Builds the worker's service out of settings: everything started in order, and ended in the reverse one."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.api import HttpServer, build_app
from orchestrator.app import build_buckets, build_shelf, build_signing_key, build_studio
from orchestrator.clients.amqp import Endpoint
from orchestrator.clients.gate import Batch
from orchestrator.clients.rabbitmq import Broker
from orchestrator.clients.storage import Storage
from orchestrator.clients.webhook import Patience, WebhookSender
from orchestrator.conclusion import Conclusion
from orchestrator.config import Settings
from orchestrator.denoising import Emit
from orchestrator.endpoints import Server
from orchestrator.errors import ConfigError, RemarqueError
from orchestrator.job import Event
from orchestrator.ledger import Ledger
from orchestrator.outbox import CALL_ENDS_WITHIN_S, Outbox
from orchestrator.runner import Runner, RunnerSettings
from orchestrator.telemetry import Telemetry
from orchestrator.worker import Worker, WorkerSettings

# A milestone may delay its job's outcome by this much at the very most.
PROGRESS_PATIENCE = Patience(connect_s=2.0, read_s=3.0, total_s=5.0)
OUTBOX_PATIENCE_S = 5.0

if TYPE_CHECKING:  # loaded only where a collector is named
    from orchestrator.tracing import Tracing

LOG = logging.getLogger(__name__)


def build_broker(settings: Settings) -> Broker:
    """The broker that settings name, not started."""
    return Broker(Endpoint(_required("RABBITMQ_URL", settings.queue.url), ca_file=settings.queue.ca_file))


def build_storage(settings: Settings) -> Storage:
    """The store that takes results, and the prefixes that jobs may read from."""
    results = _required("RESULT_STORE", settings.store.results)
    allowed = settings.store.allowed_input_prefixes
    return Storage(results, allowed_input_prefixes=allowed, buckets=build_buckets(settings))


@contextmanager
def running_service(settings: Settings) -> Iterator[Worker]:
    """A worker that is ready to :meth:`~Worker.run`, with everything around it started; ended on leaving."""
    telemetry, tracing = Telemetry(), build_tracing(settings)
    listen = telemetry if tracing is None else _each(telemetry, tracing)
    studio, storage = build_studio(settings, telemetry.merged, _batches(telemetry, tracing)), build_storage(settings)
    ledger = Ledger(storage, _required("RESULT_STORE", settings.store.results))
    broker = build_broker(settings)
    patient = WebhookSender(settings.webhooks)
    brisk = WebhookSender(settings.webhooks, patience=PROGRESS_PATIENCE)
    outbox = Outbox(broker, patient, brisk, count=telemetry.webhook, trace=None if tracing is None else tracing.webhook)
    painting = RunnerSettings(
        checkpoint_every_s=settings.service.checkpoint_every_s,
        signing_key=build_signing_key(settings),
        style_mode=settings.styles.mode,
        mock=studio.mock,
    )
    styles = build_shelf(storage.inputs, studio, settings, telemetry.style)
    worker = Worker(
        broker,
        Runner(studio.painter, ledger, storage.inputs, styles, painting),
        ledger,
        Conclusion(broker, ledger, outbox, max_attempts=settings.queue.max_attempts, listen=listen),
        settings=_worker_settings(settings),
        listen=listen,
        send_progress=outbox.send_progress,
    )
    telemetry.watch_waiting(lambda: worker.waiting)
    readiness = Readiness(broker, storage, studio.models, worker)
    server = HttpServer(
        build_app(readiness.not_ready, telemetry.page), settings.service.http_host, settings.service.http_port
    )
    with ExitStack() as ending:
        if tracing is not None:
            ending.callback(tracing.close)
        server.start()
        ending.callback(server.stop)
        broker.start()
        ending.callback(broker.close)
        outbox.start()
        ending.callback(outbox.stop, OUTBOX_PATIENCE_S)
        LOG.info("serving %s on %s", "mock pictures" if studio.mock else studio.painter.checkpoint.name, server.url)
        yield worker


def build_tracing(settings: Settings) -> "Tracing | None":
    """What records spans, where settings name a collector for them."""
    if settings.service.traces_url is None:
        return None
    try:
        from orchestrator.tracing import Tracing
    except ImportError as error:
        raise ConfigError(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set and OpenTelemetry is not installed; pip install 'remarque[traces]'"
        ) from error
    return Tracing.to_collector(settings.service.traces_url)


def _each(telemetry: Telemetry, tracing: "Tracing") -> Emit:
    def listen(event: Event) -> None:
        telemetry(event)
        tracing(event)

    return listen


def _batches(telemetry: Telemetry, tracing: "Tracing | None") -> Callable[[Batch], None]:
    def listen(batch: Batch) -> None:
        telemetry.batch(batch)
        if tracing is not None:
            tracing.batch(batch)

    return listen


@dataclass(frozen=True, slots=True)
class Readiness:
    """Tries every part that a job needs."""

    broker: Broker
    storage: Storage
    models: Server | None
    worker: Worker

    def not_ready(self) -> Mapping[str, str]:
        """Each part that does not work, with the reason."""
        found: dict[str, str] = {}
        if self.worker.stopping.is_set():
            found["worker"] = "it stops"
        for name, check in (("broker", self.broker.ready), ("store", self.storage.probe)):
            try:
                check()
            except RemarqueError as error:
                found[name] = str(error)
        if self.models is not None and (missing := self.models.ready()):
            found["triton"] = f"{', '.join(missing)} is not ready"
        return found


def _worker_settings(settings: Settings) -> WorkerSettings:
    return WorkerSettings(
        max_concurrent=settings.queue.max_concurrent_generations,
        fairness_window=settings.queue.fairness_window,
        job_timeout_s=settings.service.job_timeout_s,
        # What remains of the grace is the outbox's and the connections'.
        grace_s=max(1.0, settings.service.grace_s - OUTBOX_PATIENCE_S - CALL_ENDS_WITHIN_S),
    )


def _required(name: str, value: str | None) -> str:
    if value is None:
        raise ConfigError(f"{name} is not set; this command needs it (docs/environment.md)")
    return value
