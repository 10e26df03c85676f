"""Settings from a mapping, and the page that documents them."""

import re
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from orchestrator import config, staging_settings
from orchestrator.config import from_environ
from orchestrator.errors import ConfigError

ROOT = Path(__file__).parents[2]


def test_an_empty_environment_gives_the_defaults():
    settings = from_environ({})
    assert settings.models.triton_urls == ("http://127.0.0.1:8000",)
    assert (settings.queue.max_concurrent_generations, settings.models.mock_s) == (10, 10.0)
    assert (settings.service.http_host, settings.service.http_port) == ("127.0.0.1", 8080)


def test_no_secret_has_a_default():
    settings = from_environ({})
    secrets = (settings.queue.url, settings.webhooks.api_token, settings.webhooks.signing_secret)
    assert secrets == (None, None, None)


def test_an_empty_value_counts_as_unset():
    assert from_environ({"TRITON_URL": " ", "MAX_ATTEMPTS": "", "RABBITMQ_URL": ""}) == from_environ({})


def test_every_variable_reaches_its_setting(tmp_path: Path):
    pem = tmp_path / "a.pem"
    pem.write_text("pem")
    settings = from_environ(
        {
            "TRITON_URL": "https://triton.internal:8000/, http://10.0.0.7:8000",
            "MODEL_REPOSITORY": "/models",
            "INFERENCE_MODE": "mock",
            "INFERENCE_ENABLED": "False",
            "DISABLED_FALLBACK": "refuse",
            "MOCK_SECONDS": "0.5",
            "RABBITMQ_URL": "amqp://u:p@broker:5672/%2F",
            "MAX_CONCURRENT_GENERATIONS": "4",
            "MAX_ATTEMPTS": "5",
            "BACKEND_URL": "https://api.example.com",
            "WEBHOOK_ALLOWED_ORIGINS": "https://api.example.com, http://127.0.0.1:9000/,",
            "INTERNAL_API_TOKEN": "token",
            "WEBHOOK_SIGNING_SECRET": "whsec_c2VjcmV0",
            "RESULT_STORE": "gs://bucket/results/",
            "ALLOWED_INPUT_PREFIXES": "gs://bucket/, /srv/styles/",
            "C2PA_CERTIFICATE": str(pem),
            "C2PA_KEY": str(pem),
            "TRITON_CA_FILE": str(pem),
            "WEBHOOK_CA_FILE": str(pem),
            "STORE_CA_FILE": str(pem),
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel-collector:4318/",
            "HTTP_ADDRESS": "[::]:80",
            "GRACE_SECONDS": "60",
            "JOB_TIMEOUT_SECONDS": "900",
            "CHECKPOINT_EVERY_SECONDS": "0",
            "LOG_LEVEL": "DEBUG",
        }
    )
    models, queue, webhooks, service = settings.models, settings.queue, settings.webhooks, settings.service
    assert (models.triton_urls, models.repository, models.mode) == (
        ("https://triton.internal:8000", "http://10.0.0.7:8000"),
        Path("/models"),
        "mock",
    )
    assert (models.enabled, models.disabled_fallback, models.mock_s) == (False, "refuse", 0.5)
    assert (queue.url, queue.max_concurrent_generations, queue.max_attempts) == ("amqp://u:p@broker:5672/%2F", 4, 5)
    assert webhooks.allowed_origins == ("https://api.example.com", "http://127.0.0.1:9000")
    assert (webhooks.backend_url, webhooks.api_token) == ("https://api.example.com", "token")
    assert webhooks.signing_secret == "whsec_c2VjcmV0"
    assert (settings.store.results, settings.store.allowed_input_prefixes) == (
        "gs://bucket/results",
        ("gs://bucket/", "/srv/styles/"),
    )
    assert (settings.provenance.certificate, settings.provenance.key) == (pem, pem)
    assert (models.triton_ca_file, webhooks.ca_file, settings.store.ca_file) == (pem, pem, pem)
    assert service.traces_url == "http://otel-collector:4318"
    assert (service.http_host, service.http_port, service.grace_s) == ("::", 80, 60.0)
    assert (service.job_timeout_s, service.checkpoint_every_s, service.log_level) == (900.0, 0.0, "DEBUG")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("TRITON_URL", "localhost:8000", "a URL like http://127.0.0.1:8000"),
        ("TRITON_URL", "http://host:99999", "a URL like http://127.0.0.1:8000"),
        ("TRITON_URL", "http://", "a URL like http://127.0.0.1:8000"),
        ("INFERENCE_MODE", "gpu", "self or mock or managed"),
        ("INFERENCE_ENABLED", "maybe", "true or false"),
        ("DISABLED_FALLBACK", "ignore", "mock or refuse"),
        ("MOCK_SECONDS", "-1", "seconds, 0 to 1000000"),
        ("MOCK_SECONDS", "nan", "seconds, 0 to 1000000"),
        ("MOCK_SECONDS", "inf", "seconds, 0 to 1000000"),
        ("JOB_TIMEOUT_SECONDS", "9999999", "seconds, 0 to 1000000"),
        ("GRACE_SECONDS", "soon", "seconds, 0 to 1000000"),
        ("MAX_CONCURRENT_GENERATIONS", "0", "a whole number from 1 to 256"),
        ("MAX_CONCURRENT_GENERATIONS", "1.5", "a whole number from 1 to 256"),
        ("MAX_CONCURRENT_GENERATIONS", "٣", "a whole number from 1 to 256"),
        ("MAX_ATTEMPTS", "101", "a whole number from 1 to 100"),
        ("BACKEND_URL", "ftp://example.com", "a URL like http://127.0.0.1:8000"),
        ("RESULT_STORE", "/tmp/results", "gs://…, s3://… or file:///…"),
        ("RESULT_STORE", "gs://", "gs://…, s3://… or file:///…"),
        ("RESULT_STORE", "file://results", "gs://…, s3://… or file:///…"),
        ("C2PA_CERTIFICATE", "/no/such.pem", "a file that exists"),
        ("HTTP_ADDRESS", "8080", "host:port, like 127.0.0.1:8080"),
        ("HTTP_ADDRESS", "127.0.0.1:99999", "host:port, like 127.0.0.1:8080"),
        ("LOG_LEVEL", "LOUD", "DEBUG or INFO or WARNING or ERROR"),
    ],
)
def test_a_wrong_value_names_variable_value_and_what_was_expected(name: str, value: str, expected: str):
    with pytest.raises(ConfigError) as raised:
        from_environ({name: value})
    assert str(raised.value) == f"{name} is {value!r}; expected {expected}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WEBHOOK_ALLOWED_ORIGINS", "https://api.example.com/path"),
        ("WEBHOOK_ALLOWED_ORIGINS", "https://user@api.example.com/"),
        ("WEBHOOK_ALLOWED_ORIGINS", "*"),
        ("ALLOWED_INPUT_PREFIXES", "https://bucket/"),
    ],
)
def test_a_wrong_entry_of_a_list_is_named(name: str, value: str):
    with pytest.raises(ConfigError) as raised:
        from_environ({name: f" ,{value}"})
    assert str(raised.value).startswith(f"{name} holds {value!r}; expected ")


