"""Which provider stages an image: the operator's document, and the choice that follows from it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from orchestrator.errors import InvalidInput
from orchestrator.fields import Fields

Mode = Literal["mock", "managed", "self"]
Fallback = Literal["mock", "refuse"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)
FALLBACKS: Final[tuple[Fallback, ...]] = get_args(Fallback)
_FIELDS: Final = frozenset(("mode", "enabled", "fallback", "canary_mode", "canary_percent", "canary_salt"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """``canary_percent`` of the images go to ``canary_mode``, the rest to ``mode``; ``enabled`` false stops both."""

    mode: Mode
    enabled: bool = True
    fallback: Fallback = "mock"
    canary_mode: Mode | None = None
    canary_percent: float = 0.0
    canary_salt: str = ""

    def choose(self, image_id: str) -> Mode:
        """The provider of an image: always the same, and a larger share only ever adds images to the canary."""
        if self.canary_mode is not None and share_of(image_id, self.canary_salt) * 100 < self.canary_percent:
            return self.canary_mode
        return self.mode

    @property
    def modes(self) -> tuple[Mode, ...]:
        """Every provider that images may go to."""
        canary = () if self.canary_mode is None or not self.canary_percent else (self.canary_mode,)
        back = ("mock",) if self.fallback == "mock" else ()
        return tuple(mode for mode in MODES if mode in (self.mode, *canary, *back))

    def document(self) -> dict[str, object]:
        """The form in which it is stored and shown."""
        return {
            "mode": self.mode,
            "enabled": self.enabled,
            "fallback": self.fallback,
            "canary_mode": self.canary_mode,
            "canary_percent": self.canary_percent,
            "canary_salt": self.canary_salt,
        }


def share_of(image_id: str, salt: str) -> float:
    """Where an image lies between 0 and 1, evenly spread; another salt deals anew."""
    digest = hashlib.sha256(f"{salt}\0{image_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def read_routing(values: Mapping[str, Any], before: Routing) -> Routing:
    """``before`` with the fields that ``values`` names; raises :class:`InvalidInput`."""
    if unknown := sorted(set(values) - _FIELDS):
        raise InvalidInput(f"{unknown[0][:40]} is not a field of the routing; {', '.join(sorted(_FIELDS))} are")
    fields = Fields(values, "")
    enabled, percent = fields.optional_flag("enabled"), fields.optional_number("canary_percent")
    if percent is not None and not 0 <= percent <= 100:
        raise InvalidInput(f"canary_percent is {percent}; 0 to 100 are served")
    canary_given = fields.text("canary_mode", 20)
    canary = before.canary_mode if "canary_mode" not in values else None
    found = Routing(
        mode=fields.choice("mode", MODES, before.mode),
        enabled=before.enabled if enabled is None else enabled,
        fallback=fields.choice("fallback", FALLBACKS, before.fallback),
        canary_mode=fields.choice("canary_mode", MODES, "mock") if canary_given else canary,
        canary_percent=before.canary_percent if percent is None else float(percent),
        canary_salt=fields.text("canary_salt", 100) if "canary_salt" in values else before.canary_salt,
    )
    if found.canary_percent and found.canary_mode is None:
        raise InvalidInput(f"canary_percent is {found.canary_percent:g} and canary_mode is not set; they come together")
    return found
