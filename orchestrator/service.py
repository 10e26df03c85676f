"""Builds the worker's service out of settings: everything started in order, and ended in the reverse one."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from orchestrator.api import HttpServer, build_app
from orchestrator.checkpoint import read_checkpoint
from orchestrator.clients.amqp import Endpoint
from orchestrator.clients.buckets import BucketSettings
from orchestrator.clients.rabbitmq import Broker
from orchestrator.clients.storage import Storage
from orchestrator.clients.triton import TritonModels
from orchestrator.clients.webhook import Patience, WebhookSender
from orchestrator.conclusion import Conclusion
from orchestrator.config import Settings
from orchestrator.denoising import Painter
from orchestrator.disabled import DisabledPainter
from orchestrator.errors import ConfigError, RemarqueError
from orchestrator.imaging.credentials import SigningKey
from orchestrator.imaging.picture import prove
from orchestrator.imaging.signing_key import development_key, load_key
from orchestrator.ledger import Ledger
from orchestrator.mock import MockPainter
from orchestrator.outbox import Outbox
from orchestrator.pipeline import Pipeline
from orchestrator.runner import Runner, RunnerSettings
from orchestrator.telemetry import Telemetry
from orchestrator.worker import Worker, WorkerSettings

# A milestone may delay its job's outcome by this much at the very most.
PROGRESS_PATIENCE = Patience(connect_s=2.0, read_s=3.0, total_s=5.0)
OUTBOX_PATIENCE_S = 5.0
LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Studio:
    """What makes the pictures; ``models`` is None where no Triton takes part."""

    painter: Painter
    models: TritonModels | None
    mock: bool


def build_studio(settings: Settings) -> Studio:
    """The pipeline on Triton, the mock, or, where inference is switched off, what the settings put in its place."""
    mocked = settings.models.mode == "mock" or (
        not settings.models.enabled and settings.models.disabled_fallback == "mock"
    )
    if mocked:
        return Studio(MockPainter(settings.models.mock_s), None, mock=True)
    if not settings.models.enabled:
        return Studio(DisabledPainter(), None, mock=False)
    checkpoint = read_checkpoint(settings.models.repository)
    models = TritonModels(settings.models.triton_url, deadline_s=settings.service.job_timeout_s)
    return Studio(Pipeline(models, checkpoint), models, mock=False)


def build_storage(settings: Settings) -> Storage:
    """The store that takes results, and the prefixes that jobs may read from."""
    buckets = BucketSettings(
        s3_endpoint_url=settings.store.s3_endpoint_url,
        s3_region=settings.store.s3_region,
        gcs_endpoint_url=settings.store.gcs_endpoint_url,
    )
    results = _required("RESULT_STORE", settings.store.results)
    return Storage(results, allowed_input_prefixes=settings.store.allowed_input_prefixes, buckets=buckets)


def build_signing_key(settings: Settings) -> SigningKey:
    """The key that settings name, or, said aloud, the self-made one for development; either has signed once."""
    provenance, now = settings.provenance, datetime.now(UTC)
    if provenance.certificate is not None and provenance.key is not None:
        try:
            key = load_key(provenance.certificate.read_bytes(), provenance.key.read_bytes(), now)
        except OSError as error:
            raise ConfigError(f"C2PA_CERTIFICATE or C2PA_KEY cannot be read: {error}") from error
    else:
        LOG.warning("C2PA_CERTIFICATE is not set: pictures are signed with a development key that proves nothing")
        key = development_key(provenance.development_key_folder, now)
    prove(key, now)
    return key


@contextmanager
def running_service(settings: Settings) -> Iterator[Worker]:
    """A worker that is ready to :meth:`~Worker.run`, with everything around it started; ended on leaving."""
    telemetry = Telemetry()
    studio, storage = build_studio(settings), build_storage(settings)
    ledger = Ledger(storage, _required("RESULT_STORE", settings.store.results))
    endpoint = Endpoint(_required("RABBITMQ_URL", settings.queue.url), ca_file=settings.queue.ca_file)
    broker = Broker(endpoint)
    patient = WebhookSender(settings.webhooks)
    brisk = WebhookSender(settings.webhooks, patience=PROGRESS_PATIENCE)
    outbox = Outbox(broker, patient, brisk, count=telemetry.webhook)
    painting = RunnerSettings(
        checkpoint_every_s=settings.service.checkpoint_every_s,
        signing_key=build_signing_key(settings),
        mock=studio.mock,
    )
    worker = Worker(
        broker,
        Runner(studio.painter, ledger, storage.inputs, painting),
        ledger,
        Conclusion(broker, ledger, outbox, max_attempts=settings.queue.max_attempts, listen=telemetry),
        settings=_worker_settings(settings),
        listen=telemetry,
        send_progress=outbox.send_progress,
    )
    readiness = Readiness(broker, storage, studio.models, worker)
    server = HttpServer(
        build_app(readiness.not_ready, telemetry.page), settings.service.http_host, settings.service.http_port
    )
    with ExitStack() as ending:
        server.start()
        ending.callback(server.stop)
        broker.start()
        ending.callback(broker.close)
        outbox.start()
        ending.callback(outbox.stop, OUTBOX_PATIENCE_S)
        LOG.info("serving %s on %s", "mock pictures" if studio.mock else studio.painter.checkpoint.name, server.url)
        yield worker


@dataclass(frozen=True, slots=True)
class Readiness:
    """Tries every part that a job needs."""

    broker: Broker
    storage: Storage
    models: TritonModels | None
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
        grace_s=settings.service.grace_s,
    )


def _required(name: str, value: str | None) -> str:
    if value is None:
        raise ConfigError(f"{name} is not set; the worker needs it (docs/environment.md)")
    return value
