"""deploy/kubernetes: valid for the API server and KEDA, restricted, and with times that fit one another."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from fakes.kustomize import Document, merged, render

from orchestrator.config import from_environ
from orchestrator.service import CALL_ENDS_WITHIN_S, OUTBOX_PATIENCE_S
from orchestrator.staging_service import UNWIND_S

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
FOLDERS = ("base", "overlays/gcp", "overlays/aws", "staging", "build-engines", "rabbitmq-policies")
CARDS = sorted(path for path in KUBERNETES.glob("overlays/*/cards/*.yaml"))
KEDA = json.loads((ROOT / "tests" / "data" / "keda.json").read_text())["$defs"]
# The oldest Kubernetes with native sidecars on by default.
OLDEST = "1.29"


def objects(folder: str, kind: str) -> list[Document]:
    return [document for document in render(KUBERNETES / folder) if document["kind"] == kind]


def only(folder: str, kind: str, name: str) -> Document:
    (found,) = [document for document in objects(folder, kind) if document["metadata"]["name"] == name]
    return found


def pod(folder: str = "overlays/gcp") -> Document:
    spec: Document = only(folder, "Deployment", "remarque")["spec"]["template"]["spec"]
    return spec


def settings(folder: str = "overlays/gcp") -> Any:
    (config,) = [o for o in objects(folder, "ConfigMap") if o["metadata"]["name"].startswith("remarque-config")]
    return from_environ(config["data"])


def pod_specs(folder: str) -> list[Document]:
    return [o["spec"]["template"]["spec"] for o in render(KUBERNETES / folder) if "template" in o.get("spec", {})]


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_object_fits_its_schema(folder: str) -> None:
    for document in render(KUBERNETES / folder):
        if document["apiVersion"].startswith("keda.sh/"):
            jsonschema.Draft202012Validator(KEDA[document["kind"]]).validate(document)
        else:
            kubernetes_validate.validate(document, OLDEST, strict=True)


def test_a_misspelt_field_would_not_fit() -> None:
    deployment = only("base", "Deployment", "remarque")
    deployment["spec"]["template"]["spec"]["terminationGracePeriod"] = 5
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, OLDEST, strict=True)
    scaled = only("base", "ScaledObject", "remarque")
    scaled["spec"]["cooldown"] = 5
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(KEDA["ScaledObject"]).validate(scaled)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl here to compare with")
@pytest.mark.parametrize("folder", FOLDERS)
def test_kustomize_itself_renders_the_same(folder: str) -> None:
    told = subprocess.run(["kubectl", "kustomize", str(KUBERNETES / folder)], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    text = re.sub(r"(remarque(?:-staging)?-config)-[a-z0-9]{10}\b", r"\1-HASH", told.stdout)

    def by_name(documents: list[Document]) -> dict[tuple[str, str], Document]:
        return {(d["kind"], d["metadata"]["name"]): d for d in documents}

    assert by_name([d for d in yaml.safe_load_all(text) if d]) == by_name(render(KUBERNETES / folder))


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_pod_is_admitted_by_the_restricted_standard(folder: str) -> None:
    for spec in pod_specs(folder):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        for container in spec["containers"] + spec.get("initContainers", []):
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert "limits" in container["resources"]
        kinds = {kind for volume in spec["volumes"] for kind in volume if kind != "name"}
        assert kinds <= {"emptyDir", "persistentVolumeClaim", "secret", "configMap"}


def test_a_longest_job_can_finish_before_its_pod_is_killed() -> None:
    service = settings().service
    finishing_s = (service.grace_s - OUTBOX_PATIENCE_S - CALL_ENDS_WITHIN_S) / 2
    assert service.job_timeout_s < finishing_s
    assert service.grace_s < pod()["terminationGracePeriodSeconds"]


def test_scaling_waits_longer_than_the_longest_job() -> None:
    scaling = only("base", "ScaledObject", "remarque")["spec"]
    behavior = scaling["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert scaling["cooldownPeriod"] > settings().service.job_timeout_s
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] >= settings().service.job_timeout_s
    assert scaling["minReplicaCount"] == 0
    assert "replicas" not in only("base", "Deployment", "remarque")["spec"]


def test_scaling_counts_unacked_messages_of_the_queue_that_publishers_use() -> None:
    from orchestrator.clients.queues import Queues

    rabbitmq, _, latency = only("base", "ScaledObject", "remarque")["spec"]["triggers"]
    assert (rabbitmq["metadata"]["protocol"], rabbitmq["metadata"]["queueName"]) == ("http", Queues().work)
    assert float(latency["metadata"]["threshold"]) < float(latency["metadata"]["activationThreshold"])


def test_the_last_worker_stays_until_the_backend_has_every_outcome() -> None:
    """After an outage of the backend nobody else tells it, and the next job may be hours away."""
    from orchestrator.clients.queues import Queues

    events = only("base", "ScaledObject", "remarque")["spec"]["triggers"][1]["metadata"]
    assert (events["protocol"], events["queueName"], events["activationValue"]) == ("http", Queues().events, "0")
    # An event that is put off lies in a waiting room meanwhile, where nobody counts it.
    assert only("base", "ScaledObject", "remarque")["spec"]["cooldownPeriod"] > max(Queues().delays_s)


def test_a_pod_holds_no_job_for_which_scaling_starts_another() -> None:
    rabbitmq = only("base", "ScaledObject", "remarque")["spec"]["triggers"][0]
    queue = settings().queue
    assert queue.max_concurrent_generations + queue.fairness_window <= float(rabbitmq["metadata"]["value"])


def test_attempts_outlast_a_restart_of_triton() -> None:
    from orchestrator.conclusion import next_delay
    from orchestrator.errors import ModelUnavailable

    attempts = settings().queue.max_attempts
    waits = [next_delay(ModelUnavailable("gone"), number, attempts) or 0 for number in range(1, attempts + 1)]
    triton = pod()["initContainers"][0]["startupProbe"]
    assert sum(waits) > triton["failureThreshold"] * triton["periodSeconds"]


def test_triton_and_worker_share_memory_and_triton_is_reached_by_the_worker_alone() -> None:
    (triton,), (worker,) = pod()["initContainers"], pod()["containers"]
    assert triton["restartPolicy"] == "Always"
    assert "--http-address=127.0.0.1" in triton["args"]
    assert "--allow-client-shm=true" in triton["args"]
    for container in (triton, worker):
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]


def test_compose_and_kubernetes_run_the_same_server() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert pod()["initContainers"][0]["image"] == compose["services"]["triton"]["image"]


def test_nothing_is_let_in_but_the_scraping_of_metrics() -> None:
    nothing, ours = (only("base", "NetworkPolicy", name) for name in ("nothing", "remarque"))
    assert nothing["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    (rule,) = ours["spec"]["ingress"]
    assert {port["port"] for port in rule["ports"]} == {8080, 8002}
    assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"remarque/scrapes": "true"}}}]


def test_names_are_looked_up_wherever_a_cluster_answers_for_them() -> None:
    """Beside kube-dns: caches on the nodes, by pod or by address, and Google's Cloud DNS; else no pod finds its broker."""

    def answering(folder: str) -> list[Document]:
        rules = only(folder, "NetworkPolicy", "remarque")["spec"]["egress"]
        return [p for rule in rules if {"protocol": "UDP", "port": 53} in rule["ports"] for p in rule["to"]]

    pods = {peer["podSelector"]["matchLabels"]["k8s-app"] for peer in answering("base") if "podSelector" in peer}
    assert pods == {"kube-dns", "node-local-dns"}
    assert {"ipBlock": {"cidr": "169.254.20.10/32"}} in answering("base")
    assert {"ipBlock": {"cidr": "169.254.169.254/32"}} in answering("overlays/gcp")


