"""Every command of the runbooks: those marked ``sh`` are run on a real broker and worker, the others name things that exist."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from fakes.kustomize import render
from integration.management import Management
from integration.service import Service, message, service, until
from safetensors.numpy import save_file

from local.rabbitmq import free_ports

__all__ = ["service"]

ROOT = Path(__file__).parents[2]
PAGES = sorted(path for path in (ROOT / "docs" / "runbooks").glob("*.md") if path.stem != "README")
FENCE = re.compile(r"^ *```(sh(?: cluster)?)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    page: Path
    number: int
    kind: str
    commands: str


def blocks() -> list[Block]:
    return [
        Block(page, number, kind, re.sub(r"^ {3}", "", commands, flags=re.MULTILINE))
        for page in [*PAGES, ROOT / "docs" / "runbooks" / "README.md"]
        for number, (kind, commands) in enumerate(FENCE.findall(page.read_text()), 1)
    ]


def named(block: Block) -> str:
    return f"{block.page.stem}-{block.number}"


def alerts() -> set[str]:
    rules = [yaml.safe_load(path.read_text()) for path in (ROOT / "deploy/observability/rules").glob("*.yml")]
    return {rule["alert"] for file in rules for group in file["groups"] for rule in group["rules"] if "alert" in rule}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_a_runbook_begins_with_its_alert_and_ends_with_the_check_that_it_is_over(page: Path) -> None:
    text = page.read_text()
    assert text.split("\n")[2].startswith("**Alert:**")
    ending = text[text.index("**Over when**") :]
    assert "```sh\n" in ending
    assert set(re.findall(r"`(Remarque\w+)`", text)) <= alerts()


def test_every_runbook_is_on_the_first_page_and_every_alert_in_a_runbook() -> None:
    first = (ROOT / "docs" / "runbooks" / "README.md").read_text()
    assert {page.name for page in PAGES} == set(re.findall(r"\]\((\S+\.md)\)", first))
    told = "".join(page.read_text() for page in PAGES)
    slow = {name for name in alerts() if name.endswith("BurnsSlowly")}
    assert {name for name in alerts() - slow if f"`{name}`" not in told} == set()


@pytest.mark.parametrize("block", [b for b in blocks() if b.kind == "sh cluster"], ids=named)
def test_what_a_cluster_command_names_is_deployed(block: Block) -> None:
    documents = [
        d
        for folder in ("base", "build-engines", "rabbitmq-policies")
        for d in render(ROOT / "deploy/kubernetes" / folder)
    ]
    there = {f"{document['kind'].lower()}/{document['metadata']['name']}" for document in documents}
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert set(re.findall(r"\b((?:deployment|scaledobject|job)/[a-z-]+)", block.commands)) <= there
    for folder in re.findall(r"-k (\S+)", block.commands):
        assert (ROOT / folder / "kustomization.yaml").is_file()
    for line in re.findall(r"docker compose .*", block.commands):
        assert set(line.split()) & set(services)
    assert subprocess.run(["bash", "-n"], input=block.commands, text=True).returncode == 0


def test_logs_are_those_of_every_worker() -> None:
    """``kubectl logs deployment/NAME`` shows one pod's, and with a selector ten lines of each."""
    asked = [
        line for block in blocks() for line in block.commands.splitlines() if "kubectl" in line and " logs " in line
    ]
    workers = [line for line in asked if "-c orchestrator" in line]
    assert len(workers) == 2
    assert all("-l app.kubernetes.io/component=worker" in line and "--tail=-1" in line for line in workers)


def test_what_is_set_past_the_files_is_taken_away_again() -> None:
    """``apply`` leaves a variable that ``set env`` added, and the pods would never hear of the file's."""
    commands = "\n".join(block.commands for block in blocks())
    for name in re.findall(r"set env \S+ -c \S+ (\w+)=", commands):
        assert re.search(rf"set env \S+ -c \S+ {name}-\n", commands), name


@pytest.fixture
def environment(service: Service, management: Management, tmp_path: Path) -> Iterator[dict[str, str]]:
    """One worker with a picture made and a message dead."""
    service.rabbitmq.ctl("set_user_tags", "remarque", "administrator")
    (port,) = free_ports(1)
    service.start_worker(HTTP_ADDRESS=f"127.0.0.1:{port}")
    service.publish(message(7), message(8, aspect_ratio="9:9"))
    service.wait([7, 8])
    until(lambda: service.dead_count() == 1)
    layer = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    factors = {
        f"{layer}.lora_A.weight": np.ones((2, 64), np.float32),
        f"{layer}.lora_B.weight": np.ones((64, 2), np.float32),
    }
    save_file(factors, tmp_path / "style.safetensors")
    yield {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RABBITMQ_URL": service.rabbitmq.url,
        "WORKER": f"http://127.0.0.1:{port}",
        "BROKER_API": management.api_url,
        "DEAD_ID": "8",
        "PICTURE": str(service.results / "generations" / "gen-7.png"),
        "STYLE": str(tmp_path / "style.safetensors"),
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_the_commands_of_a_runbook_run_as_they_stand(
    page: Path,
    environment: dict[str, str],
    service: Service,
) -> None:
    for block in blocks():
        if block.page == page and block.kind == "sh":
            until(lambda: service.dead_count() >= 1)
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block.commands],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, f"{named(block)}:\n{block.commands}\n{done.stdout}\n{done.stderr}"
