"""Memory of a process and all its children, in proportional set size: shared pages are counted once in all."""

import threading
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

MIB = 2**20
EVERY_S = 0.2


def pss_bytes(pid: int) -> int:
    """One process; 0 where it is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def tree_bytes(pid: int) -> int:
    """``pid`` and everything below it."""
    return sum(pss_bytes(each) for each in tree(pid))


def tree(pid: int) -> list[int]:
    """Process ids of ``pid`` and everything below it."""
    children: dict[int, list[int]] = defaultdict(list)
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The command's name stands in brackets and may hold anything.
            fields = status.read_text().rpartition(")")[2].split()
            children[int(fields[1])].append(int(status.parent.name))
    found, open_ = [], [pid]
    while open_:
        one = open_.pop()
        found.append(one)
        open_ += children[one]
    return found


class Peak:
    """The most that a tree held while the ``with`` block ran, looked at five times a second."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self.bytes = 0

    def __enter__(self) -> Self:
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._ended.is_set():
            self.bytes = max(self.bytes, tree_bytes(self._pid))
            time.sleep(EVERY_S)