def test_google_adds_only_its_metadata_server_to_what_may_be_reached() -> None:
    base = only("base", "NetworkPolicy", "remarque")["spec"]["egress"]
    google = only("overlays/gcp", "NetworkPolicy", "remarque")["spec"]["egress"]
    assert google[:-1] == base
    assert all(entry["ipBlock"]["cidr"].startswith("169.254.169.25") for entry in google[-1]["to"])


def test_the_volume_can_be_made_before_the_engines_that_are_built_into_it() -> None:
    """docs/deployment.md applies what bears this label, then builds, then applies the rest."""
    page = (ROOT / "docs" / "deployment.md").read_text()
    chosen = re.search(r"overlays/gcp -l (\S+)=(\S+)", page)
    assert chosen is not None
    documents = render(KUBERNETES / "overlays/gcp")
    found = [d for d in documents if d["metadata"].get("labels", {}).get(chosen[1]) == chosen[2]]
    assert [(d["kind"], d["metadata"]["name"]) for d in found] == [("PersistentVolumeClaim", "models")]
    assert page.index(chosen[0]) < page.index("apply -k deploy/kubernetes/build-engines")
    (job,) = pod_specs("build-engines")
    assert {"name": "models", "persistentVolumeClaim": {"claimName": "models"}} in job["volumes"]


def test_the_metrics_of_triton_are_scraped_beside_the_annotated_port() -> None:
    jobs = yaml.safe_load((ROOT / "deploy/observability/prometheus-kubernetes.yml").read_text())["scrape_configs"]
    (triton,) = [job for job in jobs if job["job_name"] == "triton"]
    kept = triton["relabel_configs"][0]["regex"]
    (port,) = [port for port in pod()["initContainers"][0]["ports"] if port["name"] == kept]
    assert f"--metrics-port={port['containerPort']}" in pod()["initContainers"][0]["args"]
    allowed = only("base", "NetworkPolicy", "remarque")["spec"]["ingress"][0]["ports"]
    assert port["containerPort"] in {one["port"] for one in allowed}


def test_secrets_come_as_files_and_none_is_in_the_repository() -> None:
    for folder in FOLDERS:
        assert objects(folder, "Secret") == []
    for name in ("remarque", "remarque-mock"):
        (worker,) = only("base", "Deployment", name)["spec"]["template"]["spec"]["containers"]
        environment = {entry["name"] for entry in worker["env"]}
        assert {"RABBITMQ_URL_FILE", "INTERNAL_API_TOKEN_FILE"} <= environment


