"""Confirms, refusals and acks on a scripted channel: what a real broker does too seldom to wait for."""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pika
import pytest

from orchestrator.clients import publishing
from orchestrator.clients.consuming import Consumer
from orchestrator.clients.publishing import Publisher
from orchestrator.clients.queues import Delivery, Queues
from orchestrator.errors import BrokerError

Ack, Nack = pika.spec.Basic.Ack, pika.spec.Basic.Nack


class ScriptedChannel:
    """Records what is published and settled; answers declarations at once."""

    def __init__(self) -> None:
        self.is_open = True
        self.queues: set[str] = set()
        self.published: list[tuple[str, str]] = []
        self.settled: list[tuple[str, int]] = []
        self.on_published: Callable[[], None] = lambda: None
        self.confirm: Callable[[Any], None]
        self.returned: Callable[..., None]
        self.on_message: Callable[..., None]

    def confirm_delivery(self, callback: Callable[[Any], None]) -> None:
        self.confirm = callback

    def add_on_return_callback(self, callback: Callable[..., None]) -> None:
        self.returned = callback

    def add_on_cancel_callback(self, callback: Callable[..., None]) -> None:
        pass

    def queue_declare(self, queue: str, callback: Callable[[Any], None] | None = None, **_: object) -> None:
        self.queues.add(queue)
        if callback:
            callback(None)

    def basic_qos(self, prefetch_count: int) -> None:
        pass

    def basic_publish(self, _: str, target: str, body: bytes, properties: Any, mandatory: bool) -> None:
        assert mandatory
        self.published.append((target, properties.message_id))
        self.on_published()

    def basic_consume(self, queue: str, on_message: Callable[..., None], callback: Callable[[Any], None]) -> str:
        self.on_message = on_message
        callback(None)
        return "tag"

    def basic_cancel(self, tag: str, callback: Callable[[Any], None]) -> None:
        self.on_cancelled = callback

    def basic_ack(self, tag: int) -> None:
        self.settled.append(("ack", tag))

    def basic_nack(self, tag: int, requeue: bool) -> None:
        assert requeue
        self.settled.append(("requeue", tag))

    def answers(self, kind: Any, tag: int, multiple: bool = False) -> None:
        self.confirm(SimpleNamespace(method=kind(tag, multiple)))


class ScriptedLink:
    """Runs what is posted in the caller's thread, while there is a channel."""

    def __init__(self) -> None:
        self.epoch, self.blocked, self.failure = 1, "", "gone"
        self.dropped: list[str] = []
        self.connected = True

    def keep_channel(self, on_open: Callable[[Any], None], on_lost: Callable[[str], None]) -> None:
        self.open, self.lose = on_open, on_lost

    def post(self, act: Callable[[], None]) -> None:
        if not self.connected:
            raise BrokerError("the broker is not connected")
        act()

    def drop(self, epoch: int, why: str) -> None:
        self.dropped.append(why)


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> ScriptedLink:
    monkeypatch.setattr(publishing, "REFUSED_PAUSE_S", 0.01)
    return ScriptedLink()


@pytest.fixture
def channel() -> ScriptedChannel:
    return ScriptedChannel()


def publisher(link: ScriptedLink, confirm_timeout_s: float = 0.05, deadline_s: float = 1.0) -> Publisher:
    return Publisher(link, Queues(), confirm_timeout_s=confirm_timeout_s, deadline_s=deadline_s)


def message(method_tag: int) -> tuple[Any, Any, bytes]:
    method = SimpleNamespace(delivery_tag=method_tag, redelivered=False)
    return method, SimpleNamespace(headers=None, message_id="m", timestamp=None), b"{}"


def test_refused_message_is_offered_again_under_its_id(link: ScriptedLink, channel: ScriptedChannel) -> None:
    answers = iter([Nack, Ack])
    channel.on_published = lambda: channel.answers(next(answers), len(channel.published))
    sending = publisher(link)
    link.open(channel)
    sending.publish("q", b"{}", message_id="m-1", headers={})
    assert channel.published == [("q", "m-1"), ("q", "m-1")]


