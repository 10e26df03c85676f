"""The private broker on this machine: found, started, killed with its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from integration.broker import amqp_channel

from local.environment import state_folder
from local.rabbitmq import Installation, RabbitMQ, find_installation, private_rabbitmq
from orchestrator.errors import ServiceError

ROOT = Path(__file__).parents[2]


def _children(pid: int) -> set[int]:
    """All descendants, with those that sit in sessions of their own."""
    table = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in map(str.split, table.splitlines())}
    found, todo = set(), [pid]
    while todo:
        here = todo.pop()
        below = {child for child, parent in parents.items() if parent == here}
        found |= below
        todo += below
    return found


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_broker_and_its_port_mapper_end_with_a_parent_that_is_killed(killable_rabbitmq: RabbitMQ) -> None:
    del killable_rabbitmq  # its packages are unpacked by now
    command = [sys.executable, "-m", "local.rabbitmq"]
    environ = {name: value for name, value in os.environ.items() if name != "RABBITMQ_URL"}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environ) as parent:
        assert parent.stdout is not None
        url = parent.stdout.readline().strip()
        with amqp_channel(url) as channel:
            channel.queue_declare("here", durable=True)
        processes = _children(parent.pid)
        parent.send_signal(signal.SIGKILL)
    assert len(processes) >= 2
    deadline = time.monotonic() + 15
    while not all(map(_is_gone, processes)):
        assert time.monotonic() < deadline, "processes outlived their parent"
        time.sleep(0.1)


def test_next_start_removes_the_data_of_a_killed_one_and_unpacks_nothing_again(killable_rabbitmq: RabbitMQ) -> None:
    state = state_folder()
    left_over = state / "rabbitmq" / "run-999999999-abc"
    left_over.mkdir()
    unpacked = find_installation(state)
    before = unpacked.server.stat().st_ctime_ns
    started = time.monotonic()
    assert find_installation(state) == unpacked
    assert time.monotonic() - started < 1
    with private_rabbitmq(state) as another:
        assert another.url != killable_rabbitmq.url
    assert not left_over.exists()
    assert unpacked.server.stat().st_ctime_ns == before


def test_broker_that_cannot_start_says_why_and_what_to_do(tmp_path: Path, killable_rabbitmq: RabbitMQ) -> None:
    working = find_installation(state_folder())
    broken = tmp_path / "rabbitmq-server"
    broken.write_text("#!/bin/sh\necho libtinfo.so.6 is missing\nexit 3\n")
    broken.chmod(0o755)
    broker = RabbitMQ(Installation(broken, working.erlang_bin), tmp_path / "run")
    with pytest.raises(ServiceError, match=r"ended with 3 .*libtinfo.so.6 is missing.*RABBITMQ_URL"):
        broker.start()
    broker.stop()
