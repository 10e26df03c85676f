"""Settings: read once from a mapping that is passed in, checked, frozen. docs/environment.md explains each variable."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from orchestrator.errors import ConfigError
from orchestrator.staging_settings import StagingSettings, read_staging
from orchestrator.variables import (
    Reader,
    address,
    amqp_url,
    choice,
    count,
    file,
    flag,
    http_url,
    http_urls,
    input_prefix,
    origin,
    seconds,
    store_url,
    token,
)

InferenceMode = Literal["self", "mock", "managed"]
DisabledFallback = Literal["mock", "refuse"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """Where the networks run, and what stands in for them."""

    triton_urls: tuple[str, ...]
    triton_ca_file: Path | None
    repository: Path
    mode: InferenceMode
    enabled: bool
    disabled_fallback: DisabledFallback
    mock_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSettings:
    """The broker; its URL holds a password, so it stays out of every repr."""

    url: str | None = field(repr=False)
    ca_file: Path | None
    max_concurrent_generations: int
    fairness_window: int
    max_attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSettings:
    """Whom to tell, and with which secrets."""

    backend_url: str | None
    allowed_origins: tuple[str, ...]
    api_token: str | None = field(repr=False)
    signing_secret: str | None = field(repr=False)
    ca_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """Where pictures go, and which objects a job may name."""

    results: str | None
    allowed_input_prefixes: tuple[str, ...]
    s3_endpoint_url: str | None
    s3_region: str | None
    gcs_endpoint_url: str | None
    ca_file: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StyleSettings:
    """How styles are applied, how large one may be, and how many are kept at hand; ``folder`` may be lost any time.

    ``merged_mb`` is the server's memory for merged models, ``merged_disk_mb`` what they add to the model repository.
    """

    mode: Literal["auto", "mixed", "merged"]
    max_mb: int
    memory_mb: int
    disk_mb: int
    folder: Path
    merged_mb: int
    merged_disk_mb: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvenanceSettings:
    """The C2PA credential as PEM files, both or neither; without them a self-made key for development signs."""

    certificate: Path | None
    key: Path | None
    development_key_folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """How the process lives: its HTTP address, its patience and its log."""

    http_host: str
    http_port: int
    grace_s: float
    job_timeout_s: float
    checkpoint_every_s: float
    log_level: LogLevel
    traces_url: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything the environment decides."""

    models: ModelSettings
    queue: QueueSettings
    webhooks: WebhookSettings
    store: StoreSettings
    styles: StyleSettings
    provenance: ProvenanceSettings
    service: ServiceSettings
    staging: StagingSettings


def from_environ(environ: Mapping[str, str]) -> Settings:
    """The settings in ``environ``; an empty value counts as unset.

    Raises:
        ConfigError: a value is wrong; the sentence names the variable, the value and what is expected.
    """
    read = Reader(environ)
    certificate, key = read.optional("C2PA_CERTIFICATE", file), read.optional("C2PA_KEY", file)
    if (certificate is None) != (key is None):
        raise ConfigError("C2PA_CERTIFICATE and C2PA_KEY come together; one of them is not set")
    host, port = read.one("HTTP_ADDRESS", "127.0.0.1:8080", address)
    return Settings(
        models=ModelSettings(
            triton_urls=read.one("TRITON_URL", "http://127.0.0.1:8000", http_urls),
            triton_ca_file=read.optional("TRITON_CA_FILE", file),
            repository=read.one("MODEL_REPOSITORY", ".remarque/models", Path),
            mode=read.one("INFERENCE_MODE", "self", choice("self", "mock", "managed")),
            enabled=read.one("INFERENCE_ENABLED", "true", flag),
            disabled_fallback=read.one("DISABLED_FALLBACK", "mock", choice("mock", "refuse")),
            mock_s=read.one("MOCK_SECONDS", "10", seconds),
        ),
        queue=QueueSettings(
            url=read.secret("RABBITMQ_URL", amqp_url),
            ca_file=read.optional("RABBITMQ_CA_FILE", file),
            max_concurrent_generations=read.one("MAX_CONCURRENT_GENERATIONS", "10", count(1, 256)),
            fairness_window=read.one("FAIRNESS_WINDOW", "40", count(0, 10_000)),
            max_attempts=read.one("MAX_ATTEMPTS", "3", count(1, 100)),
        ),
        webhooks=WebhookSettings(
            backend_url=read.optional("BACKEND_URL", http_url),
            allowed_origins=read.several("WEBHOOK_ALLOWED_ORIGINS", origin),
            api_token=read.secret("INTERNAL_API_TOKEN", token),
            signing_secret=read.secret("WEBHOOK_SIGNING_SECRET", token),
            ca_file=read.optional("WEBHOOK_CA_FILE", file),
        ),
        store=StoreSettings(
            results=read.optional("RESULT_STORE", store_url),
            allowed_input_prefixes=read.several("ALLOWED_INPUT_PREFIXES", input_prefix),
            s3_endpoint_url=read.optional("S3_ENDPOINT_URL", http_url),
            s3_region=read.optional("S3_REGION", str),
            gcs_endpoint_url=read.optional("GCS_ENDPOINT_URL", http_url),
            ca_file=read.optional("STORE_CA_FILE", file),
        ),
        styles=StyleSettings(
            mode=read.one("STYLE_MODE", "auto", choice("auto", "mixed", "merged")),
            max_mb=read.one("STYLE_MAX_MB", "512", count(1, 4096)),
            memory_mb=read.one("STYLE_MEMORY_MB", "1024", count(1, 1_000_000)),
            disk_mb=read.one("STYLE_DISK_MB", "8192", count(0, 100_000_000)),
            folder=read.one("STYLE_FOLDER", ".remarque/styles", Path),
            merged_mb=read.one("STYLE_MERGED_MB", "8192", count(1, 10_000_000)),
            merged_disk_mb=read.one("STYLE_MERGED_DISK_MB", "32768", count(1, 100_000_000)),
        ),
        provenance=ProvenanceSettings(
            certificate=certificate,
            key=key,
            development_key_folder=read.one("DEVELOPMENT_KEY_FOLDER", ".remarque/development-key", Path),
        ),
        service=ServiceSettings(
            http_host=host,
            http_port=port,
            grace_s=read.one("GRACE_SECONDS", "25", seconds),
            job_timeout_s=read.one("JOB_TIMEOUT_SECONDS", "1200", seconds),
            checkpoint_every_s=read.one("CHECKPOINT_EVERY_SECONDS", "10", seconds),
            log_level=read.one("LOG_LEVEL", "INFO", choice("DEBUG", "INFO", "WARNING", "ERROR")),
            traces_url=read.optional("OTEL_EXPORTER_OTLP_ENDPOINT", http_url),
        ),
        staging=read_staging(read),
    )
