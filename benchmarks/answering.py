"""The other end of :mod:`benchmarks.children`. Only the standard library: it also runs in the stub's environment."""

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any


def answer(verbs: Mapping[str, Callable[..., Any]]) -> None:
    """Answers questions on stdin with ``verbs[question["do"]](**rest)`` until stdin ends."""
    # Libraries print what they like; only answers may reach the pipe.
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        question = json.loads(line)
        verb = verbs[question.pop("do")]
        try:
            said = {"answer": verb(**question)}
        except Exception as error:  # noqa: BLE001 - the parent decides what a child's failure means
            traceback.print_exc()
            said = {"error": f"{type(error).__name__}: {error}"}
        channel.write(json.dumps(said) + "\n")
