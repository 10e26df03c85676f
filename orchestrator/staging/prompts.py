"""What the networks are asked for, by room and style: a versioned table beside this file, or an operator's own.

The only module that imports ``yaml``.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from orchestrator.errors import ConfigError
from orchestrator.staging.request import ROOM_TYPES, STAGING_STYLES, RoomType, StagingStyle

BUILT_IN: Final = Path(__file__).with_name("prompts.yaml")
MAX_CHARACTERS: Final = 1000


@dataclass(frozen=True, slots=True)
class Wording:
    """One room in one style."""

    prompt: str
    negative_prompt: str


@dataclass(frozen=True, slots=True)
class PromptTable:
    """All rooms in all styles; ``revision`` names the version and the bytes it was read from."""

    revision: str
    wordings: Mapping[tuple[RoomType, StagingStyle], Wording]

    def wording(self, room_type: RoomType, style: StagingStyle) -> Wording:
        """The prompt and negative prompt of a room in a style; every pair has one."""
        return self.wordings[room_type, style]


def load_prompts(path: Path = BUILT_IN) -> PromptTable:
    """The table in a file; raises :class:`ConfigError` where one of the 30 pairs is missing, unknown or empty."""
    try:
        data = path.read_bytes()
        found = yaml.safe_load(data)
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"prompts cannot be read from {path}: {error}") from None
    table = _mapping(found, "the file", ("version", "negative_prompt", "rooms"))
    rooms = _mapping(table["rooms"], "rooms", ROOM_TYPES)
    shared = _text(table["negative_prompt"], "negative_prompt")
    wordings = {}
    for room in ROOM_TYPES:
        entry = _mapping(rooms[room], f"rooms.{room}", ("negative_prompt", "prompts"))
        negative = f"{_text(entry['negative_prompt'], f'rooms.{room}.negative_prompt')}, {shared}"
        prompts = _mapping(entry["prompts"], f"rooms.{room}.prompts", STAGING_STYLES)
        for style in STAGING_STYLES:
            wordings[room, style] = Wording(_text(prompts[style], f"rooms.{room}.prompts.{style}"), negative)
    version = _text(table["version"], "version")
    return PromptTable(f"{version}+{hashlib.sha256(data).hexdigest()[:8]}", wordings)


def _mapping(value: object, where: str, names: tuple[str, ...]) -> Mapping[str, Any]:
    """A mapping with exactly these names."""
    if not isinstance(value, dict):
        raise ConfigError(f"prompts: {where} is not a mapping; {', '.join(names)} are expected in it")
    if missing := [name for name in names if name not in value]:
        raise ConfigError(f"prompts: {where} lacks {', '.join(missing)}")
    if unknown := [str(name) for name in value if name not in names]:
        raise ConfigError(f"prompts: {where} holds {', '.join(unknown)}, which is not served; {', '.join(names)} are")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"prompts: {where} is {value!r}; a text is expected")
    text = " ".join(value.split())
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(f"prompts: {where} is {len(text)} characters; up to {MAX_CHARACTERS} are served")
    return text
