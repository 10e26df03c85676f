"""The broker's client on a real RabbitMQ, over links that break."""

import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from fakes.proxy import Proxy
from integration.broker import DELAY_S, RunningBroker, amqp_channel

from orchestrator.clients.queues import Delivery, Queues
from orchestrator.clients.rabbitmq import Broker
from orchestrator.errors import BrokerError

Open = Callable[..., Broker]


class Inbox:
    """Deliveries in order of arrival, acked at once if asked for."""

    def __init__(self, broker: Broker, queue: str, *, prefetch: int = 10, ack: bool = True) -> None:
        self.deliveries: list[Delivery] = []
        self._arrived = threading.Condition()
        self._broker, self._ack = broker, ack
        broker.consume(queue, prefetch, self._take)

    def _take(self, delivery: Delivery) -> None:
        if self._ack:
            self._broker.ack(delivery)
        with self._arrived:
            self.deliveries.append(delivery)
            self._arrived.notify_all()

    def wait(self, count: int, timeout_s: float = 15.0) -> list[Delivery]:
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.deliveries) >= count, timeout_s), len(self.deliveries)
            return list(self.deliveries)


def eventually(holds: Callable[[], bool], timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def test_publishers_may_declare_their_queue_before_us(
    rabbitmq: RunningBroker, queues: Queues, open_broker: Open
) -> None:
    with amqp_channel(rabbitmq.url) as publisher:
        publisher.queue_declare(queues.work, durable=True)
        publisher.basic_publish("", queues.work, b'{"first": "publisher"}')
    broker = open_broker(rabbitmq.url, queues)
    inbox = Inbox(broker, queues.work)
    broker.start()
    assert json.loads(inbox.wait(1)[0].body) == {"first": "publisher"}


def test_publishers_may_declare_their_queue_after_us(
    rabbitmq: RunningBroker, queues: Queues, open_broker: Open
) -> None:
    broker = open_broker(rabbitmq.url, queues)
    broker.start()
    broker.publish(queues.work, b"{}", message_id="first")
    with amqp_channel(rabbitmq.url) as publisher:
        assert publisher.queue_declare(queues.work, durable=True).method.message_count == 1


def test_real_name_of_the_queue_is_the_publishers(rabbitmq: RunningBroker, open_broker: Open) -> None:
    broker = open_broker(rabbitmq.url, Queues())
    broker.start()
    eventually(lambda: _unready(broker) == "")
    with amqp_channel(rabbitmq.url) as publisher:
        publisher.queue_declare("image_generation", durable=True)


def test_queue_that_somebody_declared_otherwise_is_reported_not_taken(
    rabbitmq: RunningBroker, queues: Queues, open_broker: Open
) -> None:
    with amqp_channel(rabbitmq.url) as operator:
        operator.queue_declare(queues.work, durable=True, arguments={"x-max-priority": 5})
    broker = open_broker(rabbitmq.url, queues, deadline_s=0.5)
    broker.start()
    with pytest.raises(BrokerError, match="x-max-priority"):
        broker.publish(queues.dead, b"{}", message_id="m")


def test_delivery_carries_headers_id_and_body(rabbitmq: RunningBroker, queues: Queues, open_broker: Open) -> None:
    broker = open_broker(rabbitmq.url, queues)
    inbox = Inbox(broker, queues.work)
    broker.start()
    body = json.dumps({"prompt": "초상화"}).encode()
    broker.publish(queues.work, body, message_id="m-1", headers={"x-attempt": 2, "x-error": "어"})
    delivery = inbox.wait(1)[0]
    assert (delivery.body, delivery.message_id, delivery.redelivered) == (body, "m-1", False)
    assert delivery.headers == {"x-attempt": 2, "x-error": "어"}


def test_body_of_10_mb_arrives_whole(rabbitmq: RunningBroker, queues: Queues, open_broker: Open) -> None:
    broker = open_broker(rabbitmq.url, queues)
    inbox = Inbox(broker, queues.work)
    broker.start()
    body = bytes(range(250)) * 40_000
    broker.publish(queues.work, body, message_id="big")
    assert inbox.wait(1)[0].body == body


def test_no_more_than_the_prefetch_is_under_way(rabbitmq: RunningBroker, queues: Queues, open_broker: Open) -> None:
    broker = open_broker(rabbitmq.url, queues)
    inbox = Inbox(broker, queues.work, prefetch=3, ack=False)
    broker.start()
    for n in range(5):
        broker.publish(queues.work, b"{}", message_id=str(n))
    broker.ack(inbox.wait(3)[0])
    assert [d.message_id for d in inbox.wait(4)] == ["0", "1", "2", "3"]
    time.sleep(0.1)
    assert len(inbox.deliveries) == 4


def test_message_without_a_queue_is_an_error(rabbitmq: RunningBroker, queues: Queues, open_broker: Open) -> None:
    broker = open_broker(rabbitmq.url, queues)
    broker.start()
    with pytest.raises(BrokerError, match="there is no queue nowhere"):
        broker.publish("nowhere", b"{}", message_id="m")


def test_delayed_message_comes_back_after_its_delay(rabbitmq: RunningBroker, queues: Queues, open_broker: Open) -> None:
    broker = open_broker(rabbitmq.url, queues)
    inbox = Inbox(broker, queues.work)
    broker.start()
    started = time.monotonic()
    broker.publish(queues.work, b"{}", message_id="again", headers={"x-attempt": 1}, delay_s=DELAY_S)
    delivery = inbox.wait(1)[0]
    assert DELAY_S <= time.monotonic() - started < DELAY_S + 2
    assert (delivery.message_id, delivery.headers["x-attempt"]) == ("again", 1)


def test_long_delay_does_not_hold_up_a_short_one(rabbitmq: RunningBroker, queues: Queues, open_broker: Open) -> None:
    broker = open_broker(rabbitmq.url, queues)
    inbox = Inbox(broker, queues.work)
    broker.start()
    broker.publish(queues.work, b"{}", message_id="long", delay_s=2.0)
    broker.publish(queues.work, b"{}", message_id="short", delay_s=DELAY_S)
    assert [d.message_id for d in inbox.wait(2)] == ["short", "long"]


def test_requeued_message_is_delivered_to_another_worker(
    rabbitmq: RunningBroker, queues: Queues, open_broker: Open
) -> None:
    stopping, taking_over = (open_broker(rabbitmq.url, queues) for _ in range(2))
    held = Inbox(stopping, queues.work, ack=False)
    stopping.start()
    stopping.publish(queues.work, b"{}", message_id="mine")
    delivery = held.wait(1)[0]
    stopping.stop_consuming()
    stopping.requeue(delivery)
    inbox = Inbox(taking_over, queues.work)
    taking_over.start()
    assert inbox.wait(1)[0].message_id == "mine"


def test_stopped_consumer_gets_nothing_more_and_can_still_ack(
    rabbitmq: RunningBroker, queues: Queues, open_broker: Open
) -> None:
    broker = open_broker(rabbitmq.url, queues)
    inbox = Inbox(broker, queues.work, ack=False)
    broker.start()
    broker.publish(queues.work, b"{}", message_id="before")
    delivery = inbox.wait(1)[0]
    broker.stop_consuming()
    broker.publish(queues.work, b"{}", message_id="after")
    broker.ack(delivery)
    broker.close()
    with amqp_channel(rabbitmq.url) as channel:
        _, properties, _ = channel.basic_get(queues.work)
        assert properties.message_id == "after"
        assert channel.basic_get(queues.work)[0] is None
    assert len(inbox.deliveries) == 1


def test_one_queue_is_stopped_while_another_is_still_consumed(
    rabbitmq: RunningBroker, queues: Queues, open_broker: Open
) -> None:
    broker = open_broker(rabbitmq.url, queues)
    jobs, events = Inbox(broker, queues.work), Inbox(broker, queues.events)
    broker.start()
    for queue in (queues.work, queues.events):
        broker.publish(queue, b"{}", message_id="before")
    jobs.wait(1)
    broker.stop_consuming(queues.work)
    for queue in (queues.work, queues.events):
        broker.publish(queue, b"{}", message_id="after")
    assert [d.message_id for d in events.wait(2)] == ["before", "after"]
    assert len(jobs.deliveries) == 1


def test_ack_of_a_lost_connection_is_dropped_and_counted(
    rabbitmq: RunningBroker, broker_proxy: tuple[Proxy, str], queues: Queues, open_broker: Open
) -> None:
    proxy, url = broker_proxy
    broker = open_broker(url, queues)
    inbox = Inbox(broker, queues.work, ack=False)
    broker.start()
    broker.publish(queues.work, b"{}", message_id="old")
    old = inbox.wait(1)[0]
    proxy.close_connections()
    again = inbox.wait(2)[1]
    assert (again.message_id, again.redelivered, again.delivery_tag) == ("old", True, old.delivery_tag)
    broker.ack(old)  # the same tag: unfenced, this would settle the delivery that another job thread holds
    eventually(lambda: broker.stale_acks == 1)
    broker.close()
    with amqp_channel(rabbitmq.url) as channel:
        assert channel.basic_get(queues.work)[1].message_id == "old"


def test_lost_connections_come_back_and_are_ready_again(
    broker_proxy: tuple[Proxy, str], queues: Queues, open_broker: Open
) -> None:
    proxy, url = broker_proxy
    broker = open_broker(url, queues)
    inbox = Inbox(broker, queues.work)
    broker.start()
    broker.publish(queues.work, b"{}", message_id="1")
    proxy.mode = "close"
    eventually(lambda: _unready(broker) != "")
    proxy.mode = "pass"
    broker.publish(queues.work, b"{}", message_id="2")
    eventually(lambda: "2" in {delivery.message_id for delivery in inbox.wait(2)})
    eventually(lambda: _unready(broker) == "")


def _unready(broker: Broker) -> str:
    try:
        broker.ready()
    except BrokerError as error:
        return str(error)
    return ""


def test_confirm_that_never_comes_ends_at_the_deadline(
    broker_proxy: tuple[Proxy, str], queues: Queues, open_broker: Open
) -> None:
    proxy, url = broker_proxy
    broker = open_broker(url, queues, confirm_timeout_s=0.3, deadline_s=1.5)
    broker.start()
    broker.publish(queues.work, b"{}", message_id="before")
    proxy.mode = "blackhole"
    started = time.monotonic()
    with pytest.raises(BrokerError, match=r"message m-7 .* within 1.5 s"):
        broker.publish(queues.work, b"{}", message_id="m-7")
    assert time.monotonic() - started < 2.0


def test_message_without_a_confirm_goes_out_again_under_the_same_id(
    broker_proxy: tuple[Proxy, str], queues: Queues, open_broker: Open
) -> None:
    proxy, url = broker_proxy
    broker = open_broker(url, queues, confirm_timeout_s=0.3)
    broker.start()
    broker.publish(queues.work, b"{}", message_id="before")
    proxy.mode = "mute"  # the message arrives, its confirm does not
    back = threading.Timer(0.6, lambda: setattr(proxy, "mode", "pass"))
    back.start()
    broker.publish(queues.work, b"{}", message_id="m-7")
    back.join()
    with broker.browse(queues.work) as browser:
        ids = [d.message_id for d in browser]
    assert ids[0] == "before"
    assert set(ids[1:]) == {"m-7"}


def test_link_that_hangs_is_found_by_the_heartbeat(
    rabbitmq: RunningBroker, broker_proxy: tuple[Proxy, str], queues: Queues, open_broker: Open
) -> None:
    proxy, url = broker_proxy
    broker = open_broker(url, queues, heartbeat_s=1)
    inbox = Inbox(broker, queues.work, ack=False)
    broker.start()
    broker.publish(queues.work, b"{}", message_id="held")
    inbox.wait(1)
    proxy.mode = "blackhole"
    time.sleep(3)  # three heartbeats: the broker gives up on us and hands the message to others
    proxy.mode = "pass"
    assert inbox.wait(2, timeout_s=20)[1].message_id == "held"


def test_callback_thread_keeps_heartbeats_flowing_while_a_job_runs(
    rabbitmq: RunningBroker, queues: Queues, open_broker: Open
) -> None:
    broker = open_broker(rabbitmq.url, queues, heartbeat_s=1)
    inbox = Inbox(broker, queues.work, ack=False)
    broker.start()
    broker.publish(queues.work, b"{}", message_id="long job")
    delivery = inbox.wait(1)[0]
    time.sleep(3.5)
    broker.ack(delivery)
    broker.close()
    assert (broker.stale_acks, len(inbox.deliveries)) == (0, 1)


def test_deleted_queue_is_declared_and_consumed_again(
    rabbitmq: RunningBroker, queues: Queues, open_broker: Open
) -> None:
    broker = open_broker(rabbitmq.url, queues)
    inbox = Inbox(broker, queues.work)
    broker.start()
    broker.publish(queues.work, b"{}", message_id="1")
    inbox.wait(1)
    with amqp_channel(rabbitmq.url) as operator:
        operator.queue_delete(queues.work)
    eventually(lambda: _published(broker, queues.work))
    assert inbox.wait(2)[1].message_id == "2"


def _published(broker: Broker, queue: str) -> bool:
    try:
        broker.publish(queue, b"{}", message_id="2")
    except BrokerError:
        return False
    return True


def test_deleted_dead_queue_takes_the_next_dead_message(
    rabbitmq: RunningBroker, queues: Queues, open_broker: Open
) -> None:
    broker = open_broker(rabbitmq.url, queues)
    broker.start()
    broker.publish(queues.dead, b"{}", message_id="before")
    with amqp_channel(rabbitmq.url) as operator:
        operator.queue_delete(queues.dead)
        broker.publish(queues.dead, b"{}", message_id="after")
        assert operator.queue_declare(queues.dead, durable=True).method.message_count == 1


def test_broker_that_is_not_there_is_an_error_without_the_password(open_broker: Open, queues: Queues) -> None:
    broker = open_broker("amqp://user:s3cr3t@127.0.0.1:1/", queues, deadline_s=0.3)
    broker.start()
    for act in (broker.ready, lambda: broker.depth("q"), lambda: broker.publish("q", b"", message_id="m")):
        with pytest.raises(BrokerError) as caught:
            act()
        assert "s3cr3t" not in str(caught.value)
        assert "s3cr3t" not in repr(caught.value)


def test_refused_login_is_told_without_the_password(
    rabbitmq: RunningBroker, queues: Queues, open_broker: Open, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "orchestrator")
    host = rabbitmq.url.rpartition("@")[2]
    broker = open_broker(f"amqp://remarque:s3cr3t@{host}", queues, deadline_s=1.0)
    broker.start()
    with pytest.raises(BrokerError, match="ACCESS_REFUSED"):
        broker.publish(queues.work, b"{}", message_id="m")
    assert "ACCESS_REFUSED" in caplog.text
    assert "s3cr3t" not in caplog.text


def test_close_returns_soon_even_if_nobody_answers(
    broker_proxy: tuple[Proxy, str], queues: Queues, open_broker: Open
) -> None:
    proxy, url = broker_proxy
    broker = open_broker(url, queues)
    broker.start()
    broker.publish(queues.work, b"{}", message_id="m")
    proxy.mode = "blackhole"
    started = time.monotonic()
    broker.close()
    assert time.monotonic() - started < 6
    assert not any(thread.name.startswith("remarque") for thread in threading.enumerate())


def test_many_threads_publish_at_once(rabbitmq: RunningBroker, queues: Queues, open_broker: Open) -> None:
    broker = open_broker(rabbitmq.url, queues)
    broker.start()

    def publish(prefix: int) -> None:
        for n in range(25):
            broker.publish(queues.work, b"{}", message_id=f"{prefix}-{n}")

    threads: list[Any] = [threading.Thread(target=publish, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert broker.depth(queues.work) == 200
