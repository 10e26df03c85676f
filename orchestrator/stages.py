"""How long the parts of a job take, told to whoever listens: ``with stage("store"):`` around the part is all it needs.

A job has a thread of its own, so a context variable finds its listener, and what is timed takes no argument for it.
Without a listener nothing happens. Stages do not overlap: what is left between them is waiting.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

Stage = Literal["inputs", "text", "denoise", "decode", "stamp", "store"]
Listen = Callable[[Stage, float, float], None]
"""Hears the stage, when it began (seconds since 1970) and the seconds it took, also where it broke."""

_LISTENER: ContextVar[Listen | None] = ContextVar("stage listener", default=None)


@contextmanager
def stage(name: Stage) -> Iterator[None]:
    """Times what stands below it."""
    listen = _LISTENER.get()
    began_s, begun_s = time.time(), time.monotonic()
    try:
        yield
    finally:
        if listen is not None:
            listen(name, began_s, time.monotonic() - begun_s)


@contextmanager
def listening(listen: Listen) -> Iterator[None]:
    """``listen`` hears the stages of this thread while this lasts."""
    token = _LISTENER.set(listen)
    try:
        yield
    finally:
        _LISTENER.reset(token)
