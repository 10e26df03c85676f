"""Who may call, at which tiers, for which keys: the callers that an operator lists in a TOML file.

::

    [backend]
    token_sha256 = "…"                         # printf %s "$TOKEN" | sha256sum
    tiers = ["free", "pro", "business"]        # the first is used where a request names none
    prefixes = ["uploads/{user_id}/{project_id}/"]
"""

import hashlib
import hmac
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from orchestrator.clients.addresses import Address, parse_address
from orchestrator.errors import ConfigError, InvalidInput, Unauthorized
from orchestrator.staging.request import NAME_PATTERN, StagingRequest

Tier = Literal["free", "pro", "business"]
TIERS: Final[tuple[Tier, ...]] = get_args(Tier)
MAX_TOKEN_CHARACTERS: Final = 1024
_FIELDS = ("token_sha256", "tiers", "prefixes")
_PLACES = ("user_id", "project_id")
_PLACE = re.compile(r"\{(\w*)\}")
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One caller; its name is part of every key written for it, so that two callers may use the same image ids."""

    name: str
    token_sha256: str
    tiers: tuple[Tier, ...]
    prefixes: tuple[str, ...]

    def tier(self, wanted: str | None) -> Tier:
        """The tier a request is served at; raises :class:`InvalidInput` where the caller does not have it."""
        if wanted is None:
            return self.tiers[0]
        for tier in self.tiers:
            if tier == wanted:
                return tier
        raise InvalidInput(f"tier is {wanted[:20]!r}; {', '.join(self.tiers)} is what this token may use")

    def payer(self, request: StagingRequest) -> tuple[str, str | None]:
        """Whom a request counts for: the caller, or one of its users where its prefixes tell them apart.

        Elsewhere anybody could invent a user for each request.
        """
        divided = any("{user_id}" in prefix for prefix in self.prefixes)
        return self.name, request.user_id if divided else None

    def allowed(self, root: str, request: StagingRequest) -> tuple[Address, ...]:
        """The prefixes below ``root`` that this request may read from, its user and project filled in."""
        given = {"user_id": request.user_id, "project_id": request.project_id}
        base = parse_address(root)
        found = []
        for prefix in self.prefixes:
            for place in _PLACE.findall(prefix):
                if given[place] is None:
                    raise InvalidInput(f"{place} is missing; the keys of this token lie under {prefix}")
            found.append(base.child(prefix.format(**given).strip("/")))
        return tuple(found)


class Accounts:
    """All callers."""

    def __init__(self, accounts: Sequence[Account]) -> None:
        self._accounts = tuple(accounts)

    def authenticate(self, authorization: str | None) -> Account:
        """The caller behind an ``Authorization`` header; raises :class:`Unauthorized`.

        Digests are compared in constant time and all of them every time, so the time taken says nothing about any.
        """
        scheme, _, token = (authorization or "").partition(" ")
        found: Account | None = None
        digest = hashlib.sha256(token.strip()[:MAX_TOKEN_CHARACTERS].encode()).hexdigest()
        for account in self._accounts:
            if hmac.compare_digest(digest, account.token_sha256):
                found = account
        if found is None or scheme.lower() != "bearer":
            raise Unauthorized("the Authorization header holds no bearer token that is known here")
        return found

    def __iter__(self) -> Iterator[Account]:
        return iter(self._accounts)


def load_accounts(path: Path) -> Accounts:
    """The callers in a file; raises :class:`ConfigError` with the entry that is wrong."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"STAGING_CLIENTS_FILE {path} cannot be read: {error}") from None
    accounts = [_account(name, entry) for name, entry in found.items()]
    if not accounts:
        raise ConfigError(f"STAGING_CLIENTS_FILE {path} lists nobody; without a caller nothing can be served")
    if len({account.token_sha256 for account in accounts}) < len(accounts):
        raise ConfigError(f"STAGING_CLIENTS_FILE {path} gives two callers the same token; each has its own")
    return Accounts(accounts)


def same_token(authorization: str | None, token: str) -> bool:
    """Whether a header carries exactly that bearer token, compared in constant time."""
    given = hashlib.sha256((authorization or "")[:MAX_TOKEN_CHARACTERS].encode()).digest()
    return hmac.compare_digest(given, hashlib.sha256(f"Bearer {token}".encode()).digest())


def _account(name: str, entry: object) -> Account:
    where = f"STAGING_CLIENTS_FILE: {name}"
    if not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError(f"{where} is no name; it becomes part of keys and matches {NAME_PATTERN}")
    if not isinstance(entry, dict) or set(entry) != set(_FIELDS):
        raise ConfigError(f"{where} does not hold {', '.join(_FIELDS)} and nothing else")
    digest = entry["token_sha256"]
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise ConfigError(f"{where}.token_sha256 (its value is not shown) is not 64 lower-case hexadecimal digits")
    return Account(name=name, token_sha256=digest, tiers=_tiers(where, entry), prefixes=_prefixes(where, entry))


def _tiers(where: str, entry: Mapping[str, Any]) -> tuple[Tier, ...]:
    given = entry["tiers"]
    if not isinstance(given, list) or not given or any(tier not in TIERS for tier in given):
        raise ConfigError(f"{where}.tiers is {given!r}; a list out of {', '.join(TIERS)} is expected")
    return tuple(given)


def _prefixes(where: str, entry: Mapping[str, Any]) -> tuple[str, ...]:
    given = entry["prefixes"]
    if not isinstance(given, list) or not all(isinstance(prefix, str) for prefix in given):
        raise ConfigError(f"{where}.prefixes is {given!r}; a list of prefixes is expected")
    for prefix in given:
        plain = _PLACE.sub("x", prefix)
        if not prefix.endswith("/") or "{" in plain or "}" in plain:
            raise ConfigError(f"{where}.prefixes holds {prefix!r}; a prefix ends with / and has whole {{places}}")
        if unknown := [place for place in _PLACE.findall(prefix) if place not in _PLACES]:
            raise ConfigError(f"{where}.prefixes holds {{{unknown[0]}}}; {', '.join(_PLACES)} can be filled in")
        try:
            parse_address("file:///").child(plain.strip("/"))
        except InvalidInput as error:
            raise ConfigError(f"{where}.prefixes holds {prefix!r}: {error}") from None
    return tuple(given)
