"""``python -m orchestrator work``: the service, from the queue to the webhook."""

import argparse
import signal
import threading
from collections.abc import Callable

from orchestrator.config import Settings
from orchestrator.service import running_service
from orchestrator.telemetry import log_to_stderr

DESCRIPTION = """
Takes jobs from the queue image_generation, makes, signs and stores their pictures and tells the backend.
Settings come from the environment: docs/environment.md. SIGTERM ends it in order: what has not begun goes
back to the queue, what runs is finished or kept to be resumed, and outcomes are delivered.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter


def run(settings: Settings) -> int:
    """Works until SIGTERM or Ctrl-C; 0 after an orderly stop."""
    log_to_stderr(settings.service.log_level)
    # From the beginning: the kernel keeps a signal that nobody handles from process 1, which a container's worker is.
    early = threading.Event()
    _on_signals(early.set)
    with running_service(settings) as worker:
        _on_signals(worker.stop)
        if early.is_set():
            worker.stop()
        worker.run()
    return 0


def _on_signals(act: Callable[[], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: act())
