"""``python -m orchestrator evaluate``: a curated set of rooms, staged and scored, as a page to look at."""

import argparse
import io
import json
import sys
import tempfile
import time
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from orchestrator import __version__
from orchestrator.config import Settings
from orchestrator.errors import ConfigError, RemarqueError, StorageError
from orchestrator.staging.accounts import Account
from orchestrator.staging.curated import CuratedSet, Entry, load_set
from orchestrator.staging.job import StagingJob
from orchestrator.staging.masks import composite
from orchestrator.staging.prompts import BUILT_IN, load_prompts
from orchestrator.staging.provider import Provider, StagedPicture, Task, Watch
from orchestrator.staging.report import Outcome, Report
from orchestrator.staging.request import StagingRequest
from orchestrator.staging.routing import MODES, Mode
from orchestrator.staging.scores.verdict import Judge
from orchestrator.staging.stager import Stager
from orchestrator.staging_models import build_own
from orchestrator.staging_service import build_judge, build_providers, build_stager, judged
from orchestrator.staging_telemetry import StagingTelemetry

DESCRIPTION = """
Stages every room of a curated set as POST /infer would, scores the pictures and writes a report: OUT/index.html with a
slider for each room, OUT/results.json and the pictures. A set is a folder with set.json (docs/staging.md).

What makes the pictures is INFERENCE_MODE or --provider. Exit codes: 0 enough rooms passed, 1 too few did, 2 the set or
a setting is wrong.
"""
DEFAULT_SET: Final = Path("demo/rooms/evaluation")
_CALLER: Final = Account(name="evaluation", token_sha256="", tiers=("business",), prefixes=())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--set", type=Path, default=DEFAULT_SET, metavar="FOLDER", help=f"default {DEFAULT_SET}")
    parser.add_argument("--out", type=Path, default=Path("report"), metavar="FOLDER", help="default report")
    parser.add_argument("--provider", choices=MODES, help="what makes the pictures (default: INFERENCE_MODE)")
    parser.add_argument("--least", type=_share, default=0.8, metavar="X", help="share that must pass, 0 to 1; 0.8")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Writes the report and says where it is; 1 where fewer rooms passed than ``--least``."""
    curated = load_set(args.set)
    mode: Mode = args.provider or settings.models.mode
    begun = datetime.now(UTC)
    with ExitStack() as ending:
        store = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="remarque-evaluate-")))
        evaluation = Evaluation(curated, _settings_for(settings, mode, curated, store), args.out)
        ending.callback(evaluation.close)
        outcomes = [evaluation.outcome(entry) for entry in curated.entries]
    report = Report(
        title=f"Staged rooms: {curated.name}",
        origin=curated.origin,
        outcomes=outcomes,
        least=args.least,
        facts=_facts(settings, mode, evaluation.model_revs, begun),
    )
    _written(args.out / "results.json", f"{json.dumps(report.document(), indent=1)}\n".encode())
    _written(args.out / "index.html", report.page().encode())
    passed = sum(outcome.passed for outcome in outcomes)
    sys.stdout.write(f"{args.out / 'index.html'}  {passed} of {len(outcomes)} rooms pass ({report.pass_rate:.0%})\n")
    return 0 if report.good else 1


@dataclass(slots=True)
class _Seen:
    """What a provider was asked for, and what it gave."""

    task: Task
    staged: StagedPicture


class _Watched:
    """A provider that somebody looks over the shoulder of."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self.seen: list[_Seen] = []

    def stage(self, task: Task, watch: Watch) -> StagedPicture:
        """The provider's own picture."""
        staged = self._provider.stage(task, watch)
        self.seen.append(_Seen(staged.task or task, staged))
        return staged

    def not_ready(self) -> str | None:
        """What the provider says."""
        return self._provider.not_ready()


