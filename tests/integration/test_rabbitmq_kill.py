"""kill -9 of a real broker: nothing that was confirmed or unacked is lost."""

import threading
import time
from collections.abc import Callable

from integration.broker import DELAY_S, amqp_channel

from local.rabbitmq import RabbitMQ
from orchestrator.clients.queues import Delivery, Queues
from orchestrator.clients.rabbitmq import Broker
from orchestrator.errors import BrokerError

Open = Callable[..., Broker]


def test_unacked_job_is_delivered_again_after_the_broker_was_killed(
    killable_rabbitmq: RabbitMQ, queues: Queues, open_broker: Open
) -> None:
    broker = open_broker(killable_rabbitmq.url, queues, deadline_s=60)
    deliveries: list[Delivery] = []
    twice = threading.Event()

    def take(delivery: Delivery) -> None:
        deliveries.append(delivery)
        if len(deliveries) == 2:
            twice.set()

    broker.consume(queues.work, 10, take)
    broker.start()
    broker.publish(queues.work, b"{}", message_id="job")
    killable_rabbitmq.kill_9()
    killable_rabbitmq.restart()
    assert twice.wait(60)
    assert [(d.message_id, d.connection_generation) for d in deliveries] == [("job", 1), ("job", 2)]


def test_every_message_that_was_confirmed_outlives_a_kill_of_the_broker(
    killable_rabbitmq: RabbitMQ, queues: Queues, open_broker: Open
) -> None:
    broker = open_broker(killable_rabbitmq.url, queues, confirm_timeout_s=5, deadline_s=5)
    broker.start()
    confirmed: set[str] = set()
    stop = threading.Event()

    def publish(prefix: int) -> None:
        n = 0
        while not stop.is_set():
            n += 1
            try:
                broker.publish(queues.work, b"{}", message_id=f"{prefix}-{n}")
            except BrokerError:
                continue
            confirmed.add(f"{prefix}-{n}")

    threads = [threading.Thread(target=publish, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    _wait(lambda: len(confirmed) > 50)
    killable_rabbitmq.kill_9()
    before = len(confirmed)
    killable_rabbitmq.restart()
    _wait(lambda: len(confirmed) > before + 50)
    stop.set()
    for thread in threads:
        thread.join()
    with amqp_channel(killable_rabbitmq.url) as channel:
        depth = channel.queue_declare(queues.work, durable=True).method.message_count
        there = {channel.basic_get(queues.work)[1].message_id for _ in range(depth)}
    assert confirmed - there == set()


def test_publisher_waits_while_the_broker_is_short_of_memory(
    killable_rabbitmq: RabbitMQ, queues: Queues, open_broker: Open
) -> None:
    broker = open_broker(killable_rabbitmq.url, queues, confirm_timeout_s=1, deadline_s=60)
    broker.start()
    broker.publish(queues.work, b"{}", message_id="before")
    killable_rabbitmq.ctl("set_vm_memory_high_watermark", "0.00001")
    relieved = threading.Timer(2.5, killable_rabbitmq.ctl, ("set_vm_memory_high_watermark", "0.4"))
    relieved.start()
    broker.publish(queues.work, b"{}", message_id="while it is short")
    relieved.join()
    with broker.browse(queues.work) as browser:
        assert [d.message_id for d in browser] == ["before", "while it is short"]


def test_connections_that_an_operator_closes_come_back(
    killable_rabbitmq: RabbitMQ, queues: Queues, open_broker: Open
) -> None:
    broker = open_broker(killable_rabbitmq.url, queues, deadline_s=60)
    arrived = threading.Event()
    broker.consume(queues.work, 1, lambda delivery: arrived.set())
    broker.start()
    _wait(lambda: _is_ready(broker))
    killable_rabbitmq.ctl("close_all_connections", "maintenance")
    broker.publish(queues.work, b"{}", message_id="m")
    assert arrived.wait(30)


def test_cluster_replicates_every_queue_by_its_own_settings_alone(
    killable_rabbitmq: RabbitMQ, open_broker: Open
) -> None:
    """docs/queue.md: the virtual host's default type, and a policy for the retry queues; nobody passes arguments."""
    queues = Queues(delays_s=(DELAY_S,))
    killable_rabbitmq.ctl("add_vhost", "cluster", "--default-queue-type", "quorum")
    killable_rabbitmq.ctl("set_permissions", "-p", "cluster", "remarque", ".*", ".*", ".*")
    policy = '{"dead-letter-strategy":"at-least-once","overflow":"reject-publish"}'
    killable_rabbitmq.ctl("set_policy", "-p", "cluster", "retry", r"\.retry\.", policy, "--apply-to", "queues")
    broker = open_broker(f"{killable_rabbitmq.url}cluster", queues, deadline_s=60)
    arrived = threading.Event()
    broker.consume(queues.work, 1, lambda delivery: arrived.set())
    broker.start()
    broker.publish(queues.work, b"{}", message_id="m", delay_s=DELAY_S)
    assert arrived.wait(30)
    told = killable_rabbitmq.ctl("list_queues", "-p", "cluster", "name", "type", "policy").splitlines()[1:]
    types = {line.split("\t")[0]: line.split("\t")[1:] for line in told}
    assert {kind for kind, _ in types.values()} == {"quorum"}
    assert types[queues.delayed(queues.work, DELAY_S)[0]][1] == "retry"
    broker.close()
    killable_rabbitmq.ctl("delete_vhost", "cluster")


def _is_ready(broker: Broker) -> bool:
    try:
        broker.ready()
    except BrokerError:
        return False
    return True


def _wait(holds: Callable[[], bool], timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
