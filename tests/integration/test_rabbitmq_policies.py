"""deploy/rabbitmq/policies.json on a real broker with replicated queues, declared as publishers and workers declare them."""

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pika
import pytest
from integration.management import Management
from integration.service import until
from pika.adapters.blocking_connection import BlockingChannel

from local.rabbitmq import RabbitMQ
from orchestrator.clients.queues import Queues

ROOT = Path(__file__).parents[2]
QUEUES = Queues()
POLICIES = {policy["name"]: policy for policy in json.loads((ROOT / "deploy/rabbitmq/policies.json").read_text())}
PERSISTENT = pika.BasicProperties(delivery_mode=2)


@pytest.fixture(scope="module")
def applied(killable_rabbitmq: RabbitMQ, management: Management) -> str:
    """What the script printed for a virtual host whose queues are quorum queues by default."""
    killable_rabbitmq.ctl("add_vhost", "replicated", "--default-queue-type", "quorum")
    killable_rabbitmq.ctl("set_permissions", "-p", "replicated", "remarque", ".*", ".*", ".*")
    killable_rabbitmq.ctl("set_user_tags", "remarque", "administrator")
    script = [sys.executable, "deploy/rabbitmq/apply_policies.py", f"{management.api_url}/replicated"]
    told = subprocess.run(script, cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    return told.stdout


@pytest.fixture
def channel(killable_rabbitmq: RabbitMQ, applied: str) -> Iterator[BlockingChannel]:
    connection = pika.BlockingConnection(pika.URLParameters(killable_rabbitmq.url + "replicated"))
    yield connection.channel()
    connection.close()


def declared(channel: BlockingChannel, name: str) -> int:
    return int(channel.queue_declare(name, durable=True, arguments=QUEUES.arguments(name)).method.message_count)


def emptied(channel: BlockingChannel) -> None:
    for name in (QUEUES.work, QUEUES.dead):
        declared(channel, name)
        channel.queue_purge(name)


def test_what_this_broker_does_not_know_is_left_out_with_the_reason(applied: str) -> None:
    assert "remarque-kept: not needed before RabbitMQ 4.0; this is 3." in applied
    assert "remarque-jobs: ^image_generation$" in applied


def test_publishers_and_workers_declare_without_arguments_and_get_replicated_queues_under_their_policies(
    channel: BlockingChannel, killable_rabbitmq: RabbitMQ
) -> None:
    emptied(channel)
    waiting, arguments = QUEUES.delayed(QUEUES.work, 5)
    channel.queue_declare(waiting, durable=True, arguments=arguments)
    told = killable_rabbitmq.ctl("list_queues", "-p", "replicated", "--no-table-headers", "name", "type", "policy")
    found = {name: (kind, policy) for name, kind, policy in (line.split("\t") for line in told.splitlines() if line)}
    assert found[QUEUES.work] == ("quorum", "remarque-jobs")
    assert found[QUEUES.dead] == ("quorum", "")
    assert found[waiting] == ("quorum", "remarque-waiting")


def test_a_job_that_ends_every_worker_goes_to_the_dead_queue_instead_of_round_for_ever(
    channel: BlockingChannel,
) -> None:
    emptied(channel)
    channel.basic_publish("", QUEUES.work, b"poison", PERSISTENT)
    deliveries = 0

    def buried() -> bool:
        nonlocal deliveries
        method, _, _ = channel.basic_get(QUEUES.work)
        if method is not None:
            deliveries += 1
            channel.basic_nack(method.delivery_tag, requeue=True)
        return declared(channel, QUEUES.dead) == 1

    until(buried, within_s=60)
    # Versions differ in whether the first delivery counts.
    assert deliveries - POLICIES["remarque-jobs"]["definition"]["delivery-limit"] in (0, 1)


def test_the_oldest_job_of_a_queue_that_is_full_is_kept_in_the_dead_queue(
    channel: BlockingChannel,
    killable_rabbitmq: RabbitMQ,
) -> None:
    emptied(channel)
    small = {**POLICIES["remarque-jobs"]["definition"], "max-length": 2}
    killable_rabbitmq.ctl(
        "set_policy", "-p", "replicated", "remarque-jobs", "^image_generation$", json.dumps(small), "--priority", "10"
    )
    time.sleep(1)  # a queue hears of its policy a moment later
    for number in range(3):
        channel.basic_publish("", QUEUES.work, b"%d" % number, PERSISTENT)
    until(lambda: declared(channel, QUEUES.dead) == 1)
    _, properties, body = channel.basic_get(QUEUES.dead, auto_ack=True)
    assert (body, properties.headers["x-first-death-reason"]) == (b"0", "maxlen")


def test_the_depth_of_each_queue_is_among_the_metrics_that_prometheus_is_told_to_scrape(
    channel: BlockingChannel,
    management: Management,
) -> None:
    declared(channel, QUEUES.work)
    page = f"{management.metrics_url}/metrics/detailed?family=queue_coarse_metrics"
    series = re.compile(
        rf'^rabbitmq_detailed_queue_messages_ready{{[^}}]*queue="{QUEUES.work}"[^}}]*}} \d', re.MULTILINE
    )

    def told() -> bool:
        with urllib.request.urlopen(page, timeout=10) as answer:
            return series.search(answer.read().decode()) is not None

    until(told)  # queues report every few seconds