def test_one_confirm_settles_every_message_before_it(link: ScriptedLink, channel: ScriptedChannel) -> None:
    three = threading.Barrier(4)
    sending = publisher(link, confirm_timeout_s=5)
    link.open(channel)
    lock = threading.Lock()

    def publish(number: int) -> None:
        three.wait()
        sending.publish("q", b"{}", message_id=str(number), headers={})

    link.post = lambda act: _locked(lock, act)  # type: ignore[method-assign]
    threads = [threading.Thread(target=publish, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    three.wait()
    while len(channel.published) < 3:
        threading.Event().wait(0.01)
    channel.answers(Ack, 3, multiple=True)
    for thread in threads:
        thread.join(2)
    assert not any(thread.is_alive() for thread in threads)


def _locked(lock: threading.Lock, act: Callable[[], None]) -> None:
    with lock:
        act()


def test_silence_cuts_the_connection_once_per_try_and_ends_at_the_deadline(
    link: ScriptedLink, channel: ScriptedChannel
) -> None:
    sending = publisher(link, confirm_timeout_s=0.05, deadline_s=0.2)
    link.open(channel)
    with pytest.raises(BrokerError, match=r"m-1 for q was not confirmed within 0.2 s: silent, no confirm came"):
        sending.publish("q", b"{}", message_id="m-1", headers={})
    assert link.dropped
    assert len(link.dropped) in (len(channel.published), len(channel.published) - 1)  # the last try may be too short


@pytest.mark.parametrize("blocked", ["", "the broker blocks publishers: low on memory"])
def test_who_has_less_time_than_a_confirm_may_take_cuts_nobody_s_connection(
    link: ScriptedLink, channel: ScriptedChannel, blocked: str
) -> None:
    link.blocked = blocked
    sending = publisher(link, confirm_timeout_s=5.0)
    link.open(channel)
    with pytest.raises(BrokerError, match="probe for q was not confirmed within 0.1 s: silent"):
        sending.publish("q", b"{}", message_id="probe", headers={}, deadline_s=0.1)
    assert link.dropped == []


def test_blocked_connection_is_waited_for_and_not_cut(link: ScriptedLink, channel: ScriptedChannel) -> None:
    link.blocked = "the broker blocks publishers: low on memory"
    sending = publisher(link, confirm_timeout_s=0.05)
    link.open(channel)
    threading.Timer(0.2, lambda: channel.answers(Ack, 1)).start()
    sending.publish("q", b"{}", message_id="m-1", headers={})
    assert (len(channel.published), link.dropped) == (1, [])


def test_broker_that_unblocks_has_a_whole_wait_for_its_confirm(channel: ScriptedChannel) -> None:
    class Unblocks(ScriptedLink):
        looks = 0

        @property  # type: ignore[override]
        def blocked(self) -> str:
            self.looks += 1
            if self.looks == 2:  # the second wait begins
                channel.answers(Ack, 1)
            return "low on memory" if self.looks == 1 else ""

        @blocked.setter
        def blocked(self, why: str) -> None: ...

    link = Unblocks()
    sending = publisher(link, confirm_timeout_s=0.05)
    link.open(channel)
    sending.publish("q", b"{}", message_id="m-1", headers={})
    assert (len(channel.published), link.dropped) == (1, [])


def test_only_the_message_without_a_queue_is_reported(link: ScriptedLink, channel: ScriptedChannel) -> None:
    def bounce() -> None:
        target, message_id = channel.published[-1]
        tag = len(channel.published)
        if target == "nowhere":
            channel.returned(channel, SimpleNamespace(routing_key=target), SimpleNamespace(message_id=message_id), b"")
        channel.answers(Ack, tag)

    channel.on_published = bounce
    sending = publisher(link)
    link.open(channel)
    sending.publish("somewhere", b"{}", message_id="same id", headers={})
    with pytest.raises(BrokerError, match="there is no queue nowhere"):
        sending.publish("nowhere", b"{}", message_id="same id", headers={})


@pytest.mark.parametrize("queue", Queues().lasting)
def test_queue_that_an_operator_deleted_is_declared_again_on_the_way(
    link: ScriptedLink, channel: ScriptedChannel, queue: str
) -> None:
    channel.on_published = lambda: channel.answers(Ack, 1)
    sending = publisher(link)
    link.open(channel)
    channel.queues.clear()
    sending.publish(queue, b"{}", message_id="m", headers={})
    assert channel.queues == {queue}


def test_channel_that_closes_gives_its_reason(link: ScriptedLink, channel: ScriptedChannel) -> None:
    sending = publisher(link, deadline_s=0.1)
    link.open(channel)
    link.lose("PRECONDITION_FAILED (406)")
    with pytest.raises(BrokerError, match="PRECONDITION_FAILED"):
        sending.publish("q", b"{}", message_id="m", headers={})


def test_message_on_a_channel_that_is_lost_goes_out_on_the_next(link: ScriptedLink, channel: ScriptedChannel) -> None:
    following = ScriptedChannel()
    following.on_published = lambda: following.answers(Ack, 1)

    def lose() -> None:
        link.lose("the peer went away")
        link.open(following)

    channel.on_published = lose
    sending = publisher(link, confirm_timeout_s=5, deadline_s=5)
    link.open(channel)
    sending.publish("q", b"{}", message_id="m-1", headers={})
    assert channel.published == following.published == [("q", "m-1")]


def test_ack_reaches_the_channel_that_delivered_or_nobody(link: ScriptedLink, channel: ScriptedChannel) -> None:
    consumer, got = Consumer(link, Queues()), list[Delivery]()
    consumer.consume("q", 1, got.append)
    link.open(channel)
    channel.on_message(channel, *message(1))
    link.lose("the peer went away")
    following = ScriptedChannel()
    link.open(following)
    following.on_message(following, *message(1))
    for delivery in got:
        consumer.ack(delivery)
    assert (channel.settled, following.settled, consumer.stale_acks) == ([], [("ack", 1)], 1)


def test_delivery_has_only_headers_with_a_name(link: ScriptedLink, channel: ScriptedChannel) -> None:
    consumer, got = Consumer(link, Queues()), list[Delivery]()
    consumer.consume("q", 1, got.append)
    link.open(channel)
    method, properties, body = message(1)
    properties.headers = {b"\xff": 1, "x-attempt": 2}
    channel.on_message(channel, method, properties, body)
    assert got[0].headers == {"x-attempt": 2}


def test_ack_without_a_connection_is_dropped_and_counted(link: ScriptedLink, channel: ScriptedChannel) -> None:
    consumer, got = Consumer(link, Queues()), list[Delivery]()
    consumer.consume("q", 1, got.append)
    link.open(channel)
    channel.on_message(channel, *message(1))
    link.connected = False
    consumer.ack(got[0])
    consumer.requeue(got[0])
    assert consumer.stale_acks == 2


def test_delivery_that_crosses_a_stop_is_handed_back_at_once(link: ScriptedLink, channel: ScriptedChannel) -> None:
    consumer, got = Consumer(link, Queues()), list[Delivery]()
    consumer.consume("q", 1, got.append)
    link.open(channel)
    stopper = threading.Thread(target=consumer.stop)
    stopper.start()
    while not hasattr(channel, "on_cancelled"):
        threading.Event().wait(0.01)
    channel.on_message(channel, *message(7))
    channel.on_cancelled(None)
    stopper.join(2)
    assert (channel.settled, got) == ([("requeue", 7)], [])


def test_stopped_consumer_does_not_subscribe_again(link: ScriptedLink, channel: ScriptedChannel) -> None:
    consumer = Consumer(link, Queues())
    consumer.consume("q", 1, lambda delivery: None)
    link.connected = False
    consumer.stop()
    link.open(channel)
    assert not hasattr(channel, "on_message")


def test_consumer_says_which_queue_is_not_consumed_and_why(link: ScriptedLink, channel: ScriptedChannel) -> None:
    consumer = Consumer(link, Queues())
    consumer.consume("q", 1, lambda delivery: None)
    with pytest.raises(BrokerError, match="queue q is not consumed: the broker did not answer yet"):
        consumer.check()
    link.open(channel)
    consumer.check()
    link.lose("NOT_FOUND (404)")
    with pytest.raises(BrokerError, match="NOT_FOUND"):
        consumer.check()
