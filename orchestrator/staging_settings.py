"""Settings of the staging service, a part of :mod:`orchestrator.config`; docs/environment.md explains each variable."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn, TypeVar

from orchestrator.errors import ConfigError
from orchestrator.variables import Reader, choice, count, file, flag, http_url, origin, seconds, store_url, token

StagingMode = Literal["mock", "managed", "self"]
StagingFallback = Literal["mock", "refuse"]
QualityMode = Literal["gate", "report", "off"]
V = TypeVar("V")


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagedSettings:
    """The hosted model; without token and model there is none."""

    url: str
    token: str | None = field(repr=False)
    model: str | None
    output_origins: tuple[str, ...]
    webhook_url: str | None
    timeout_s: float
    inputs: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnSettings:
    """How networks of our own stage: how many steps, how much the ControlNets say and in which share of the steps."""

    steps: int
    sampler: str
    depth_scale: float
    canny_scale: float
    control_start: float
    control_end: float
    upscale: bool
    upscale_tiers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StagingSettings:
    """How ``serve`` stages. Rates are (requests, seconds) by tier, prices US dollars a GPU-second by provider."""

    clients_file: Path | None
    admin_token: str | None = field(repr=False)
    originals: str | None
    prompts_file: Path | None
    max_mb: int
    max_megapixels: int
    working_px: int
    size_step_px: int
    strength: float
    guidance_scale: float
    concurrency: int
    max_waiting: int
    deadline_s: float
    attempts: int
    rates: Mapping[str, tuple[int, int]]
    fallback: StagingFallback
    canary_mode: StagingMode | None
    canary_percent: float
    canary_salt: str
    breaker_cool_s: float
    mock_s: float
    reject_people: bool
    blocked_words: tuple[str, ...]
    prices: Mapping[str, float]
    cost_alert_usd: float | None
    quality: QualityMode
    quality_retries: int
    style_scores: Path | None
    managed: ManagedSettings
    own: OwnSettings


def read_staging(read: Reader) -> StagingSettings:
    """The settings; raises ConfigError."""
    return StagingSettings(
        clients_file=read.optional("STAGING_CLIENTS_FILE", file),
        admin_token=read.secret("STAGING_ADMIN_TOKEN", token),
        originals=read.optional("STAGING_ORIGINALS", store_url),
        prompts_file=read.optional("STAGING_PROMPTS_FILE", file),
        max_mb=read.one("STAGING_MAX_MB", "25", count(1, 200)),
        max_megapixels=read.one("STAGING_MAX_MEGAPIXELS", "50", count(1, 200)),
        working_px=read.one("STAGING_WORKING_PX", "1024", count(256, 2048)),
        size_step_px=read.one("STAGING_SIZE_STEP_PX", "64", count(8, 64)),
        strength=read.one("STAGING_STRENGTH", "0.75", _number(1)),
        guidance_scale=read.one("STAGING_GUIDANCE_SCALE", "6", _number(30)),
        concurrency=read.one("STAGING_CONCURRENCY", "4", count(1, 256)),
        max_waiting=read.one("STAGING_MAX_WAITING", "64", count(0, 10_000)),
        deadline_s=read.one("STAGING_DEADLINE_SECONDS", "120", seconds),
        attempts=read.one("STAGING_ATTEMPTS", "3", count(1, 10)),
        rates=read.one("STAGING_RATES", "free=10/60, pro=60/60, business=600/60", _named(_TIERS, _rate)),
        fallback=read.one("STAGING_FALLBACK", "mock", choice("mock", "refuse")),
        canary_mode=read.optional("STAGING_CANARY_MODE", choice("mock", "managed", "self")),
        canary_percent=read.one("STAGING_CANARY_PERCENT", "0", _number(100)),
        canary_salt=read.one("STAGING_CANARY_SALT", "remarque", str),
        breaker_cool_s=read.one("STAGING_BREAKER_SECONDS", "10", seconds),
        mock_s=read.one("STAGING_MOCK_SECONDS", "2", seconds),
        reject_people=read.one("REJECT_PEOPLE", "false", flag),
        blocked_words=read.several("STAGING_BLOCKED_WORDS", str),
        prices=read.one("STAGING_GPU_PRICES", "mock=0, managed=0.001525, self=0", _named(_PROVIDERS, _number(1000))),
        cost_alert_usd=read.optional("STAGING_COST_ALERT_USD", _number(1e9)),
        quality=read.one("STAGING_QUALITY", "gate", choice("gate", "report", "off")),
        quality_retries=read.one("STAGING_QUALITY_RETRIES", "1", count(0, 5)),
        style_scores=read.optional("STAGING_STYLE_SCORES", file),
        managed=ManagedSettings(
            url=read.one("MANAGED_URL", "https://api.replicate.com/v1", http_url),
            token=read.secret("MANAGED_TOKEN", token),
            model=read.optional("MANAGED_MODEL", str),
            output_origins=read.several("MANAGED_OUTPUT_ORIGINS", origin) or ("https://replicate.delivery",),
            webhook_url=read.optional("MANAGED_WEBHOOK_URL", http_url),
            timeout_s=read.one("MANAGED_TIMEOUT_SECONDS", "90", seconds),
            inputs=dict(read.several("MANAGED_INPUTS", _renamed)),
        ),
        own=_read_own(read),
    )


def _read_own(read: Reader) -> OwnSettings:
    own = OwnSettings(
        steps=read.one("STAGING_STEPS", "25", count(1, 150)),
        sampler=read.one("STAGING_SAMPLER", "dpmpp_2m", str),
        depth_scale=read.one("STAGING_CONTROL_DEPTH_SCALE", "0.5", _number(2)),
        canny_scale=read.one("STAGING_CONTROL_CANNY_SCALE", "0.3", _number(2)),
        control_start=read.one("STAGING_CONTROL_START", "0", _number(1)),
        control_end=read.one("STAGING_CONTROL_END", "0.6", _number(1)),
        upscale=read.one("UPSCALE_ENABLED", "false", flag),
        upscale_tiers=read.one("STAGING_UPSCALE_TIERS", "pro, business", _tiers),
    )
    if own.control_start > own.control_end:
        raise ConfigError(
            f"STAGING_CONTROL_START is {own.control_start:g} and STAGING_CONTROL_END {own.control_end:g}; "
            "expected shares of the steps, the earlier one first"
        )
    return own


_TIERS = ("free", "pro", "business")
_PROVIDERS = ("mock", "managed", "self")
_INPUTS = ("image", "mask", "prompt", "negative_prompt", "strength", "guidance_scale", "seed")


def _expect(what: str) -> NoReturn:
    raise ValueError(what)


def _named(names: tuple[str, ...], parse: Callable[[str], V]) -> Callable[[str], Mapping[str, V]]:
    """A parser of ``name=value`` between commas, every name once."""

    def parsed(text: str) -> Mapping[str, V]:
        pairs = [part.partition("=") for part in text.split(",")]
        found = {name.strip(): parse(value.strip()) for name, _, value in pairs}
        shown = ", ".join(f"{name}=…" for name in names)
        return found if tuple(sorted(found)) == tuple(sorted(names)) and len(pairs) == len(names) else _expect(shown)

    return parsed


def _tiers(text: str) -> tuple[str, ...]:
    found = tuple(part.strip() for part in text.split(","))
    return found if set(found) <= set(_TIERS) else _expect(f"some of {', '.join(_TIERS)}")


def _rate(text: str) -> tuple[int, int]:
    limit, slash, window_s = text.partition("/")
    if not slash or not limit.isdigit() or not window_s.isdigit() or not 0 < int(window_s) <= 86_400:
        _expect("requests/seconds such as 10/60")
    return (int(limit), int(window_s)) if 0 < int(limit) < 10**9 else _expect("one request or more")


def _number(most: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            found = float(text)
        except ValueError:
            found = math.nan
        return found if 0 <= found <= most else _expect(f"a number from 0 to {most:g}")

    return parse


def _renamed(text: str) -> tuple[str, str]:
    """``ours=theirs``; nothing after the equals sign leaves an input out that the model does not have."""
    ours, equals, theirs = (part.strip() for part in text.partition("="))
    return (ours, theirs) if equals and ours in _INPUTS else _expect(f"ours=theirs, ours one of {', '.join(_INPUTS)}")
