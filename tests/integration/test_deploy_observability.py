"""Dashboards, rules and the page of metrics know the same names, and every alert leads to a runbook that is there."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml
from prometheus_client import Metric

from local.environment import state_folder
from local.promtool import promtool
from orchestrator.errors import ServiceError
from orchestrator.staging.routing import Routing
from orchestrator.staging_telemetry import StagingTelemetry
from orchestrator.telemetry import Telemetry

ROOT = Path(__file__).parents[2]
OBSERVABILITY = ROOT / "deploy" / "observability"
DASHBOARDS = sorted((OBSERVABILITY / "grafana" / "dashboards").glob("*.json"))
RULES = sorted((OBSERVABILITY / "rules").glob("*.yml"))
RULE_TESTS = sorted(OBSERVABILITY.glob("rules*_test.yml"))
PAGE = (ROOT / "docs" / "metrics.md").read_text()
NAME = re.compile(r"\b(?:remarque|nv|rabbitmq)(?:_\w+|:[\w:]+)")


def rules() -> list[dict[str, object]]:
    return [rule for path in RULES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def families() -> list[Metric]:
    """What the worker and the staging service offer."""
    staging = StagingTelemetry()
    staging.watch_desk(Mock(waiting=0, running=0))
    staging.watch_routing(lambda: Routing(mode="mock"))
    staging.watch_cost(Mock(today_usd=lambda: 0.0, alert=lambda: 0.0))
    return [family for telemetry in (Telemetry(), staging) for family in telemetry.registry.collect()]


def served() -> set[str]:
    """Every sample that /metrics can offer, labels aside."""
    names = set()
    for family in families():
        endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        names |= {family.name + ending for ending in endings}
    return names


def known() -> set[str]:
    foreign = set(re.findall(r"`((?:nv|rabbitmq)_\w+)`", PAGE)) - {"rabbitmq_prometheus"}
    recorded = {str(rule["record"]) for rule in rules() if "record" in rule}
    return served() | foreign | recorded


def queries() -> Iterator[tuple[str, str]]:
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", []):
                yield f"{path.name}: {panel['title']}", target["expr"]
    for rule in rules():
        yield str(rule.get("alert") or rule.get("record")), str(rule["expr"])
    for path in sorted((ROOT / "deploy" / "kubernetes").glob("*/scaling.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            for trigger in document["spec"].get("triggers", []):
                if trigger["type"] == "prometheus":
                    yield f"{path.parent.name}/scaling.yaml", trigger["metadata"]["query"]


def test_every_query_names_metrics_that_exist() -> None:
    asked = [(where, set(NAME.findall(re.sub(r'"[^"]*"', "", query)))) for where, query in queries()]
    assert len(asked) > 60
    assert [(where, names - known()) for where, names in asked if names - known()] == []


def test_every_metric_of_ours_is_on_the_page_and_the_page_has_no_other() -> None:
    told = set(re.findall(r"^\| `(remarque_\w+)` \|", PAGE, re.MULTILINE))
    assert told == {f.name + ("_total" if f.type == "counter" else "") for f in families()}


def test_labels_in_queries_are_labels_of_the_metric() -> None:
    labels = {
        name: set(getattr(collector, "_labelnames", ())) | {"le", "instance", "job"}
        for collector, names in Telemetry().registry._collector_to_names.items()
        for name in names
    }
    for where, query in queries():
        for name, selector in re.findall(r"(remarque_\w+)\{([^}]*)\}", query):
            used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
            assert used <= labels[name], f"{where}: {name} has no {used - labels[name]}"


def test_buckets_in_queries_are_buckets_that_are_kept() -> None:
    from orchestrator.telemetry import JOB_BUCKETS_S, WAIT_BUCKETS_S

    kept = {"remarque_job_seconds_bucket": JOB_BUCKETS_S, "remarque_queue_wait_seconds_bucket": WAIT_BUCKETS_S}
    found = [
        (n, float(le)) for _, q in queries() for n, le in re.findall(r'(remarque_\w+_bucket)\{[^}]*le="([\d.]+)"', q)
    ]
    assert found
    assert [(name, le) for name, le in found if le not in kept[name]] == []


def test_error_codes_in_queries_are_codes_that_are_raised() -> None:
    codes = set(re.findall(r"^\| `([A-Z_]+)` \|", (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE))
    used = {
        code for _, q in queries() for found in re.findall(r'error_code\W+"([^"]*)"', q) for code in found.split("|")
    }
    assert used - {""} <= codes


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda p: p.stem)
def test_every_panel_says_what_it_shows_and_lies_beside_the_others(path: Path) -> None:
    board = json.loads(path.read_text())
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert all(panel["targets"] for panel in panels)
    taken = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_every_alert_says_what_happened_and_leads_to_a_runbook() -> None:
    alerts = [rule for rule in rules() if "alert" in rule]
    assert len(alerts) > 15
    for alert in alerts:
        annotations = alert["annotations"]
        assert isinstance(annotations, dict)
        assert (ROOT / annotations["runbook"]).is_file(), alert["alert"]
        assert alert["labels"]["severity"] in ("page", "ticket")  # type: ignore[index]


@pytest.fixture(scope="module")
def checker() -> Path:
    try:
        return promtool(state_folder())
    except ServiceError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


def test_prometheus_accepts_the_rules_and_the_configuration(checker: Path, tmp_path: Path) -> None:
    cluster = yaml.safe_load((OBSERVABILITY / "prometheus-kubernetes.yml").read_text())
    # Debian's promtool is built without Kubernetes, so its way to find pods is left out.
    assert cluster["scrape_configs"][0].pop("kubernetes_sd_configs")[0]["role"] == "pod"
    (tmp_path / "cluster.yml").write_text(yaml.safe_dump(cluster))
    configurations = ["prometheus.yml", str(tmp_path / "cluster.yml")]
    for command in (["check", "rules", *map(str, RULES)], ["check", "config", "--syntax-only", *configurations]):
        told = subprocess.run([checker, *command], cwd=OBSERVABILITY, capture_output=True, text=True)
        assert told.returncode == 0, told.stdout + told.stderr


def test_alerts_fire_when_they_should_and_only_then(checker: Path) -> None:
    told = subprocess.run(
        [checker, "test", "rules", "rules_test.yml"], cwd=OBSERVABILITY, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stdout + told.stderr


def test_every_alert_is_made_to_fire_in_the_rules_tests() -> None:
    tested = [test for path in RULE_TESTS for test in yaml.safe_load(path.read_text())["tests"]]
    fired = {case["alertname"] for test in tested for case in test.get("alert_rule_test", []) if case["exp_alerts"]}
    slow = {str(rule["alert"]) for rule in rules() if str(rule.get("alert", "")).endswith("BurnsSlowly")}
    assert {str(rule["alert"]) for rule in rules() if "alert" in rule} - fired == slow - fired
    assert "RemarqueAvailabilityBurnsSlowly" in fired


def test_traces_go_from_the_worker_to_the_collector_to_jaeger() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    collector = yaml.safe_load((OBSERVABILITY / "otel-collector.yml").read_text())
    assert collector["receivers"]["otlp"]["protocols"]["http"]["endpoint"].endswith(":4318")
    assert collector["exporters"]["otlp_grpc"]["endpoint"].partition(":")[0] in compose
    pipeline = collector["service"]["pipelines"]["traces"]
    assert all(name in collector[kind] for kind, names in pipeline.items() for name in names)
