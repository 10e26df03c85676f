"""What a caller of ``POST /infer`` asks for, read from JSON into one checked form."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args

from orchestrator.errors import InvalidInput
from orchestrator.fields import Fields

RoomType = Literal["living_room", "bedroom", "kitchen", "bathroom", "dining_room", "office"]
StagingStyle = Literal["modern", "contemporary", "traditional", "industrial", "scandinavian"]
ROOM_TYPES: Final[tuple[RoomType, ...]] = get_args(RoomType)
STAGING_STYLES: Final[tuple[StagingStyle, ...]] = get_args(StagingStyle)

# An id becomes part of keys in the store, so it is a plain name: no slash, and never one that begins with a dot.
NAME_PATTERN: Final = "[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
MAX_KEY_CHARACTERS: Final = 1024
MAX_SEED: Final = 2**32 - 1
MAX_GUIDANCE_SCALE: Final = 30
MAX_UNKNOWN_SHOWN: Final = 8
_NAME = re.compile(NAME_PATTERN)
_WISHES = ("image_id", "original_key", "room_type", "style", "seed", "strength", "guidance_scale", "mask_key")
_KNOWN = frozenset((*_WISHES, "user_id", "project_id", "tier"))


@dataclass(frozen=True, slots=True, kw_only=True)
class StagingRequest:
    """One wish. ``user_id`` and ``project_id`` fill the caller's allowed prefixes, ``tier`` is one of the caller's."""

    image_id: str
    original_key: str
    room_type: RoomType
    style: StagingStyle
    seed: int | None = None
    strength: float | None = None
    guidance_scale: float | None = None
    mask_key: str | None = None
    user_id: str | None = None
    project_id: str | None = None
    tier: str | None = None
    unknown: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """The same for requests that mean the same picture; who pays for it is not part of that."""
        meant = {name: value for name, value in asdict(self).items() if name not in ("tier", "unknown")}
        return hashlib.sha256(json.dumps(meant, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @property
    def used_seed(self) -> int:
        """The seed given, or one that follows from the id, so that another attempt makes the same picture."""
        if self.seed is not None:
            return self.seed
        return int.from_bytes(hashlib.sha256(self.image_id.encode()).digest()[:4], "big")


def read_request(body: bytes) -> StagingRequest:
    """The request in a JSON body; raises :class:`InvalidInput` with the field's name."""
    values = read_object(body)
    fields = Fields(values, "")
    return StagingRequest(
        image_id=_image_id(values.get("image_id")),
        original_key=_key(fields.required_text("original_key", MAX_KEY_CHARACTERS)),
        room_type=_choice(fields, "room_type", ROOM_TYPES),
        style=_choice(fields, "style", STAGING_STYLES),
        seed=_seed(fields),
        strength=_number(fields, "strength", 1),
        guidance_scale=_number(fields, "guidance_scale", MAX_GUIDANCE_SCALE),
        mask_key=_key(fields.text("mask_key", MAX_KEY_CHARACTERS)) or None,
        user_id=_name(fields, "user_id"),
        project_id=_name(fields, "project_id"),
        tier=fields.text("tier", 20) or None,
        unknown=tuple(sorted(set(values) - _KNOWN))[:MAX_UNKNOWN_SHOWN],
    )


def read_object(body: bytes) -> Mapping[str, Any]:
    """The JSON object in a body, its names in UTF-8; raises :class:`InvalidInput` for anything else."""
    try:
        found = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the body is not JSON: {str(error)[:100]}") from None
    if not isinstance(found, dict):
        raise InvalidInput("the body is not a JSON object; one is expected")
    try:
        "".join(found).encode()
    except UnicodeEncodeError:
        raise InvalidInput("the name of a field holds half of a surrogate pair; Unicode text is expected") from None
    return found


def checked_image_id(text: str) -> str:
    """The id in a path; raises :class:`InvalidInput` for what can be none."""
    if not _NAME.fullmatch(text):
        raise InvalidInput(
            f"image_id does not match {NAME_PATTERN}; up to 128 letters, digits, dots, _ and - are served"
        )
    return text


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _image_id(value: object) -> str:
    if value is None or value == "":
        raise InvalidInput("image_id is missing; a string is expected")
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # JSON knows one kind of number
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63:
        return str(value)  # backends with numeric keys send them bare
    if not isinstance(value, str):
        raise InvalidInput("image_id is neither text nor a whole number from 0; one of them is expected")
    return checked_image_id(value)


def _key(key: str) -> str:
    if "://" in key or key.startswith("/"):
        raise InvalidInput("a key is an address; the plain name of an object is expected, such as uploads/7/room.jpg")
    return key


def _choice(fields: Fields, name: str, choices: tuple[Any, ...]) -> Any:
    return fields.choice(name, choices, fields.required_text(name, 200))


def _seed(fields: Fields) -> int | None:
    seed = fields.optional_integer("seed")
    if seed is not None and not 0 <= seed <= MAX_SEED:
        raise InvalidInput(f"seed is {seed}; 0 to {MAX_SEED} are served")
    return seed


def _number(fields: Fields, name: str, most: float) -> float | None:
    value = fields.optional_number(name)
    if value is not None and not 0 <= value <= most:
        raise InvalidInput(f"{name} is {value}; 0 to {most} are served")
    return None if value is None else float(value)


def _name(fields: Fields, name: str) -> str | None:
    value = fields.text(name, 128)
    if value and not _NAME.fullmatch(value):
        raise InvalidInput(f"{name} does not match {NAME_PATTERN}; it fills a part of a key")
    return value or None
