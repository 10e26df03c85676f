"""The whole service on real parts, as processes that tests may kill: broker, workers, backend, results on disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pika
import pytest
from fakes.backend import Backend
from integration.broker import amqp_channel

from local.rabbitmq import RabbitMQ
from orchestrator.clients.queues import Queues

ROOT = Path(__file__).parents[2]
QUEUES = Queues()


@dataclass
class Service:
    """Workers on one broker and one backend; ``settings`` are added to every worker's environment."""

    rabbitmq: RabbitMQ
    backend: Backend
    folder: Path
    settings: dict[str, str] = field(default_factory=dict)
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start_worker(self, dying: str | None = None, **settings: str) -> subprocess.Popen[bytes]:
        module = ["orchestrator", "work"] if dying is None else ["fakes.dying_worker", dying]
        environment = {
            "RABBITMQ_URL": self.rabbitmq.url,
            "RESULT_STORE": self.results.as_uri(),
            "ALLOWED_INPUT_PREFIXES": self.folder.as_uri() + "/",
            "BACKEND_URL": self.backend.url,
            "INTERNAL_API_TOKEN": self.backend.token,
            "INFERENCE_MODE": "mock",
            "MOCK_SECONDS": "0.3",
            "HTTP_ADDRESS": "127.0.0.1:0",
            "GRACE_SECONDS": "6",
            "DEVELOPMENT_KEY_FOLDER": str(self.folder / "key"),
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
            **self.settings,
            **settings,
        }
        with (self.folder / f"worker-{len(self.workers)}.log").open("wb") as log:
            worker = subprocess.Popen(
                [sys.executable, "-W", "error", "-m", *module], cwd=ROOT, stderr=log, env=os.environ | environment
            )
        self.workers.append(worker)
        return worker

    @property
    def results(self) -> Path:
        return self.folder / "results"

    def publish(self, *messages: dict[str, object] | bytes) -> None:
        """As every existing publisher does; a broker that is away is waited for."""
        until_s = time.monotonic() + 30
        while True:
            try:
                with amqp_channel(self.rabbitmq.url) as channel:
                    channel.confirm_delivery()
                    channel.queue_declare("image_generation", durable=True)
                    for message in messages:
                        body = message if isinstance(message, bytes) else json.dumps(message).encode()
                        channel.basic_publish("", "image_generation", body, pika.BasicProperties(delivery_mode=2))
                return
            except pika.exceptions.AMQPError:
                if time.monotonic() > until_s:
                    raise
                time.sleep(0.3)

    def wait(self, generation_ids: range | list[int], within_s: float = 60.0) -> None:
        """Until the backend has an outcome for each."""
        until_s = time.monotonic() + within_s
        while missing := [number for number in generation_ids if not self.backend.outcomes(number)]:
            if time.monotonic() > until_s:
                pytest.fail(f"no outcome within {within_s:g} s for {missing[:20]}; logs:\n{self.logs()}")
            time.sleep(0.05)

    def dead(self) -> list[tuple[bytes, dict[str, object]]]:
        """What lies in the dead queue, oldest first; it stays there."""
        found = []
        with amqp_channel(self.rabbitmq.url) as channel:
            while True:
                method, properties, body = channel.basic_get(QUEUES.dead)
                if method is None:
                    return found
                found.append((body, dict(properties.headers or {})))

    def dead_count(self) -> int:
        with amqp_channel(self.rabbitmq.url) as channel:
            return int(channel.queue_declare(QUEUES.dead, durable=True).method.message_count)

    def command(self, *arguments: str) -> int:
        """Runs ``python -m orchestrator ...`` on this broker."""
        environment = os.environ | {"RABBITMQ_URL": self.rabbitmq.url}
        return subprocess.run([sys.executable, "-m", "orchestrator", *arguments], cwd=ROOT, env=environment).returncode

    def logs(self) -> str:
        """The last lines of every worker."""
        logs = sorted(self.folder.glob("worker-*.log"))
        return "\n".join(f"== {log.name}\n" + "\n".join(log.read_text().splitlines()[-12:]) for log in logs)

    def settled(self) -> bool:
        """Whether no message waits or is held, outside the dead queue."""
        with amqp_channel(self.rabbitmq.url) as channel:
            return all(
                channel.queue_declare(queue, durable=True).method.message_count == 0
                for queue in (QUEUES.work, QUEUES.events)
            )

    def wait_settled(self, within_s: float = 30.0) -> None:
        until_s = time.monotonic() + within_s
        while not self.settled():
            if time.monotonic() > until_s:
                queues = self.rabbitmq.ctl("list_queues", "name", "messages_ready", "messages_unacknowledged")
                pytest.fail(f"messages are left after {within_s:g} s: {queues}\n{self.logs()}")
            time.sleep(0.1)

    def stop(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGCONT)
                worker.kill()
            worker.wait(10)


def message(generation_id: int, **data: object) -> dict[str, object]:
    """A small job."""
    fields: dict[str, object] = {
        "generation_id": generation_id,
        "prompt": "sea",
        "seed": generation_id,
        "num_inference_steps": 10,
        "aspect_ratio": "1:1",
        **data,
    }
    return {"task_id": f"task-{generation_id}", "type": "image_generation", "data": fields}


def until(happened: Callable[[], object], within_s: float = 30.0) -> None:
    end = time.monotonic() + within_s
    while not happened():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


@pytest.fixture
def service(killable_rabbitmq: RabbitMQ, tmp_path: Path) -> Iterator[Service]:
    """A service without workers yet, its queues empty."""
    with amqp_channel(killable_rabbitmq.url) as channel:
        for name in (QUEUES.work, QUEUES.dead, QUEUES.events, QUEUES.probe):
            channel.queue_delete(name)
        for target in (QUEUES.work, QUEUES.events):
            for delay_s in QUEUES.delays_s:
                channel.queue_delete(QUEUES.delayed(target, delay_s)[0])
    (tmp_path / "results").mkdir()
    with Backend() as backend:
        made = Service(killable_rabbitmq, backend, tmp_path)
        try:
            yield made
        finally:
            made.stop()
