"""What a build tells its user while it runs: one line per finished stage, bytes while they are written, time left."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, TextIO

_REDRAW_S: Final = 0.2


class Progress:
    """Knows the whole work in advance (in any one unit) and estimates the time left from the work done."""

    def __init__(self, stream: TextIO, work: float) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._work = work
        self._done = 0.0
        self._start_s = time.monotonic()
        self._drawn_s = 0.0

    @contextmanager
    def stage(self, name: str, work: float) -> Iterator["Stage"]:
        """One stage worth ``work``; its line is printed when it ends well."""
        stage = Stage(self, name)
        start_s = time.monotonic()
        self.draw(f"{name} ...", force=True)
        yield stage
        self._done += work
        self._erase()
        taken_s = time.monotonic() - start_s
        self._stream.write(f"{name:<24} {taken_s:7.1f} s  {stage.result}{self._left()}\n")
        self._stream.flush()

    def draw(self, text: str, force: bool = False) -> None:
        """Replaces the live line; nothing where the output is no terminal."""
        now_s = time.monotonic()
        if self._live and (force or now_s - self._drawn_s > _REDRAW_S):
            self._drawn_s = now_s
            self._stream.write(f"\r\x1b[K{text}")
            self._stream.flush()

    def _erase(self) -> None:
        if self._live:
            self._stream.write("\r\x1b[K")

    def _left(self) -> str:
        if not 0 < self._done < self._work:
            return ""
        left_s = (time.monotonic() - self._start_s) * (self._work - self._done) / self._done
        return f"  [about {left_s:.0f} s left]" if left_s >= 1 else ""


class Stage:
    """A running stage: it may count bytes and leaves a result behind."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress = progress
        self._name = name
        self._bytes = 0
        self.result = ""

    def advance(self, size_bytes: int) -> None:
        """Counts bytes written."""
        self._bytes += size_bytes
        self.result = f"{self._bytes / 1e6:.1f} MB"
        self._progress.draw(f"{self._name} {self.result}")

    def tell(self, text: str) -> None:
        """Shows where a stage without bytes is."""
        self._progress.draw(f"{self._name} {text}")
