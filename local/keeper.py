"""Runs one service so that it cannot outlive whoever started it.

``python -m local.keeper LOG LEFTOVERS COMMAND...`` starts COMMAND with its output appended to LOG and prints its
process id. A line on stdin (seconds of grace) asks the service to end; the end of stdin, which is what the death of the
parent looks like from here, kills it at once. Either way the whole process group goes, the service's own children
included, and then the files whose paths begin with LEFTOVERS ("" for none).

A process of its own, because PR_SET_PDEATHSIG follows the *thread* that forked: set straight from a program with
threads, it would kill the service when one of them returns.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
CANNOT_START = 127
"""Exit status when the command could not be executed at all; the reason is in the log."""


def keep(command: Sequence[str]) -> int:
    """Run ``command`` to its end and return its exit status, 128 + n after signal n."""
    libc = ctypes.CDLL(None)
    # Children of a dead service are handed to this process, so that none is left without a parent.
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def die_with_keeper() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    output = sys.stderr.fileno()
    try:
        service = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,
            preexec_fn=die_with_keeper,
        )
    except OSError as error:
        print(f"{command[0]} cannot be executed: {error}", file=sys.stderr, flush=True)
        return CANNOT_START
    print(service.pid, flush=True)
    threading.Thread(target=_obey, args=(service,), daemon=True).start()
    status = service.wait()
    _kill_group(service.pid)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()  # the service's orphans, until there are none
    return status if status >= 0 else 128 - status


def _obey(service: "subprocess.Popen[bytes]") -> None:
    """Carry out what comes on stdin until the service has ended."""
    line = sys.stdin.readline()
    if line and float(line) > 0:
        service.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            service.wait(timeout=float(line))
    _kill_group(service.pid)


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def main() -> int:
    """Run the service and clear away what it left."""
    log, leftovers, *command = sys.argv[1:]
    with Path(log).open("ab", buffering=0) as handle:
        os.dup2(handle.fileno(), sys.stderr.fileno())
    try:
        return keep(command)
    finally:
        if leftovers:
            for path in Path(leftovers).parent.glob(f"{Path(leftovers).name}*"):
                path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
