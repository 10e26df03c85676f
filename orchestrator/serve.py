"""``python -m orchestrator serve``: virtual staging over HTTP."""

import argparse
import signal
import threading

from orchestrator.config import Settings
from orchestrator.staging_service import running_staging
from orchestrator.telemetry import log_to_stderr

DESCRIPTION = """
Serves virtual staging: POST /infer with a photograph's key gives the key of the furnished picture.
Settings come from the environment: docs/environment.md, and docs/staging.md for what callers need. SIGTERM ends it in
order: what waits is sent back or left to another replica, what runs may finish for most of GRACE_SECONDS.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter


def run(settings: Settings) -> int:
    """Serves until SIGTERM or Ctrl-C; 0 after an orderly stop."""
    log_to_stderr(settings.service.log_level)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    with running_staging(settings):
        stopping.wait()
    return 0
