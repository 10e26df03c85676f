"""Layer names as peft's configurations write them: plain, or as a simple regular expression.

A style's configuration comes from outside, and Python's ``re`` can take hours over an expression made for that. Here a
name is matched in time proportional to the expression's length: characters, ``.``, ``\\d``, ``\\w``, sets, ``*``,
``+``, ``?``, and choices in round brackets that are not repeated.
"""

import re
import string
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from orchestrator.errors import LoraIncompatible

MAX_CHARS: Final = 300
MAX_CHOICES: Final = 64
_ALPHABET: Final = string.ascii_letters + string.digits + "_.-"
_PLAIN: Final = re.compile(r"[\w.-]+", re.ASCII)
_PIECE: Final = re.compile(r"(\\[.dw_-]|\[[\w.-]+\]|[\w.-])([*+?]?)", re.ASCII)
_GROUP: Final = re.compile(r"\((?:\?:)?([^()]*)\)(?![*+?{])")


@dataclass(frozen=True, slots=True)
class _Choice:
    """Pieces one after the other: the characters each may be, and ``*``, ``+``, ``?`` or nothing."""

    from_start: bool
    pieces: tuple[tuple[frozenset[str], str], ...]


@dataclass(frozen=True, slots=True)
class LayerPattern:
    """Fits the end of a layer's name, from its start or from behind a dot, as peft has it.

    Without ``choices`` the text is a name, with ``from_start`` a whole one. ``effort`` is what one matching costs at
    most, in pieces.
    """

    text: str
    choices: tuple[_Choice, ...] = ()
    from_start: bool = False

    @property
    def effort(self) -> int:
        return sum(len(choice.pieces) for choice in self.choices)

    def fits(self, layer: str) -> bool:
        if not self.choices:
            return layer == self.text or (not self.from_start and layer.endswith(f".{self.text}"))
        # Sets of places in the name are bits of an integer: place i is 1 << i.
        places: dict[str, int] = defaultdict(int)
        for i, letter in enumerate(layer):
            places[letter] |= 1 << i
        return any(_reaches_end(choice, places, len(layer)) for choice in self.choices)


def layer_pattern(text: str) -> LayerPattern:
    """The pattern of a configuration's key; refuses what is neither a name nor a simple expression."""
    if len(text) > MAX_CHARS:
        raise LoraIncompatible(f"a layer pattern has {len(text)} characters; up to {MAX_CHARS} are read")
    name = text.removeprefix("^").removesuffix("$")
    if _PLAIN.fullmatch(name):
        # Its dots could stand for any letter; between the names of layers they only ever are dots. Diffusers writes
        # ^NAME for every layer whose rank is not the commonest: over 700 of SDXL's.
        return LayerPattern(name, from_start=text.startswith("^"))
    return LayerPattern(text, tuple(_choice(one, text) for one in _written_out(text)))


def _written_out(text: str) -> list[str]:
    """The expression without its choices: ``a(b|c)d`` as ``abd`` and ``acd``."""
    done: list[str] = []
    todo = [text]
    while todo:
        current = todo.pop()
        group = _GROUP.search(current)
        if group is None:
            done += current.split("|")
        else:
            todo += [f"{current[: group.start()]}{one}{current[group.end() :]}" for one in group[1].split("|")]
        if len(done) + len(todo) > MAX_CHOICES:
            raise LoraIncompatible(f"the layer pattern {ascii(text)[:80]} has over {MAX_CHOICES} choices")
    return done


def _choice(choice: str, text: str) -> _Choice:
    body = choice.removeprefix("^").removesuffix("$")
    pieces = list(_PIECE.finditer(body))
    if "".join(piece[0] for piece in pieces) != body:
        raise LoraIncompatible(f"the layer pattern {ascii(text)[:80]} is not read; names, wildcards and choices are")
    return _Choice(choice.startswith("^"), tuple((_letters(piece[1]), piece[2]) for piece in pieces))


@lru_cache(maxsize=256)
def _letters(piece: str) -> frozenset[str]:
    try:
        test = re.compile(piece, re.ASCII)
    except re.error:
        raise LoraIncompatible(f"{piece[:80]} is no regular expression") from None
    return frozenset(letter for letter in _ALPHABET if test.fullmatch(letter))


def _reaches_end(choice: _Choice, places: dict[str, int], length: int) -> bool:
    """Whether the pieces can lead from an allowed start to the end of the name."""
    at = 1 if choice.from_start else 1 | places["."] << 1
    for letters, repeat in choice.pieces:
        fitting = 0
        for letter in letters & places.keys():
            fitting |= places[letter]
        after = (at & fitting) << 1
        if repeat in ("*", "+"):
            more = after
            while more := (more & fitting) << 1 & ~after:
                after |= more
        at = at | after if repeat in ("*", "?") else after
    return bool(at >> length & 1)
