"""Builds what makes pictures out of settings, and runs the command that needs nothing else."""

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from orchestrator.checkpoint import CheckpointInfo, read_checkpoint
from orchestrator.clients.buckets import BucketSettings
from orchestrator.clients.gate import Batch
from orchestrator.clients.storage import Reader, Storage
from orchestrator.clients.triton import TritonModels
from orchestrator.config import Settings
from orchestrator.denoising import Painter
from orchestrator.disabled import DisabledPainter
from orchestrator.endpoints import Endpoints, Server
from orchestrator.errors import ConfigError, ModelUnavailable
from orchestrator.finishing import Finishing
from orchestrator.generate import Generation
from orchestrator.given_pictures import given_pictures
from orchestrator.imaging.credentials import SigningKey
from orchestrator.imaging.picture import prove
from orchestrator.imaging.signing_key import development_key, load_key
from orchestrator.merged_folders import MergedFolders
from orchestrator.merged_models import Count as MergedCount
from orchestrator.merged_models import MergedModels, MergedSettings
from orchestrator.mock import MockPainter
from orchestrator.orders import job_from, orders_from
from orchestrator.pipeline import Pipeline
from orchestrator.styles import Count, ShelfSettings, StyleShelf, StyleSource

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Studio:
    """What makes the pictures; ``models`` is None where no Triton takes part."""

    painter: Painter
    models: Server | None
    merged: MergedModels | None
    mock: bool

    @property
    def served(self) -> CheckpointInfo | None:
        """What a style must fit; None where no network takes part."""
        return None if self.models is None else self.painter.checkpoint


def build_studio(
    settings: Settings, count_merged: MergedCount | None = None, on_batch: Callable[[Batch], None] | None = None
) -> Studio:
    """The pipeline on Triton, the mock, or, where inference is switched off, what the settings put in its place."""
    mocked = settings.models.mode == "mock" or (
        not settings.models.enabled and settings.models.disabled_fallback == "mock"
    )
    if mocked:
        return Studio(MockPainter(settings.models.mock_s), None, None, mock=True)
    if not settings.models.enabled:
        return Studio(DisabledPainter(), None, None, mock=False)
    if settings.models.mode == "managed":
        raise ConfigError("INFERENCE_MODE is 'managed'; pictures are made by self or mock, managed serves staging only")
    checkpoint = read_checkpoint(settings.models.repository)
    models = build_models(settings, tuple(checkpoint.models), on_batch)
    merged = _merged(settings, models, checkpoint, count_merged)
    return Studio(Pipeline(models, checkpoint, merged), models, merged, mock=False)


def build_models(settings: Settings, models: Sequence[str], on_batch: Callable[[Batch], None] | None = None) -> Server:
    """The Triton that settings name, or several as one; ready when all of ``models`` are.

    ``on_batch`` hears of every batch of steps.
    """
    deadline_s, ca_file = settings.service.job_timeout_s, settings.models.triton_ca_file
    heard = on_batch or (lambda batch: None)
    servers = {
        url: TritonModels(url, models=models, deadline_s=deadline_s, ca_file=ca_file, on_batch=heard)
        for url in settings.models.triton_urls
    }
    return Endpoints(servers) if len(servers) > 1 else next(iter(servers.values()))


def _merged(settings: Settings, models: Server, checkpoint: CheckpointInfo, count: MergedCount | None) -> MergedModels:
    """The shelf of merged models, beside those that Triton serves."""
    folders = MergedFolders(settings.models.repository, settings.styles.merged_disk_mb << 20)
    return MergedModels(
        models, folders, checkpoint, MergedSettings(memory_bytes=settings.styles.merged_mb << 20), count
    )


def build_shelf(source: StyleSource, studio: Studio, settings: Settings, count: Count | None = None) -> StyleShelf:
    """The shelf that fetches styles from ``source`` and fits them to what the studio serves."""
    styles = settings.styles
    kept = ShelfSettings(
        limit_bytes=styles.max_mb << 20,
        memory_bytes=styles.memory_mb << 20,
        disk_bytes=styles.disk_mb << 20,
        folder=styles.folder,
    )
    prepare = None if studio.merged is None else partial(studio.merged.prepare, mode=styles.mode)
    return StyleShelf(source, studio.served, kept, count, prepare)


def build_buckets(settings: Settings) -> BucketSettings:
    """Where the buckets of gs:// and s3:// are served from."""
    store = settings.store
    try:
        ca_certificates = None if store.ca_file is None else store.ca_file.read_bytes()
    except OSError as error:
        raise ConfigError(f"STORE_CA_FILE is {store.ca_file}, which cannot be read: {error.strerror}") from error
    return BucketSettings(
        s3_endpoint_url=store.s3_endpoint_url,
        s3_region=store.s3_region,
        gcs_endpoint_url=store.gcs_endpoint_url,
        ca_certificates=ca_certificates,
    )


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


def generate(args: argparse.Namespace, settings: Settings) -> int:
    """Plans everything first, so that a bad request is refused before Triton is needed."""
    job = job_from(args)
    settings = _under_options(args, settings)
    studio = build_studio(settings)
    inputs = _inputs(settings, args)
    finishing = Finishing(
        checkpoint=studio.painter.checkpoint,
        inputs=inputs,
        styles=build_shelf(inputs, studio, settings),
        signing_key=build_signing_key(settings),
        mock=studio.mock,
    )
    styles = finishing.styles.admit(job.styles)
    pictures = given_pictures(job, inputs, studio.painter.checkpoint)
    orders = orders_from(args, job, studio.painter.checkpoint, styles, settings.styles.mode, pictures=pictures)
    _require_triton(studio, settings.models.triton_urls)
    return Generation(orders, studio.painter, finishing).run()


def _under_options(args: argparse.Namespace, settings: Settings) -> Settings:
    models = settings.models
    urls = models.triton_urls if args.triton is None else (args.triton,)
    repository = models.repository if args.models is None else args.models
    return replace(settings, models=replace(models, triton_urls=urls, repository=repository))


def _require_triton(studio: Studio, urls: Sequence[str]) -> None:
    """Says which command is missing, before the first call could only say that nobody answered."""
    missing = () if studio.models is None else studio.models.ready()
    if missing == ("triton",):
        raise ModelUnavailable(
            f"no Triton answers at {' or '.join(urls)}; `make triton` starts one with the demo's models, "
            "`python -m local.triton --models DIR` one with others"
        )
    if missing:
        raise ModelUnavailable(f"Triton at {' or '.join(urls)} does not serve {', '.join(missing)}")


def _inputs(settings: Settings, args: argparse.Namespace) -> Reader:
    """What a message on this machine may name: the configured prefixes, or the working directory.

    A style that was named on the command line lies wherever its user says.
    """
    here = Path.cwd().as_uri()
    named = tuple(style.path if "://" in style.path else Path(style.path).parent.as_uri() for style in args.style or ())
    allowed = (*(settings.store.allowed_input_prefixes or (here,)), *named)
    results = settings.store.results or here
    return Storage(results, allowed_input_prefixes=allowed, buckets=build_buckets(settings)).inputs
