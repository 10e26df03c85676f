"""Debian packages unpacked into a folder, for machines where nobody is root.

``apt-get download`` and ``dpkg -x`` work for any user. Where the machine has no package lists yet, lists of our own are
fetched into a private state folder, so the system's stay as they are.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from orchestrator.errors import ServiceError


def unpack(packages: Sequence[str], folder: Path, *, instead: str) -> None:
    """Download ``packages`` and extract them into ``folder``; an error's remedy ends with ``instead``."""
    missing = [tool for tool in ("apt-get", "dpkg") if shutil.which(tool) is None]
    if missing:
        raise ServiceError(f"{' and '.join(missing)} not found, so {packages[0]} cannot be unpacked here; {instead}")
    downloads = folder.with_name(folder.name + ".debs")
    downloads.mkdir(parents=True, exist_ok=True)
    try:
        _download(packages, downloads, instead)
        folder.mkdir(parents=True, exist_ok=True)
        for package in sorted(downloads.glob("*.deb")):
            _run(["dpkg", "-x", str(package), str(folder)], downloads)
    except subprocess.CalledProcessError as error:
        raise ServiceError(f"{packages[0]} cannot be unpacked: {_last_line(error)}; {instead}") from error
    finally:
        shutil.rmtree(downloads, ignore_errors=True)


def _download(packages: Sequence[str], downloads: Path, instead: str) -> None:
    try:
        _run(["apt-get", "download", *packages], downloads)
    except subprocess.CalledProcessError:
        private = _private_state(downloads)
        try:
            _run(["apt-get", *private, "update"], downloads)
            _run(["apt-get", *private, "download", *packages], downloads)
        except subprocess.CalledProcessError as error:
            raise ServiceError(f"{packages[0]} cannot be downloaded: {_last_line(error)}; {instead}") from error


def _private_state(downloads: Path) -> list[str]:
    """Options that make apt keep lists and archives below ``downloads`` and know of no installed package."""
    state = downloads / "apt"
    for part in ("lists/partial", "archives/partial"):
        (state / part).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    options = {"Dir::State": state, "Dir::State::lists": state / "lists", "Dir::State::status": state / "status"}
    options["Dir::Cache"] = state
    return [word for name, value in options.items() for word in ("-o", f"{name}={value}")]


def _run(command: Sequence[str], folder: Path) -> None:
    environ = os.environ | {"LC_ALL": "C"}
    subprocess.run(
        command, cwd=folder, env=environ, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )


def _last_line(error: subprocess.CalledProcessError) -> str:
    said = [line.strip() for line in f"{error.stdout}\n{error.stderr}".splitlines() if line.startswith(("E:", "dpkg"))]
    return said[-1] if said else f"{error.cmd[0]} ended with {error.returncode}"
