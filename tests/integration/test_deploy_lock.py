"""The worker image's locked libraries follow pyproject.toml and are what the tests ran with."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "deploy" / "docker" / "requirements.txt").read_text()
PINS = {canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==([^ ]+)", LOCK, re.MULTILINE)}


def test_every_dependency_of_the_worker_is_locked_inside_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(line) for line in project["dependencies"] + project["optional-dependencies"]["traces"]]
    missing = [w.name for w in wanted if canonicalize_name(w.name) not in PINS]
    assert missing == [], "make lock"
    assert [w.name for w in wanted if not w.specifier.contains(PINS[canonicalize_name(w.name)])] == [], "make lock"


def test_locked_versions_are_the_tested_ones() -> None:
    tested = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert {n: v for n, v in tested.items() if PINS.get(canonicalize_name(n), v) != v} == {}, "make lock"


def test_every_line_of_the_lock_has_a_hash() -> None:
    entries = re.split(r"\n(?=[\w.-]+==)", LOCK.partition("make lock\n")[2])
    assert len(entries) == len(PINS) > 20
    assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []


def test_nothing_for_training_or_tracing_is_in_the_image() -> None:
    assert not PINS.keys() & {"torch", "diffusers", "transformers", "onnx", "onnxruntime", "pytest", "moto"}


def test_the_bill_of_materials_lists_what_is_locked() -> None:
    command = [sys.executable, "-m", "cyclonedx_py", "requirements", "deploy/docker/requirements.txt"]
    told = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)
    assert told["bomFormat"] == "CycloneDX"
    assert {canonicalize_name(c["name"]): c["version"] for c in told["components"]} == PINS