@pytest.mark.parametrize("card", CARDS, ids=lambda p: f"{p.parent.parent.name}-{p.stem}")
def test_every_card_selects_nodes_and_its_own_engines(card: Path) -> None:
    base = only("base", "Deployment", "remarque")
    spec = merged(base, yaml.safe_load(card.read_text()))["spec"]["template"]["spec"]
    kubernetes_validate.validate(merged(base, yaml.safe_load(card.read_text())), OLDEST, strict=True)
    assert len(spec["nodeSelector"]) == 1
    for container in spec["initContainers"] + spec["containers"]:
        (models,) = [mount for mount in container["volumeMounts"] if mount["mountPath"] == "/models"]
        assert models["subPath"] == card.stem


def test_the_cards_that_were_asked_for_are_there() -> None:
    assert {card.stem for card in CARDS} == {"l4", "a10", "a100", "h100", "h200"}


@pytest.mark.parametrize("overlay", ["overlays/gcp", "overlays/aws"])
def test_spot_nodes_are_preferred_and_tolerated_but_not_required(overlay: str) -> None:
    spec = pod(overlay)
    assert "requiredDuringSchedulingIgnoredDuringExecution" not in spec["affinity"]["nodeAffinity"]
    assert {"nvidia.com/gpu"} < {toleration["key"] for toleration in spec["tolerations"]}


@pytest.mark.parametrize("overlay", ["overlays/gcp", "overlays/aws"])
def test_an_overlays_settings_are_settings(overlay: str) -> None:
    from integration.test_deploy_compose import settings as known

    (config,) = objects(overlay, "ConfigMap")
    assert set(config["data"]) <= known()
    assert settings(overlay).store.results is not None


def staging_pod() -> Document:
    spec: Document = only("staging", "Deployment", "remarque-staging")["spec"]["template"]["spec"]
    return spec


def staging_settings() -> Any:
    (config,) = objects("staging", "ConfigMap")
    environment = {entry["name"]: entry["value"] for entry in staging_pod()["containers"][0]["env"]}
    secrets = {name: value for name, value in environment.items() if name.endswith("_FILE")}
    assert secrets.keys() == {"STAGING_CLIENTS_FILE", "STAGING_ADMIN_TOKEN_FILE"}
    return from_environ(config["data"])


def test_a_staging_can_end_by_its_deadline_before_its_pod_is_killed() -> None:
    read, spec = staging_settings(), staging_pod()
    pause_s = int(spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert read.staging.deadline_s < read.service.grace_s - UNWIND_S
    assert read.service.grace_s + pause_s < spec["terminationGracePeriodSeconds"]


def test_settings_of_staging_are_settings() -> None:
    from integration.test_deploy_compose import settings as known

    from orchestrator import staging_settings as theirs

    (config,) = objects("staging", "ConfigMap")
    assert set(config["data"]) <= known(theirs)


def test_staging_scales_on_what_it_has_in_hand_before_its_places_are_taken() -> None:
    scaling = only("staging", "ScaledObject", "remarque-staging")["spec"]
    (trigger,) = scaling["triggers"]
    assert {"remarque_staging_running", "remarque_staging_waiting"} <= set(
        re.findall(r"remarque_\w+", trigger["metadata"]["query"])
    )
    assert float(trigger["metadata"]["threshold"]) < staging_settings().staging.concurrency
    behavior = scaling["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] > staging_settings().staging.deadline_s
    assert "replicas" not in only("staging", "Deployment", "remarque-staging")["spec"]


def test_a_drain_of_one_node_leaves_a_replica_of_staging() -> None:
    budget = only("staging", "PodDisruptionBudget", "remarque-staging")["spec"]
    assert only("staging", "ScaledObject", "remarque-staging")["spec"]["minReplicaCount"] > budget["maxUnavailable"]


def test_staging_is_reached_by_labelled_namespaces_alone_and_reaches_what_every_pod_may() -> None:
    policy = only("staging", "NetworkPolicy", "remarque-staging")["spec"]
    labels = only("staging", "Deployment", "remarque-staging")["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"] == labels
    assert policy["policyTypes"] == ["Ingress"]
    (rule,) = policy["ingress"]
    assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"remarque/stages": "true"}}}]
    everyone = only("base", "NetworkPolicy", "remarque")["spec"]["podSelector"]["matchLabels"]
    assert everyone.items() <= labels.items()


def test_staging_is_found_by_its_service_and_no_worker_is() -> None:
    service = only("staging", "Service", "remarque-staging")["spec"]
    for name, folder, found in (("remarque-staging", "staging", True), ("remarque", "base", False)):
        labels = only(folder, "Deployment", name)["spec"]["template"]["metadata"]["labels"]
        assert (service["selector"].items() <= labels.items()) is found
    ports = {port["name"] for port in staging_pod()["containers"][0]["ports"]}
    assert {port["targetPort"] for port in service["ports"]} <= ports
