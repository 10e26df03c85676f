"""Builds the staging service out of settings: everything started in order, and ended in the reverse one."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import cast

from orchestrator.api import HttpServer, build_app
from orchestrator.app import build_buckets, build_signing_key
from orchestrator.clients.predictions import Predictions, PredictionService
from orchestrator.clients.storage import Storage
from orchestrator.config import Settings
from orchestrator.errors import ConfigError, RemarqueError
from orchestrator.imaging.opencv import PeopleDetector, Shapes
from orchestrator.service import build_tracing
from orchestrator.staging import managed
from orchestrator.staging.accounts import Accounts, Tier, load_accounts
from orchestrator.staging.breaker import Breaker, BreakerSettings
from orchestrator.staging.cost import CostLedger
from orchestrator.staging.desk import Desk, DeskSettings
from orchestrator.staging.floor import find_floor
from orchestrator.staging.gateway import Gateway, Lane
from orchestrator.staging.judged import JudgedProvider
from orchestrator.staging.keeper import Keeper
from orchestrator.staging.ledger import StagingLedger
from orchestrator.staging.managed import ManagedProvider
from orchestrator.staging.mock import MockProvider
from orchestrator.staging.original import PhotoLimits
from orchestrator.staging.policy import BlockedWords, NoPeople, Rule, check_wording
from orchestrator.staging.promises import Promises
from orchestrator.staging.prompts import BUILT_IN, PromptTable, load_prompts
from orchestrator.staging.provider import Provider
from orchestrator.staging.quota import Quota, Rate
from orchestrator.staging.retry import RetryBudget
from orchestrator.staging.routes import StagingRoutes
from orchestrator.staging.routing import Mode, Routing
from orchestrator.staging.scores.scene import Sight
from orchestrator.staging.scores.style import load_styles
from orchestrator.staging.scores.verdict import Judge
from orchestrator.staging.stager import Stager, StagerParts, Unsaid
from orchestrator.staging.switch import Switch
from orchestrator.staging_models import OwnStaging, build_own
from orchestrator.staging_settings import StagingSettings
from orchestrator.staging_telemetry import StagingTelemetry

# Of GRACE_SECONDS, what is left to those that are told to let go, and to the answers on their way out.
UNWIND_S = 5.0
LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StagingService:
    """What runs; ``url`` is where it answers."""

    url: str
    desk: Desk
    switch: Switch
    telemetry: StagingTelemetry


@contextmanager
def running_staging(settings: Settings) -> Iterator[StagingService]:
    """The service while the context lasts; leaving it lets what runs finish for most of ``GRACE_SECONDS``."""
    wanted, telemetry, tracing = settings.staging, StagingTelemetry(), build_tracing(settings)
    root, accounts, providers = _required(settings), _accounts(wanted), build_providers(wanted)
    own = build_own(settings, telemetry, None if tracing is None else tracing.batch)
    if own is not None:
        providers["self"] = own.provider
    storage = _storage(settings)
    ledger = StagingLedger(storage, root)
    switch = Switch(storage, root, _routing(settings, providers), tuple(providers))
    lanes, cost = _lanes(wanted, judged(wanted, providers, telemetry, own)), _cost(wanted)
    gateway = _gateway(wanted, lanes, switch.current, telemetry)
    stager = Stager(_parts(settings, storage, gateway, cost, own), telemetry, time.monotonic)
    promises = Promises(ledger, time.time)
    kept = DeskSettings(threads=wanted.concurrency, most_waiting=wanted.max_waiting, deadline_s=wanted.deadline_s)
    desk = Desk(stager.run, promises, kept, telemetry, time.monotonic)
    hosted = providers.get("managed")
    routes = StagingRoutes(
        desk=desk,
        ledger=ledger,
        promises=promises,
        accounts=accounts,
        quota=Quota({cast("Tier", tier): Rate(*rate) for tier, rate in wanted.rates.items()}, time.monotonic),
        switch=switch,
        root=wanted.originals or root,
        admin_token=wanted.admin_token,
        managed=hosted if isinstance(hosted, ManagedProvider) else None,
    )
    _watch(telemetry, desk, lanes, switch, cost)
    readiness = Readiness(storage, desk, providers, switch)
    app = build_app(readiness.not_ready, telemetry.page, routes.endpoints())
    server = HttpServer(app, settings.service.http_host, settings.service.http_port)
    keeper = Keeper(desk, ledger, promises, accounts, switch)
    with ExitStack() as ending:
        if tracing is not None:
            ending.callback(tracing.close)
        if own is not None:
            ending.callback(own.server.close)
        switch.refresh()
        server.start()
        ending.callback(server.stop)
        desk.start()
        ending.callback(desk.stop, max(1.0, settings.service.grace_s - UNWIND_S))
        keeper.start()
        ending.callback(keeper.stop)
        LOG.info("staging with %s on %s", switch.current().mode, server.url)
        yield StagingService(server.url, desk, switch, telemetry)


@dataclass(frozen=True, slots=True)
class Readiness:
    """Tries what a staging needs."""

    storage: Storage
    desk: Desk
    providers: Mapping[Mode, Provider]
    switch: Switch

    def not_ready(self) -> Mapping[str, str]:
        """Each part that does not work, with the reason."""
        found: dict[str, str] = {}
        if self.desk.stopping:
            found["desk"] = "it stops"
        try:
            self.storage.probe()
        except RemarqueError:
            found["store"] = "it cannot be written and read"
            LOG.warning("the store is not ready", exc_info=True)
        mode = self.switch.current().mode
        if reason := self.providers[mode].not_ready():
            found[mode] = reason
        return found


def build_stager(
    settings: Settings,
    providers: Mapping[Mode, Provider],
    telemetry: StagingTelemetry,
    own: OwnStaging | None = None,
) -> Stager:
    """Stages without HTTP and without callers; the routing is that of the settings, and nobody changes it."""
    storage, routing = _storage(settings), _routing(settings, providers)
    lanes = _lanes(settings.staging, providers)
    gateway = _gateway(settings.staging, lanes, lambda: routing, telemetry)
    return Stager(_parts(settings, storage, gateway, _cost(settings.staging), own), telemetry, time.monotonic)


def _gateway(
    wanted: StagingSettings,
    lanes: Mapping[Mode, Lane],
    routing: Callable[[], Routing],
    telemetry: StagingTelemetry,
) -> Gateway:
    attempts, deadline_s = wanted.attempts, wanted.deadline_s
    return Gateway(lanes, routing, telemetry, attempts=attempts, deadline_s=deadline_s, rng=Random())


def _storage(settings: Settings) -> Storage:
    root = _required(settings)
    allowed = (settings.staging.originals or root,)
    return Storage(root, allowed_input_prefixes=allowed, buckets=build_buckets(settings))


def _required(settings: Settings) -> str:
    if settings.store.results is None:
        raise ConfigError("RESULT_STORE is not set; this command needs it (docs/environment.md)")
    return settings.store.results


def _parts(
    settings: Settings, storage: Storage, gateway: Gateway, cost: CostLedger, own: OwnStaging | None
) -> StagerParts:
    wanted, prompts = settings.staging, load_prompts(settings.staging.prompts_file or BUILT_IN)
    return StagerParts(
        originals=storage.inputs,
        root=wanted.originals or _required(settings),
        ledger=StagingLedger(storage, _required(settings)),
        gateway=gateway,
        prompts=prompts,
        rules=_rules(wanted, prompts),
        limits=PhotoLimits(
            max_bytes=wanted.max_mb << 20,
            max_pixels=wanted.max_megapixels * 1_000_000,
            longest_px=wanted.working_px,
            step_px=wanted.size_step_px,
        ),
        cost=cost,
        signing_key=build_signing_key(settings),
        unsaid=Unsaid(wanted.strength, wanted.guidance_scale),
        surveyor=None if own is None else own.surveyor,
        enlarging=None if own is None else own.enlarging,
    )


def _cost(wanted: StagingSettings) -> CostLedger:
    return CostLedger(cast("Mapping[Mode, float]", wanted.prices), wanted.cost_alert_usd, time.time)


def _accounts(wanted: StagingSettings) -> Accounts:
    if wanted.clients_file is None:
        raise ConfigError("STAGING_CLIENTS_FILE is not set; it lists who may call (docs/staging.md)")
    return load_accounts(wanted.clients_file)


def build_providers(wanted: StagingSettings) -> dict[Mode, Provider]:
    """The providers that need no network of our own."""
    found: dict[Mode, Provider] = {"mock": MockProvider(wanted.mock_s)}
    hosted = wanted.managed
    if (hosted.token is None) != (hosted.model is None):
        raise ConfigError("MANAGED_TOKEN and MANAGED_MODEL come together; one of them is not set")
    if hosted.token is not None and hosted.model is not None:
        service = PredictionService(
            url=hosted.url,
            token=hosted.token,
            model=hosted.model,
            output_origins=hosted.output_origins,
            webhook_url=hosted.webhook_url,
        )
        kept = managed.ManagedSettings(model_rev=hosted.model, timeout_s=hosted.timeout_s, names=hosted.inputs)
        found["managed"] = ManagedProvider(Predictions(service), kept)
    return found


def _routing(settings: Settings, providers: Mapping[Mode, Provider]) -> Routing:
    wanted = settings.staging
    routing = Routing(
        mode=settings.models.mode,
        enabled=settings.models.enabled,
        fallback=wanted.fallback,
        canary_mode=wanted.canary_mode,
        canary_percent=wanted.canary_percent,
        canary_salt=wanted.canary_salt,
    )
    if "managed" in routing.modes and "managed" not in providers:
        raise ConfigError("INFERENCE_MODE is 'managed'; MANAGED_TOKEN and MANAGED_MODEL say what makes the pictures")
    return routing


def _lanes(wanted: StagingSettings, providers: Mapping[Mode, Provider]) -> dict[Mode, Lane]:
    settings = BreakerSettings(cool_s=wanted.breaker_cool_s)
    return {
        mode: Lane(provider, Breaker(settings, time.monotonic), RetryBudget()) for mode, provider in providers.items()
    }


def judged(
    wanted: StagingSettings,
    providers: Mapping[Mode, Provider],
    telemetry: StagingTelemetry,
    own: OwnStaging | None = None,
) -> Mapping[Mode, Provider]:
    """The providers with the gate around each that makes pictures worth judging."""
    judge = build_judge(wanted, own)
    if wanted.quality == "off":
        return providers
    gate, retries = wanted.quality == "gate", wanted.quality_retries
    return {
        mode: provider if mode == "mock" else JudgedProvider(provider, judge, telemetry, gate=gate, retries=retries)
        for mode, provider in providers.items()
    }


def build_judge(wanted: StagingSettings, own: OwnStaging | None = None) -> Judge:
    """What scores pictures; raises ConfigError where the file of style scores is wrong."""
    styles = None if wanted.style_scores is None else load_styles(wanted.style_scores)
    if own is None or own.sight is None:
        return Judge(styles=styles)
    return Judge(sight=Sight(own.sight.inverse_depth, partial(find_floor, shapes=Shapes())), styles=styles)


def _rules(wanted: StagingSettings, prompts: PromptTable) -> tuple[Rule, ...]:
    """The content policy; prompts that it would refuse stop the start."""
    rules: list[Rule] = [BlockedWords(wanted.blocked_words)] if wanted.blocked_words else []
    if wanted.reject_people:
        rules.append(NoPeople(PeopleDetector().count))
    for (room, style), wording in prompts.wordings.items():
        try:
            check_wording(rules, wording)
        except RemarqueError as error:
            raise ConfigError(f"prompts: {room} in {style} can never be staged: {error}") from None
    return tuple(rules)


def _watch(
    telemetry: StagingTelemetry, desk: Desk, lanes: Mapping[Mode, Lane], switch: Switch, cost: CostLedger
) -> None:
    telemetry.watch_desk(desk)
    telemetry.watch_routing(switch.current)
    telemetry.watch_cost(cost)
    for mode, lane in lanes.items():
        telemetry.watch_breaker(mode, lane.breaker)
