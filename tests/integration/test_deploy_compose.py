"""docker-compose.yml, its Dockerfiles and .env.example: complete, consistent and without a password in them."""

import json
import os
import re
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
import yaml

from orchestrator import config, staging_settings

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
# What compose, and not the worker, reads out of .env.
OF_COMPOSE = {
    "RABBITMQ_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "GRAFANA_PASSWORD", "MODELS_FOLDER", "CHECKPOINTS_FOLDER",
    "CERTIFICATES_FOLDER", "TRITON_MODELS", "REMARQUE_VERSION", "RABBITMQ_PORT", "RABBITMQ_MANAGEMENT_PORT", "PROMETHEUS_PORT",
    "GRAFANA_PORT", "JAEGER_PORT", "STAGING_PORT", "STAGING_CLIENTS", "STAGING_MODE", "STAGING_GRACE_SECONDS",
    "GOOGLE_APPLICATION_CREDENTIALS",
}  # fmt: skip
# What the store's library reads by itself.
OF_STORES = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "GOOGLE_APPLICATION_CREDENTIALS"}

OPTIONAL = {"STAGING_ADMIN_TOKEN", "MANAGED_TOKEN"}


def settings(*modules: ModuleType) -> set[str]:
    """Every variable that config.py reads, and those of other modules of settings."""
    sources = "".join(Path(str(module.__file__)).read_text() for module in (config, *modules))
    return set(re.findall(r'read\.\w+\(\s*"([A-Z0-9_]+)"', sources))


def explained() -> dict[str, str]:
    """The variables of .env.example with the comment above each."""
    found, comment = {}, ""
    for line in (ROOT / ".env.example").read_text().splitlines():
        assigned = re.fullmatch(r"#?([A-Z0-9_]+)=(.*)", line)
        if assigned:
            found[assigned[1]] = comment
        else:
            comment = line
    return found


def interpolated(text: str) -> set[str]:
    return set(re.findall(r"(?<!\$)\$\{([A-Z0-9_]+)", text))


def specification() -> jsonschema.Draft201909Validator:
    return jsonschema.Draft201909Validator(json.loads((ROOT / "tests" / "data" / "compose-spec.json").read_text()))


def test_compose_file_fits_the_compose_specification() -> None:
    specification().validate(COMPOSE)


def test_a_misspelt_key_would_not_fit_it() -> None:
    with pytest.raises(jsonschema.ValidationError):
        specification().validate({"services": {"triton": {"image": "a", "shm-size": "4gb"}}})


def test_env_example_explains_every_setting_and_nothing_else() -> None:
    assert set(explained()) == settings(staging_settings) | OF_COMPOSE


def test_every_variable_of_env_example_stands_below_a_sentence() -> None:
    assert {name for name, comment in explained().items() if not re.match(r"#\s+\S", comment)} == set()


def test_compose_reads_only_what_env_example_explains() -> None:
    assert interpolated((ROOT / "docker-compose.yml").read_text()) <= set(explained())


@pytest.mark.parametrize("service", ["orchestrator", "orchestrator-cpu"])
def test_the_worker_gets_every_setting(service: str) -> None:
    assert settings() <= set(SERVICES[service]["environment"])
    assert set(SERVICES[service]["environment"]) - settings() == OF_STORES


def test_staging_gets_every_setting_of_staging() -> None:
    theirs = settings(staging_settings) - settings()
    given = SERVICES["staging"]["environment"]
    assert theirs <= set(given)
    assert set(given) - theirs - OF_STORES <= settings()


