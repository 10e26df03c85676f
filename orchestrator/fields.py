"""Typed reading of a JSON object, in which every refusal names the field by its path."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from orchestrator.errors import InvalidInput

T = TypeVar("T")
Choice = TypeVar("Choice", bound=str)
JSON_NAMES = {type(None): "null", bool: "true or false", str: "a string", list: "a list", dict: "an object"}


class Fields:
    """One JSON object of a message. Absent, ``null`` and (for texts) ``""`` all mean "not given"."""

    def __init__(self, values: Mapping[str, Any], path: str, *, present: bool = True) -> None:
        self._values = values
        self._path = path
        self.present = present

    def child(self, name: str) -> "Fields":
        """The object under ``name``, which must be there."""
        found = self.optional_child(name)
        if not found.present:
            raise InvalidInput(f"{self._at(name)} is missing; an object is expected")
        return found

    def optional_child(self, name: str) -> "Fields":
        """The object under ``name``, empty and not ``present`` where there is none."""
        value = self._values.get(name)
        if value is None:
            return Fields({}, self._at(name), present=False)
        if not isinstance(value, dict):
            raise self._wrong(name, value, "an object")
        return Fields(value, self._at(name))

    def children(self, name: str, most: int) -> list["Fields"]:
        """The objects of a list, none where the list is not given."""
        entries = self._list(name, most)
        for i, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise self._wrong(f"{name}[{i}]", entry, "an object")
        return [Fields(entry, f"{self._at(name)}[{i}]") for i, entry in enumerate(entries)]

    def text(self, name: str, most_chars: int) -> str:
        """A string without its outer blanks, "" where it is not given; lone surrogates and NUL are refused."""
        value = self._values.get(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self._wrong(name, value, "a string")
        if len(value) > most_chars:
            raise InvalidInput(f"{self._at(name)} is {len(value)} characters; at most {most_chars} are served")
        self._require_text(name, value)
        return value.strip()

    def required_text(self, name: str, most_chars: int) -> str:
        """A string that must not be empty."""
        value = self.text(name, most_chars)
        if not value:
            raise InvalidInput(f"{self._at(name)} is missing; a string is expected")
        return value

    def texts(self, name: str, most_chars: int) -> list[str]:
        """The non-empty strings of a list."""
        entries = self._list(name, 1000)
        for i, entry in enumerate(entries):
            if not isinstance(entry, str):
                raise self._wrong(f"{name}[{i}]", entry, "a string")
            self._require_text(f"{name}[{i}]", entry)
        joined = sum(len(entry) for entry in entries)
        if joined > most_chars:
            raise InvalidInput(f"{self._at(name)} holds {joined} characters; at most {most_chars} are served")
        return [entry.strip() for entry in entries if entry.strip()]

    def integer(self, name: str, least: int) -> int:
        """A whole number of at least ``least``, which must be there."""
        value = self.optional_integer(name)
        if value is None:
            raise InvalidInput(f"{self._at(name)} is missing; a whole number is expected")
        if value < least:
            raise self._wrong(name, value, f"{least} or more")
        return value

    def optional_integer(self, name: str) -> int | None:
        """A whole number (``512.0`` is one, ``true`` is none)."""
        value = self.optional_number(name)
        if value is None:
            return None
        if value != int(value):
            raise self._wrong(name, value, "a whole number")
        return int(value)

    def optional_number(self, name: str) -> float | None:
        """A finite number, kept whole where it was written whole."""
        value = self._values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(name, value, "a number")
        if abs(value) > 2**63 or not math.isfinite(value):
            raise self._wrong(name, value, "a number below 2^63")
        return value

    def optional_flag(self, name: str) -> bool | None:
        """True, false or not given."""
        value = self._values.get(name)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def choice(self, name: str, choices: Sequence[Choice], default: Choice) -> Choice:
        """One of a few words."""
        value = self.text(name, 200)
        if not value:
            return default
        for choice in choices:
            if value == choice:
                return choice
        raise InvalidInput(f"{self._at(name)} is {value[:40]!r}; {', '.join(choices)} are served")

    def same(self, one: T | None, other: T | None, name: str) -> T | None:
        """The value that two spellings of one field agree on."""
        if one is not None and other is not None and one != other:
            raise InvalidInput(f"{self._at(name)} is given twice with different values; give it once")
        return other if one is None else one

    def _require_text(self, name: str, value: str) -> None:
        if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
            raise InvalidInput(f"{self._at(name)} holds a character that is not text")

    def _list(self, name: str, most: int) -> list[Any]:
        value = self._values.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self._wrong(name, value, "a list")
        if len(value) > most:
            raise InvalidInput(f"{self._at(name)} has {len(value)} entries; at most {most} are served")
        return value

    def _at(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def _wrong(self, name: str, value: object, expected: str) -> InvalidInput:
        # Numbers are shown; anything else may be a prompt or a secret and is named by its type alone.
        shown = value if isinstance(value, int | float) and not isinstance(value, bool) else JSON_NAMES[type(value)]
        return InvalidInput(f"{self._at(name)} is {shown}; {expected} is expected")
