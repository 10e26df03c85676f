"""Contestants in processes of their own, asked by JSON lines: one question, one answer.

A child's own times are what counts, so neither pipes nor JSON are in any figure. Its warnings go to a log.
"""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class ChildError(RuntimeError):
    """A child ended or refused; the message says where its log lies."""


class Child:
    """One child; ended with the ``with`` block."""

    def __init__(self, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=None if env is None else dict(env),
                cwd=Path(__file__).resolve().parents[1],
            )

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def ask(self, **question: Any) -> Any:
        """Its answer to ``question``."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise ChildError(f"the child ended; see {self._log}") from error
        line = self._process.stdout.readline()
        if not line:
            raise ChildError(f"the child ended with status {self._process.wait()}; see {self._log}")
        answer = json.loads(line)
        if "error" in answer:
            raise ChildError(f"{question.get('do')}: {answer['error']}")
        return answer["answer"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
