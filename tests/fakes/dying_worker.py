"""A worker that kills itself at one point of a job's life: ``python -m fakes.dying_worker POINT``."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from orchestrator.clients.rabbitmq import Broker
from orchestrator.config import from_environ
from orchestrator.denoising import Denoising
from orchestrator.ledger import Ledger
from orchestrator.outbox import Outbox
from orchestrator.work import run

# After which call, and after how many of them, the process is gone.
POINTS: dict[str, tuple[type, str, int]] = {
    "mid-step": (Denoising, "_measure", 6),
    "after-upload": (Ledger, "store_attempt", 1),
    "after-manifest": (Ledger, "commit", 1),
    "after-public-name": (Ledger, "reveal", 1),
    "after-event": (Outbox, "put", 1),
    "before-webhook": (Outbox, "_settle", 0),
    "after-ack": (Broker, "ack", 1),
}


def die_after(owner: type, name: str, calls: int) -> None:
    original: Callable[..., Any] = getattr(owner, name)
    left = [calls]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, wrapped)


if __name__ == "__main__":
    die_after(*POINTS[sys.argv[1]])
    sys.exit(run(from_environ(os.environ)))
