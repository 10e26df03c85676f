"""A curated set: a folder of rooms with ``set.json``, which says what to make of each.

::

    {"name": "Drawn rooms", "origin": "drawn by demo/rooms, Apache-2.0",
     "entries": [{"id": "bedroom-1", "original": "originals/bedroom-1.png", "mask": "masks/bedroom-1.png",
                  "room_type": "bedroom", "style": "modern", "seed": 7}]}

``mask`` and ``seed`` may be left out; paths are relative to the folder.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from orchestrator.errors import InvalidInput
from orchestrator.fields import Fields
from orchestrator.staging.request import (
    MAX_KEY_CHARACTERS,
    MAX_SEED,
    ROOM_TYPES,
    STAGING_STYLES,
    RoomType,
    StagingStyle,
    checked_image_id,
    read_object,
)

FILE: Final = "set.json"
MOST_ENTRIES: Final = 10_000
MAX_TEXT_CHARACTERS: Final = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One room to stage; ``original`` and ``mask`` are relative to the set's folder."""

    id: str
    original: str
    mask: str | None
    room_type: RoomType
    style: StagingStyle
    seed: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CuratedSet:
    """All rooms of a set, and where they come from."""

    folder: Path
    name: str
    origin: str
    entries: tuple[Entry, ...]


def load_set(folder: Path) -> CuratedSet:
    """The set in a folder; raises :class:`InvalidInput` with the entry that is wrong."""
    path = folder / FILE
    try:
        fields = Fields(read_object(path.read_bytes()), "")
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}; a set is a folder with {FILE}") from None
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from None
    entries = tuple(_entry(folder, one, i) for i, one in enumerate(fields.children("entries", MOST_ENTRIES)))
    if not entries:
        raise InvalidInput(f"{path} has no entries; one or more are expected")
    if len({entry.id for entry in entries}) < len(entries):
        raise InvalidInput(f"{path} has two entries with one id; each has its own")
    return CuratedSet(
        folder=folder,
        name=fields.required_text("name", MAX_TEXT_CHARACTERS),
        origin=fields.required_text("origin", MAX_TEXT_CHARACTERS),
        entries=entries,
    )


def _entry(folder: Path, fields: Fields, index: int) -> Entry:
    try:
        seed = fields.optional_integer("seed")
        if seed is not None and not 0 <= seed <= MAX_SEED:
            raise InvalidInput(f"seed is {seed}; 0 to {MAX_SEED} are served")
        return Entry(
            id=checked_image_id(fields.required_text("id", MAX_KEY_CHARACTERS)),
            original=_file(folder, fields.required_text("original", MAX_KEY_CHARACTERS)),
            mask=_file(folder, fields.text("mask", MAX_KEY_CHARACTERS)) or None,
            room_type=_choice(fields, "room_type", ROOM_TYPES),
            style=_choice(fields, "style", STAGING_STYLES),
            seed=seed,
        )
    except InvalidInput as error:
        raise InvalidInput(f"{folder / FILE}: entry {index + 1}: {error}") from None


def _choice(fields: Fields, name: str, choices: tuple[Any, ...]) -> Any:
    return fields.choice(name, choices, fields.required_text(name, 200))


def _file(folder: Path, name: str) -> str:
    if not name:
        return name
    if Path(name).is_absolute() or ".." in Path(name).parts or "\\" in name:
        raise InvalidInput(f"{name[:80]!r} leads out of the folder; a path below it is expected")
    if not (folder / name).is_file():
        raise InvalidInput(f"there is no file {name[:80]}")
    return name
