"""``work`` and the signals that end it."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from orchestrator import work
from orchestrator.config import Settings, from_environ


class Stopped:
    """A worker that runs only to say whether it was asked to stop."""

    stopping = ran = False

    def stop(self) -> None:
        self.stopping = True

    def run(self) -> None:
        self.ran = self.stopping


@pytest.fixture
def process_1() -> Iterator[None]:
    """From process 1 the kernel keeps a signal that nobody handles."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("process_1")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_service_starts_is_obeyed_when_it_has(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    worker = Stopped()

    @contextmanager
    def starting(_: Settings) -> Iterator[Stopped]:
        signal.raise_signal(number)
        yield worker

    monkeypatch.setattr(work, "running_service", starting)
    monkeypatch.setattr(work, "log_to_stderr", lambda level: None)
    assert work.run(from_environ({})) == 0
    assert worker.ran