def test_staging_sends_traces_where_the_worker_does() -> None:
    given = [SERVICES[name]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"] for name in ("staging", "orchestrator")]
    assert given == ["${OTEL_EXPORTER_OTLP_ENDPOINT:-}"] * 2


def test_staging_starts_with_what_compose_gives_it_and_a_list_of_callers(tmp_path: Path) -> None:
    """Empty where .env says nothing, its own defaults where it names one."""
    clients = tmp_path / "clients.toml"
    clients.write_text(f'[backend]\ntoken_sha256 = "{"0" * 64}"\ntiers = ["free"]\nprefixes = ["uploads/"]\n')
    values = {
        name: re.sub(r"\$\{\w+(?::?-([^}]*)|:\?[^}]*)\}", r"\1", value)
        for name, value in SERVICES["staging"]["environment"].items()
        if value is not None
    }
    read = config.from_environ(values | {"STAGING_CLIENTS_FILE": str(clients)})
    assert (read.models.mode, read.staging.clients_file) == ("mock", clients)
    (mounted,) = SERVICES["staging"]["configs"]
    assert mounted["target"] == values["STAGING_CLIENTS_FILE"]
    assert mounted["source"] in COMPOSE["configs"]


@pytest.mark.parametrize("service", ["orchestrator", "orchestrator-cpu", "staging"])
def test_a_key_file_of_googles_is_handed_on_and_never_as_an_empty_name(service: str) -> None:
    """obstore opens the file of an empty name, and no gs:// could be reached."""
    environment = SERVICES[service]["environment"]
    assert "GOOGLE_APPLICATION_CREDENTIALS" in environment
    assert environment["GOOGLE_APPLICATION_CREDENTIALS"] is None


def test_no_password_has_a_default() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    for name in re.findall(r"\$\{(\w*(?:PASSWORD|TOKEN|SECRET_ACCESS_KEY|ACCESS_KEY_ID))([^}]*)\}", text):
        # An empty one counts as unset: the route or the provider that it opens is not there.
        assert name[1] == (":-" if name[0] in OPTIONAL else ":?set it in .env"), name
    for line in (ROOT / ".env.example").read_text().splitlines():
        if re.match(r"#?\w*(PASSWORD|TOKEN|SECRET|ACCESS_KEY|ACCESS_KEY_ID)=", line):
            assert line.endswith("="), line


def test_every_image_is_pinned_to_a_version() -> None:
    dockerfiles = [path.read_text() for path in (ROOT / "deploy" / "docker").glob("*.Dockerfile")]
    images = [line.split()[1] for text in dockerfiles for line in text.splitlines() if line.startswith("FROM ")]
    images += [service["image"] for service in SERVICES.values() if not service["image"].startswith("remarque-")]
    assert len(images) > 10
    assert [image for image in images if not re.fullmatch(r"[\w./-]+:v?\d+\.\d[\w.-]*", image)] == []


def test_the_server_that_loads_engines_is_the_one_they_are_built_in() -> None:
    build = (ROOT / "deploy" / "docker" / "build-engines.Dockerfile").read_text()
    assert f"FROM {SERVICES['triton']['image']}\n" in build


def test_every_profile_brings_up_what_its_services_wait_for() -> None:
    for name, service in SERVICES.items():
        for needed in service.get("depends_on", {}):
            assert set(service["profiles"]) <= set(SERVICES[needed]["profiles"]), f"{name} waits for {needed}"
    assert {profile for service in SERVICES.values() for profile in service["profiles"]} == {
        "gpu", "cpu", "staging", "observability", "build",
    }  # fmt: skip


def test_what_a_service_waits_for_can_become_true() -> None:
    for service in SERVICES.values():
        for needed, wait in service.get("depends_on", {}).items():
            if wait["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[needed]
            if wait["condition"] == "service_completed_successfully":
                assert "restart" not in SERVICES[needed], f"{needed} would never complete"


def test_triton_and_its_orchestrator_share_memory() -> None:
    for triton, orchestrator in (("triton", "orchestrator"), ("triton-cpu", "orchestrator-cpu")):
        assert SERVICES[triton]["ipc"] == "shareable"
        assert SERVICES[orchestrator]["ipc"] == f"service:{triton}"
        assert SERVICES[triton]["shm_size"] == "4gb"
        assert "USER " + SERVICES[triton]["user"] in (ROOT / "deploy/docker/orchestrator.Dockerfile").read_text()


def test_only_the_loopback_is_listened_on_and_triton_not_at_all() -> None:
    ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert all(port.startswith("127.0.0.1:") for entry in ports.values() for port in entry)
    assert set(ports) == {"rabbitmq", "staging", "prometheus", "grafana", "jaeger"}
    assert set(SERVICES["triton"]["networks"]) == {"models"}
    assert COMPOSE["networks"]["models"] == {"internal": True}


def test_every_mounted_file_is_in_the_repository() -> None:
    mounts = [m for service in SERVICES.values() for m in service.get("volumes", []) if m.startswith("./")]
    assert len(mounts) > 4
    assert [mount for mount in mounts if not (ROOT / mount.split(":")[0]).exists()] == []
    named = {m.split(":")[0] for s in SERVICES.values() for m in s.get("volumes", []) if not m.startswith((".", "$"))}
    assert named == set(COMPOSE["volumes"])


def run_command_of(service: str, folder: Path, program: str, environment: dict[str, str]) -> str:
    """What a service's shell line does, with ``program`` replaced by one that prints its arguments."""
    stub = folder / program
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stub.chmod(0o755)
    words = SERVICES[service]["command"]
    script = words[-1].replace("$$", "$").replace("/run/", f"{folder}/").replace("/models/check", f"{folder}/check")
    return subprocess.run(
        ["bash" if words[0] == "bash" else "sh", "-c", script],
        env={"PATH": f"{folder}:{os.environ['PATH']}", **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_triton_loads_the_named_models_and_takes_shared_memory(tmp_path: Path) -> None:
    said = run_command_of("triton", tmp_path, "tritonserver", {"TRITON_MODELS": "text_encoder unet"}).split()
    assert said[:4] == [
        "--model-repository=/models", "--model-control-mode=explicit", "--load-model=text_encoder", "--load-model=unet",
    ]  # fmt: skip
    assert "--allow-client-shm=true" in said


def test_the_store_starts_with_the_keys_of_the_environment_and_no_others(tmp_path: Path) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "a'secret"}
    said = run_command_of("store", tmp_path, "weed", keys).split()
    (identity,) = json.loads((tmp_path / "s3.json").read_text())["identities"]
    assert identity["credentials"] == [{"accessKey": "key", "secretKey": "a'secret"}]
    assert (tmp_path / "s3.json").stat().st_mode & 0o077 == 0
    assert f"-s3.config={tmp_path}/s3.json" in said


@pytest.mark.parametrize("name", ["orchestrator", "staging"])
def test_the_pause_before_a_kill_is_longer_than_the_services_own(name: str) -> None:
    service = SERVICES[name]
    grace_s = int(re.search(r":-(\d+)", service["environment"]["GRACE_SECONDS"])[1])  # type: ignore[index]
    assert int(service["stop_grace_period"].removesuffix("s")) > grace_s


def test_triton_is_not_killed_while_it_answers_what_is_under_way(tmp_path: Path) -> None:
    said = run_command_of("triton", tmp_path, "tritonserver", {"TRITON_MODELS": "unet"})
    patience = re.search(r"--exit-timeout-secs=(\d+)", said)
    assert patience is not None
    assert int(SERVICES["triton"]["stop_grace_period"].removesuffix("s")) > int(patience[1])


def test_the_cpu_image_has_what_the_local_triton_is_tested_with() -> None:
    from local.environment import STUB_REQUIREMENTS

    text = (ROOT / "deploy" / "docker" / "triton-cpu.Dockerfile").read_text()
    assert all(f'"{requirement}"' in text for requirement in STUB_REQUIREMENTS)


def test_prometheus_scrapes_ports_that_are_there() -> None:
    scraped = yaml.safe_load((ROOT / "deploy" / "observability" / "prometheus.yml").read_text())["scrape_configs"]
    names = {name for job in scraped for entry in job.get("dns_sd_configs", []) for name in entry["names"]}
    aliases = {
        alias
        for s in SERVICES.values()
        if isinstance(s.get("networks"), dict)
        for n in s["networks"].values()
        for alias in n["aliases"]
    }
    assert names <= set(SERVICES) | aliases
