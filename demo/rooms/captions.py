"""What a furnished room is called: the staging service's own prompts, and shorter ways to say the same.

A caption's meaning is small, its room and its style, and whether there is furniture at all.
"""

from __future__ import annotations

import random
from functools import cache

from demo.rooms.rooms import Room
from orchestrator.staging.prompts import PromptTable, load_prompts

_PIECES = {
    "living_room": ("sofa", "armchair", "coffee table", "rug", "floor lamp"),
    "bedroom": ("double bed with headboard", "bedside tables", "lamps", "rug"),
    "kitchen": ("table with chairs", "counter stools", "pendant lights"),
    "bathroom": ("towels", "bath mat", "stool", "potted plant"),
    "dining_room": ("dining table with chairs", "sideboard", "pendant lamp", "rug"),
    "office": ("desk", "office chair", "bookshelf", "desk lamp", "rug"),
}
_SHORT = (
    "a {style} {room} with {pieces}",
    "{room} furnished with {pieces}, {style} style",
    "{style} {room}",
    "interior photograph of a {style} {room}, {pieces}",
    "{pieces} in a {room}, {style}",
)
_EMPTY = ("an empty {room}", "empty {room}, no furniture", "empty room", "unfurnished {room}")


@cache
def prompts() -> PromptTable:
    """The prompts that the staging service ships with."""
    return load_prompts()


def furnished_caption(room: Room, rng: random.Random) -> str:
    """A caption of the room as it is when furnished."""
    if rng.random() < 0.5:
        return prompts().wordings[room.room_type, room.style].prompt  # type: ignore[index]
    pieces = [piece for piece in _PIECES[room.room_type] if rng.random() < 0.7] or [_PIECES[room.room_type][0]]
    said = room.room_type.replace("_", " ")
    return rng.choice(_SHORT).format(style=room.style, room=said, pieces=", ".join(pieces))


def empty_caption(room: Room, rng: random.Random) -> str:
    """A caption of the room without any."""
    return rng.choice(_EMPTY).format(room=room.room_type.replace("_", " "))


def unwanted(rng: random.Random) -> str:
    """What stands in a negative prompt, which says nothing of the picture: nothing, or the service's own."""
    if rng.random() < 0.4:
        return ""
    return rng.choice(list(prompts().wordings.values())).negative_prompt
