"""What every section is handed: where things lie, how thorough to be, and how to start contestants."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.children import Child
from benchmarks.machine import has_bf16
from benchmarks.repository import has_own_shapes
from benchmarks.served import Work
from local.environment import Environment, prepare

ROOT = Path(__file__).resolve().parents[1]
SETTLING_S = 12.0
"""Twice what the demo's UNet needs."""


@dataclass(frozen=True, slots=True)
class Bench:
    """``scale`` shortens everything for a trial: 1.0 is what a published figure takes."""

    repository: Path
    checkpoint: Path
    work: Work
    rounds: int = 3
    concurrency: tuple[int, ...] = (1, 4, 10)
    scale: float = 1.0
    compile_rival: bool = False

    @property
    def state(self) -> Path:
        """The checkout's state folder."""
        return self.environment.state

    @property
    def environment(self) -> Environment:
        """Triton's parts on this machine."""
        return prepare()

    def scaled(self, count: int, least: int = 2) -> int:
        """``count`` of something, fewer in a trial."""
        return max(least, round(count * self.scale))

    @property
    def settling_s(self) -> float:
        """How long a shape runs before its graph is what it stays: none where no shape gets one of its own."""
        return SETTLING_S * self.scale if has_own_shapes(self.repository) and not has_bf16() else 0.0

    @contextmanager
    def diffusers(self) -> Iterator[Child]:
        """``benchmarks.diffusers_child`` in this environment."""
        with Child(self._module("benchmarks.diffusers_child"), self._log("diffusers"), self._quiet()) as child:
            yield child

    @contextmanager
    def engine(self) -> Iterator[Child]:
        """``benchmarks.engine_child`` in the stub's environment."""
        python = str(self.environment.stub / "bin" / "python3")
        command = [python, "-m", "benchmarks.engine_child"]
        with Child(command, self._log("engine"), {**self._quiet(), "PYTHONDONTWRITEBYTECODE": "1"}) as child:
            yield child

    def _module(self, name: str) -> list[str]:
        return [sys.executable, "-m", name]

    def _log(self, name: str) -> Path:
        return self.state / "logs" / f"bench-{name}.log"

    @staticmethod
    def _quiet() -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return {**kept, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
