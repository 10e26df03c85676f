"""Which RabbitMQ is taken, and what is said where there is none."""

import os
from pathlib import Path

import pytest

from local.rabbitmq import find_installation, free_ports, rabbitmq_url
from orchestrator.errors import ServiceError


def program(path: Path, script: str = "exit 0") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_given_url_is_used_and_nothing_is_started(tmp_path: Path) -> None:
    with rabbitmq_url({"RABBITMQ_URL": "amqp://elsewhere/"}, tmp_path) as url:
        assert url == "amqp://elsewhere/"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(Path("/usr/lib/rabbitmq").exists(), reason="this machine has a RabbitMQ where Debian puts it")
def test_installed_rabbitmq_is_preferred_to_a_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = program(tmp_path / "sbin" / "rabbitmq-server")
    epmd = program(tmp_path / "erlang" / "epmd")
    monkeypatch.setenv("PATH", f"{server.parent}{os.pathsep}{epmd.parent}")
    found = find_installation(tmp_path / "state")
    assert (found.server, found.erlang_bin) == (server, epmd.parent)


@pytest.mark.skipif(Path("/usr/lib/rabbitmq").exists(), reason="this machine has a RabbitMQ where Debian puts it")
def test_machine_without_debian_tools_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServiceError, match=r"apt-get and dpkg not found.*install rabbitmq-server.*RABBITMQ_URL"):
        find_installation(tmp_path / "state")


@pytest.mark.skipif(Path("/usr/lib/rabbitmq").exists(), reason="this machine has a RabbitMQ where Debian puts it")
def test_download_that_fails_says_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin" / "apt-get", "echo 'E: Failed to fetch' >&2; exit 100")
    program(tmp_path / "bin" / "dpkg")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(ServiceError, match=r"rabbitmq-server cannot be downloaded: E: Failed to fetch; install"):
        find_installation(tmp_path / "state")
    assert list((tmp_path / "state" / "rabbitmq").iterdir()) == []


@pytest.mark.skipif(Path("/usr/lib/rabbitmq").exists(), reason="this machine has a RabbitMQ where Debian puts it")
def test_machine_without_package_lists_fetches_lists_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = tmp_path / "calls"
    apt = f'echo "$@" >> {calls}; case "$*" in *"Dir::State="*download*) echo > a.deb;; download*) exit 100;; esac'
    program(tmp_path / "bin" / "apt-get", apt)
    scripts = "$3/usr/lib/erlang/bin"
    unpack = f'/bin/mkdir -p {scripts}; for s in erl start; do echo "ROOTDIR=/usr/lib/erlang" > {scripts}/$s; done'
    program(tmp_path / "bin" / "dpkg", unpack)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    state = tmp_path / "state"
    found = find_installation(state)
    words = [line.split() for line in calls.read_text().splitlines()]
    assert [next(w for w in line if w in ("update", "download")) for line in words] == [
        "download",
        "update",
        "download",
    ]
    assert f"ROOTDIR={state}/rabbitmq/server/usr/lib/erlang" in (found.erlang_bin / "erl").read_text()


def test_folder_with_a_space_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if Path("/usr/lib/rabbitmq").exists():
        pytest.skip("this machine has a RabbitMQ where Debian puts it")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServiceError, match="a path with a space; set REMARQUE_STATE"):
        find_installation(tmp_path / "my state")


def test_ports_lie_outside_the_range_of_outgoing_connections() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5
    assert all(20_000 <= port < 32_768 for port in ports)