@pytest.mark.parametrize(
    ("name", "value"),
    [("RABBITMQ_URL", "https://u:hunter2@broker"), ("INTERNAL_API_TOKEN", "hunter2\nX-Evil: 1")],
)
def test_a_wrong_secret_is_not_repeated(name: str, value: str):
    with pytest.raises(ConfigError, match=name) as raised:
        from_environ({name: value})
    assert "hunter2" not in str(raised.value)


def test_secrets_are_in_no_repr():
    settings = from_environ(
        {
            "RABBITMQ_URL": "amqp://u:hunter2@broker/",
            "INTERNAL_API_TOKEN": "hunter2",
            "WEBHOOK_SIGNING_SECRET": "whsec_hunter2",
        }
    )
    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize("name", ["RABBITMQ_URL", "INTERNAL_API_TOKEN", "WEBHOOK_SIGNING_SECRET"])
def test_every_secret_can_come_from_a_file(name: str, tmp_path: Path):
    value = "amqp://u:p@broker/" if name == "RABBITMQ_URL" else "whsec_c2VjcmV0"
    (tmp_path / "secret").write_text(value + "\n")
    settings = from_environ({f"{name}_FILE": str(tmp_path / "secret")})
    assert value in (settings.queue.url, settings.webhooks.api_token, settings.webhooks.signing_secret)
    assert value not in repr(settings)


@pytest.mark.parametrize(
    ("held", "sentence"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"\n", "is empty"),
        (b"\xff", "no UTF-8"),
        (b"hunter2\nX: 1", "INTERNAL_API_TOKEN .its value is not shown. is wrong"),
    ],
)
def test_a_secret_file_that_holds_none_stops_the_start_and_is_not_repeated(
    held: bytes | None, sentence: str, tmp_path: Path
):
    if held is not None:
        (tmp_path / "secret").write_bytes(held)
    with pytest.raises(ConfigError, match=sentence) as raised:
        from_environ({"INTERNAL_API_TOKEN_FILE": str(tmp_path / "secret")})
    assert "hunter2" not in str(raised.value)


def test_a_secret_and_its_file_are_not_both_taken(tmp_path: Path):
    with pytest.raises(ConfigError, match="INTERNAL_API_TOKEN and INTERNAL_API_TOKEN_FILE are both set"):
        from_environ({"INTERNAL_API_TOKEN": "a", "INTERNAL_API_TOKEN_FILE": str(tmp_path)})


@pytest.mark.parametrize("name", ["C2PA_CERTIFICATE", "C2PA_KEY"])
def test_half_a_credential_is_refused(name: str, tmp_path: Path):
    (tmp_path / "a.pem").write_text("pem")
    with pytest.raises(ConfigError, match="come together"):
        from_environ({name: str(tmp_path / "a.pem")})


def test_settings_are_frozen():
    with pytest.raises(FrozenInstanceError):
        from_environ({}).queue.max_attempts = 7  # type: ignore[misc]


def source() -> str:
    """Where variables are read."""
    return "".join(Path(str(module.__file__)).read_text(encoding="utf-8") for module in (config, staging_settings))


def test_the_page_documents_exactly_the_variables_that_are_read():
    read = set(re.findall(r'read\.\w+\(\s*"([A-Z0-9_]+)"', source()))
    page = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([A-Z0-9_]+)` ", page, re.MULTILINE)) == read


def test_the_page_states_the_defaults_that_are_used():
    used = dict(re.findall(r'read\.one\(\s*"([A-Z0-9_]+)",\s*"([^"]*)"', source()))
    page = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    stated = dict(re.findall(r"^\| `([A-Z0-9_]+)` \| ([^|]+) \|", page, re.MULTILINE))
    assert {name: shown.strip("`") for name, shown in stated.items() if shown.startswith("`")} == used
