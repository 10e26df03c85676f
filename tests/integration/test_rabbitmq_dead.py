"""``python -m orchestrator dead`` on a real broker."""

import argparse
import json
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from integration.broker import RunningBroker

from orchestrator import dead
from orchestrator.clients.queues import Delivery, Queues, death_headers
from orchestrator.clients.rabbitmq import Broker

Open = Callable[..., Broker]
NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    dead.add_arguments(parser)
    return parser.parse_args(words)


@pytest.fixture
def graveyard(rabbitmq: RunningBroker, queues: Queues, open_broker: Open) -> Callable[[], Broker]:
    """Two jobs and an event in the dead queue; makes the unstarted clients that the command gets."""
    broker = open_broker(rabbitmq.url, queues)
    broker.start()
    for number, origin in ((1, queues.work), (2, queues.work), (3, queues.events)):
        body = json.dumps({"task_id": f"task-{number}", "data": {"generation_id": number, "prompt": "노을"}}).encode()
        was = Delivery(body, {}, f"m-{number}", False, origin, 1, 1)
        headers = death_headers(was, reason="GPU_OOM", error=f"no room for {number}", attempts=3, now=NOW)
        broker.publish(queues.dead, body, message_id=f"m-{number}", headers=headers)
    return lambda: open_broker(rabbitmq.url, queues)


def test_list_shows_reasons_and_leaves_everything_in_its_order(
    graveyard: Callable[[], Broker], capsys: pytest.CaptureFixture[str]
) -> None:
    assert dead.run(arguments("list"), graveyard()) == 0
    first = capsys.readouterr().out
    dead.run(arguments("list"), graveyard())
    assert capsys.readouterr().out == first
    lines = first.splitlines()[1:4]
    assert [line.split()[:4] for line in lines] == [[f"m-{n}", str(n), "GPU_OOM", "3"] for n in (1, 2, 3)]
    assert "2026-11-22T10:00:00+00:00" in first
    assert "no room for 2" in first


def test_broker_that_no_worker_used_yet_has_no_dead_messages(
    rabbitmq: RunningBroker, queues: Queues, open_broker: Open, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dead.run(arguments("list"), open_broker(rabbitmq.url, queues)) == 0
    assert capsys.readouterr().out == f"0 in {queues.dead}\n"


def test_show_finds_a_message_by_its_generation(
    graveyard: Callable[[], Broker], capsys: pytest.CaptureFixture[str]
) -> None:
    assert dead.run(arguments("show", "2"), graveyard()) == 0
    told = capsys.readouterr().out
    assert "x-error: no room for 2" in told
    assert '"prompt": "노을"' in told


def test_replay_moves_one_job_back_with_its_attempts_uncounted(
    graveyard: Callable[[], Broker], queues: Queues, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dead.run(arguments("replay", "m-2"), graveyard()) == 0
    look = graveyard()
    with look.browse(queues.work) as browser:
        replayed = list(browser)
    with look.browse(queues.dead) as browser:
        left = [d.message_id for d in browser]
    assert [(d.message_id, d.headers) for d in replayed] == [
        ("m-2", {"x-life": 1, "x-first-death": "2026-11-22T10:00:00+00:00"})
    ]
    assert left == ["m-1", "m-3"]


def test_replay_of_all_sends_events_and_jobs_where_they_came_from(
    graveyard: Callable[[], Broker], queues: Queues, capsys: pytest.CaptureFixture[str]
) -> None:
    dead.run(arguments("replay", "--all"), graveyard())
    assert capsys.readouterr().out.splitlines()[-1] == "3 replayed"
    look = graveyard()
    assert [look.depth(queue) for queue in (queues.work, queues.events, queues.dead)] == [2, 1, 0]


def test_purge_asks_before_it_removes(
    graveyard: Callable[[], Broker], queues: Queues, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dead.run(arguments("purge"), graveyard()) == 1
    assert graveyard().depth(queues.dead) == 3
    assert dead.run(arguments("purge", "--yes"), graveyard()) == 0
    assert graveyard().depth(queues.dead) == 0


def test_unknown_id_is_said(graveyard: Callable[[], Broker], capsys: pytest.CaptureFixture[str]) -> None:
    for action in ("show", "replay"):
        assert dead.run(arguments(action, "m-9"), graveyard()) == 1
        assert "no message m-9" in capsys.readouterr().out


def test_escape_sequences_of_a_publisher_do_not_reach_the_terminal(
    graveyard: Callable[[], Broker], queues: Queues, capsys: pytest.CaptureFixture[str]
) -> None:
    broker = graveyard()
    broker.start()
    broker.publish(queues.dead, b"\x1b]0;owned\x07", message_id="m-\x1b[2J", headers={"x-error": "\x1b[31mred"})
    dead.run(arguments("list"), graveyard())
    dead.run(arguments("show", "m-\\x1b[2J"), graveyard())
    told = capsys.readouterr().out
    assert "\x1b" not in told
    assert "m-\\x1b[2J" in told
