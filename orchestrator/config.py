"""Settings: read once from a mapping that is passed in, checked, frozen. docs/environment.md explains each variable."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn, TypeVar
from urllib.parse import urlsplit

from orchestrator.errors import ConfigError

InferenceMode = Literal["self", "mock"]
DisabledFallback = Literal["mock", "refuse"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """Where the networks run, and what stands in for them."""

    triton_url: str
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


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """Where pictures go, and which objects a job may name."""

    results: str | None
    allowed_input_prefixes: tuple[str, ...]
    s3_endpoint_url: str | None
    s3_region: str | None
    gcs_endpoint_url: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StyleSettings:
    """How large a style may be, and how many are kept at hand; ``folder`` may be lost at any time."""

    max_mb: int
    memory_mb: int
    disk_mb: int
    folder: Path


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


def from_environ(environ: Mapping[str, str]) -> Settings:
    """The settings in ``environ``; an empty value counts as unset.

    Raises:
        ConfigError: a value is wrong; the sentence names the variable, the value and what is expected.
    """
    read = _Reader(environ)
    certificate, key = read.optional("C2PA_CERTIFICATE", _file), read.optional("C2PA_KEY", _file)
    if (certificate is None) != (key is None):
        raise ConfigError("C2PA_CERTIFICATE and C2PA_KEY come together; one of them is not set")
    host, port = read.one("HTTP_ADDRESS", "127.0.0.1:8080", _address)
    return Settings(
        models=ModelSettings(
            triton_url=read.one("TRITON_URL", "http://127.0.0.1:8000", _http_url),
            repository=read.one("MODEL_REPOSITORY", ".remarque/models", Path),
            mode=read.one("INFERENCE_MODE", "self", _choice("self", "mock")),
            enabled=read.one("INFERENCE_ENABLED", "true", _flag),
            disabled_fallback=read.one("DISABLED_FALLBACK", "mock", _choice("mock", "refuse")),
            mock_s=read.one("MOCK_SECONDS", "10", _seconds),
        ),
        queue=QueueSettings(
            url=read.secret("RABBITMQ_URL", _amqp_url),
            ca_file=read.optional("RABBITMQ_CA_FILE", _file),
            max_concurrent_generations=read.one("MAX_CONCURRENT_GENERATIONS", "10", _count(1, 256)),
            fairness_window=read.one("FAIRNESS_WINDOW", "40", _count(0, 10_000)),
            max_attempts=read.one("MAX_ATTEMPTS", "3", _count(1, 100)),
        ),
        webhooks=WebhookSettings(
            backend_url=read.optional("BACKEND_URL", _http_url),
            allowed_origins=read.several("WEBHOOK_ALLOWED_ORIGINS", _origin),
            api_token=read.secret("INTERNAL_API_TOKEN", _token),
            signing_secret=read.secret("WEBHOOK_SIGNING_SECRET", _token),
        ),
        store=StoreSettings(
            results=read.optional("RESULT_STORE", _store_url),
            allowed_input_prefixes=read.several("ALLOWED_INPUT_PREFIXES", _input_prefix),
            s3_endpoint_url=read.optional("S3_ENDPOINT_URL", _http_url),
            s3_region=read.optional("S3_REGION", str),
            gcs_endpoint_url=read.optional("GCS_ENDPOINT_URL", _http_url),
        ),
        styles=StyleSettings(
            max_mb=read.one("STYLE_MAX_MB", "512", _count(1, 4096)),
            memory_mb=read.one("STYLE_MEMORY_MB", "1024", _count(1, 1_000_000)),
            disk_mb=read.one("STYLE_DISK_MB", "8192", _count(0, 100_000_000)),
            folder=read.one("STYLE_FOLDER", ".remarque/styles", Path),
        ),
        provenance=ProvenanceSettings(
            certificate=certificate,
            key=key,
            development_key_folder=read.one("DEVELOPMENT_KEY_FOLDER", ".remarque/development-key", Path),
        ),
        service=ServiceSettings(
            http_host=host,
            http_port=port,
            grace_s=read.one("GRACE_SECONDS", "25", _seconds),
            job_timeout_s=read.one("JOB_TIMEOUT_SECONDS", "1200", _seconds),
            checkpoint_every_s=read.one("CHECKPOINT_EVERY_SECONDS", "10", _seconds),
            log_level=read.one("LOG_LEVEL", "INFO", _choice("DEBUG", "INFO", "WARNING", "ERROR")),
        ),
    )


class _Reader:
    """Reads one variable at a time; ``parse`` raises ValueError with what it expects."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def one(self, name: str, default: str, parse: Callable[[str], T]) -> T:
        value = self._environ.get(name, "").strip() or default
        try:
            return parse(value)
        except ValueError as error:
            raise ConfigError(f"{name} is {value!r}; expected {error}") from None

    def optional(self, name: str, parse: Callable[[str], T]) -> T | None:
        return self.one(name, "", parse) if self._environ.get(name, "").strip() else None

    def several(self, name: str, parse: Callable[[str], T]) -> tuple[T, ...]:
        """Entries between commas."""
        entries = [entry.strip() for entry in self._environ.get(name, "").split(",")]
        found = []
        for entry in filter(None, entries):
            try:
                found.append(parse(entry))
            except ValueError as error:
                raise ConfigError(f"{name} holds {entry!r}; expected {error}") from None
        return tuple(found)

    def secret(self, name: str, parse: Callable[[str], T]) -> T | None:
        """Like ``optional``, but a wrong value is not repeated in the message."""
        value = self._environ.get(name, "").strip()
        if not value:
            return None
        try:
            return parse(value)
        except ValueError as error:
            raise ConfigError(f"{name} (its value is not shown) is wrong; expected {error}") from None


