"""What is not staged: a hook for prompts and one for originals, and the rules that ship with it.

A deployment adds a rule of its own by fitting :class:`Rule` and listing it where the service is built.
"""

import re
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import ContentRejected
from orchestrator.staging.prompts import Wording


class Rule(Protocol):
    """Either method raises ContentRejected with a sentence that says what was seen, and repeats no prompt."""

    def check_wording(self, wording: Wording) -> None: ...

    def check_original(self, picture: NDArray[np.uint8]) -> None:
        """``picture`` is the working image, uint8 [h,w,3]."""


class BlockedWords:
    """Refuses prompts that hold one of an operator's words; whole words, any case."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = re.compile(r"\b(?:" + "|".join(map(re.escape, words)) + r")\b", re.IGNORECASE)

    def check_wording(self, wording: Wording) -> None:
        if self._words.search(wording.prompt):
            raise ContentRejected("the prompt holds a word that this service was told to refuse")

    def check_original(self, picture: NDArray[np.uint8]) -> None:
        return


class NoPeople:
    """Refuses photographs in which a person is found: a courtesy that misses people and sees some in curtains."""

    def __init__(self, count_people: Callable[[NDArray[np.uint8]], int]) -> None:
        self._count_people = count_people

    def check_wording(self, wording: Wording) -> None:
        return

    def check_original(self, picture: NDArray[np.uint8]) -> None:
        if self._count_people(picture):
            raise ContentRejected("a person seems to be in the photograph (REJECT_PEOPLE); empty rooms are staged")


def check_wording(rules: Sequence[Rule], wording: Wording) -> None:
    """Asks every rule about a prompt."""
    for rule in rules:
        rule.check_wording(wording)


def check_original(rules: Sequence[Rule], picture: NDArray[np.uint8]) -> None:
    """Asks every rule about a photograph."""
    for rule in rules:
        rule.check_original(picture)