class Evaluation:
    """Stages the rooms of a set one after the other, by the service's own stager on a store of its own."""

    def __init__(self, curated: CuratedSet, settings: Settings, out: Path) -> None:
        wanted, telemetry, mode = settings.staging, StagingTelemetry(), settings.models.mode
        found, own = build_providers(wanted), build_own(settings, telemetry)
        if own is not None:
            found["self"] = own.provider
        if mode not in found:
            raise ConfigError(f"--provider {mode} cannot be built from these settings (docs/staging.md)")
        self._curated = curated
        self._settings = settings
        self._out = out
        self._own = own
        self._watched = _Watched(judged(wanted, found, telemetry, own)[mode])
        self._judge: Judge = build_judge(wanted, own)
        self._stager: Stager = build_stager(settings, {mode: self._watched}, telemetry, own)
        self.model_revs: set[str] = set()

    def close(self) -> None:
        """Lets go of Triton."""
        if self._own is not None:
            self._own.server.close()

    def outcome(self, entry: Entry) -> Outcome:
        """One room; what goes wrong with it is in its ``error``."""
        original = self._curated.folder / entry.original
        begun_s = time.monotonic()
        try:
            answer = self._stager.run(self._job(entry)).answer
        except RemarqueError as error:
            before = _written(self._out / "pictures" / f"{entry.id}{original.suffix}", original.read_bytes())
            return Outcome(entry=entry, before=before, error=f"{error.code}: {error}", seed=entry.seed)
        task, staged = self._watched.seen[-1].task, self._watched.seen[-1].staged
        self.model_revs.add(staged.model_rev)
        pixels = composite(task.picture, staged.pixels, task.mask)
        return Outcome(
            entry=entry,
            before=_written(self._out / "pictures" / f"{entry.id}-before.png", _png(task.picture)),
            after=self._fetched(entry, str(answer["staged_key"])),
            verdict=self._judge.verdict(task.picture, pixels, task.mask, entry.style, told=task.inverse_depth),
            seed=task.seed,
            strength=task.strength,
            duration_ms=round((time.monotonic() - begun_s) * 1000),
            warnings=staged.warnings,
        )

    def _job(self, entry: Entry) -> StagingJob:
        folder = self._curated.folder.resolve().name
        request = StagingRequest(
            image_id=entry.id,
            original_key=f"{folder}/{entry.original}",
            room_type=entry.room_type,
            style=entry.style,
            seed=entry.seed,
            mask_key=None if entry.mask is None else f"{folder}/{entry.mask}",
        )
        until_s = time.monotonic() + self._settings.staging.deadline_s
        account = replace(_CALLER, prefixes=(f"{folder}/",))
        return StagingJob(request, account, "business", until_s=until_s, clock=time.monotonic)

    def _fetched(self, entry: Entry, key: str) -> str:
        """The staged picture, moved from the evaluation's own store to the report."""
        assert self._settings.store.results is not None, "the evaluation has a store of its own"
        store = Path(url2pathname(urlsplit(self._settings.store.results).path))
        return _written(self._out / "pictures" / f"{entry.id}-after.png", (store / key).read_bytes())


def _settings_for(settings: Settings, mode: Mode, curated: CuratedSet, store: Path) -> Settings:
    """The settings with originals out of the set, a store of its own, and nobody who steps in for the provider."""
    originals = curated.folder.resolve().parent.as_uri()
    staging = replace(settings.staging, originals=originals, fallback="refuse", canary_mode=None, canary_percent=0.0)
    return replace(
        settings,
        models=replace(settings.models, mode=mode, enabled=True),
        store=replace(settings.store, results=store.resolve().as_uri()),
        staging=staging,
    )


def _facts(settings: Settings, mode: Mode, model_revs: Collection[str], begun: datetime) -> dict[str, str]:
    wanted = settings.staging
    return {
        "made by": mode,
        "model": ", ".join(sorted(model_revs)) or "none",
        "begun": begun.isoformat(timespec="seconds"),
        "software": f"Remarque {__version__}",
        "prompts": load_prompts(wanted.prompts_file or BUILT_IN).revision,
        "STAGING_QUALITY": f"{wanted.quality}, up to {wanted.quality_retries} more tries",
        "STAGING_STYLE_SCORES": "not set" if wanted.style_scores is None else wanted.style_scores.name,
        "STAGING_WORKING_PX": str(wanted.working_px),
    }


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share; 0 to 1 is expected")
    return share


def _png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def _written(path: Path, data: bytes) -> str:
    """Writes a file of the report; its address beside the page."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}") from None
    return f"{path.parent.name}/{path.name}"