def _expect(what: str) -> NoReturn:
    raise ValueError(what)


def _choice(*served: T) -> Callable[[str], T]:
    names = {str(choice): choice for choice in served}
    return lambda value: names[value] if value in names else _expect(" or ".join(names))


def _flag(value: str) -> bool:
    words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    return words[value.lower()] if value.lower() in words else _expect("true or false")


def _count(least: int, most: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        in_range = value.isascii() and value.isdigit() and len(value) < 10 and least <= int(value) <= most
        return int(value) if in_range else _expect(f"a whole number from {least} to {most}")

    return parse


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    return seconds if 0 <= seconds < math.inf else _expect("seconds, 0 or more")


def _http_url(value: str) -> str:
    _, host = _split(value, ("http", "https"))
    return value.rstrip("/") if host else _expect("a URL like http://127.0.0.1:8000")


def _amqp_url(value: str) -> str:
    _, host = _split(value, ("amqp", "amqps"))
    return value if host else _expect("a URL like amqp://user:password@host:5672/")


def _origin(value: str) -> str:
    scheme, host = _split(value, ("http", "https"))
    origin = f"{scheme}://{host}"
    bare = host and "@" not in host and value.rstrip("/").lower() == origin
    return origin if bare else _expect("an origin like https://api.example.com")


def _store_url(value: str) -> str:
    scheme, host = _split(value, ("gs", "s3", "file"))
    absolute = scheme == "file" and value.startswith("file:///")
    return value.rstrip("/") if absolute or (scheme != "file" and host) else _expect("gs://…, s3://… or file:///…")


def _input_prefix(value: str) -> str:
    return (
        value if value.startswith(("gs://", "s3://", "file:///", "/")) else _expect("gs://…, s3://…, file:///… or /…")
    )


def _split(value: str, schemes: tuple[str, ...]) -> tuple[str, str]:
    """Scheme and ``host[:port]`` of a URL, both in lower case; ("", "") where it is none of ``schemes``."""
    try:
        parts = urlsplit(value)
        parts.port  # noqa: B018  a port out of range is found only when it is asked for
    except ValueError:
        return "", ""
    known = parts.scheme in schemes and not any(letter.isspace() for letter in value)
    return (parts.scheme, parts.netloc.lower()) if known else ("", "")


def _token(value: str) -> str:
    # A line break in a header would be somebody else's header.
    return value if value.isprintable() and value.isascii() else _expect("printable ASCII")


def _file(value: str) -> Path:
    return Path(value) if Path(value).is_file() else _expect("a file that exists")


def _address(value: str) -> tuple[str, int]:
    host, _, port = value.rpartition(":")
    in_range = port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535
    return (host.strip("[]"), int(port)) if host and in_range else _expect("host:port, like 127.0.0.1:8080")
