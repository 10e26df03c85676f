"""One staging from its request to its manifest: the lines of :meth:`Stager.run` are its life."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from orchestrator import __version__
from orchestrator.clients.addresses import AllowedPrefixes, parse_address
from orchestrator.clients.storage import Reader
from orchestrator.errors import InvalidInput, NotFound, ObjectNotFound
from orchestrator.imaging.credentials import SigningKey
from orchestrator.imaging.picture import encode
from orchestrator.imaging.provenance import Provenance
from orchestrator.metering import metered
from orchestrator.staging.cost import CostLedger
from orchestrator.staging.enlarging import Enlarging, enlarged
from orchestrator.staging.gateway import Gateway
from orchestrator.staging.job import StagingJob
from orchestrator.staging.ledger import Manifest, StagingLedger
from orchestrator.staging.masks import composite
from orchestrator.staging.original import PhotoLimits, Working, read_mask, read_photo
from orchestrator.staging.policy import Rule, check_original, check_wording
from orchestrator.staging.prompts import PromptTable, Wording
from orchestrator.staging.provider import StagedPicture, Task
from orchestrator.staging.survey import Survey, Surveyor, unseen

# The same for what is not there and for what is somebody else's: nobody can look around by asking.
_NO_OBJECT = "names no object that this token may read"


class Listen(Protocol):
    """Hears how long each part of a job took, and what a picture cost."""

    def stage(self, name: str, seconds: float) -> None: ...

    def charged(self, tier: str, provider: str, gpu_s: float, usd: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Unsaid:
    """What holds where a request says nothing: how far a picture may move from the photograph inside the mask, 0 to 1,
    and how strictly the prompt is followed.
    """

    strength: float
    guidance_scale: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StagerParts:
    """What stagings share. ``originals`` reads the store, ``root`` is where the keys of originals begin.

    ``surveyor`` and ``enlarging`` are there where networks of our own are.
    """

    originals: Reader
    root: str
    ledger: StagingLedger
    gateway: Gateway
    prompts: PromptTable
    rules: Sequence[Rule]
    limits: PhotoLimits
    cost: CostLedger
    signing_key: SigningKey
    unsaid: Unsaid
    surveyor: Surveyor | None = None
    enlarging: Enlarging | None = None


@dataclass(slots=True)
class _Clock:
    """Times the parts of one job."""

    listen: Callable[[str, float], None]
    durations_ms: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        begun_s = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - begun_s)

    def add(self, name: str, seconds: float) -> None:
        self.durations_ms[name] = round(seconds * 1000)
        self.listen(name, seconds)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Made:
    """A staged picture and all that its answer tells: ``pixels`` are the final ones, ``task`` is what was made."""

    working: Working
    survey: Survey
    staged: StagedPicture
    task: Task
    pixels: NDArray[np.uint8]
    upscaled: bool = False
    upscale_s: float = 0.0

    @property
    def gpu_s(self) -> float:
        """What the provider bills; ours bills what came before and after it, too."""
        own_s = self.survey.network_s + self.upscale_s if self.staged.provider == "self" else 0.0
        return self.staged.gpu_s + own_s


class Stager:
    """Stages pictures, any number side by side; what they share is read-only or locks itself."""

    def __init__(self, parts: StagerParts, listen: Listen, clock: Callable[[], float]) -> None:
        self._parts = parts
        self._listen = listen
        self._clock = clock

    def run(self, job: StagingJob) -> Manifest:
        """The manifest that was committed for the job's image, by this attempt or by a quicker one.

        Raises:
            Refused: the request, its original or its mask is not served; no provider was called.
            RemarqueError: it broke; its class says whether another attempt may go better.
        """
        parts, clock = self._parts, _Clock(self._listen.stage)
        clock.add("queue", self._clock() - job.accepted_s)
        wording = parts.prompts.wording(job.request.room_type, job.request.style)
        check_wording(parts.rules, wording)
        with clock.part("fetch"):
            original, mask = self._fetched(job)
        job.check()
        with clock.part("preprocess"):
            working = read_photo(original, parts.limits, keep_full=self._enlarging(job) is not None)
            given = None if mask is None else read_mask(mask, working, parts.limits)
            check_original(parts.rules, working.pixels)
        survey = self._surveyed(job, working, given, clock)
        job.check()
        with clock.part("provider"):
            task = self._task(job, wording, working, survey)
            staged = parts.gateway.stage(job.request.image_id, task, job)
        for name, seconds in staged.parts_s.items():
            clock.add(name, seconds)
        made = self._put_together(job, working, survey, staged, staged.task or task, clock)
        with clock.part("encode"):
            picture = encode(made.pixels, self._provenance(job, made, original), "png", parts.signing_key)
        job.check()
        with clock.part("store"):
            key = parts.ledger.store_picture(job.name, picture)
        answer = self._answer(job, made, key) | {"durations_ms": clock.durations_ms}
        answer |= {"inference_meta": self._meta(job, made)}
        return parts.ledger.commit(job.name, Manifest(fingerprint=job.request.fingerprint, answer=answer))

    def _enlarging(self, job: StagingJob) -> Enlarging | None:
        """What enlarges the job's picture, if its tier and its provider have that."""
        enlarging = self._parts.enlarging
        own = self._parts.gateway.chosen(job.request.image_id) == "self"
        return enlarging if own and enlarging is not None and job.tier in enlarging.tiers else None

    def _surveyed(self, job: StagingJob, working: Working, given: NDArray[np.bool_] | None, clock: _Clock) -> Survey:
        if self._parts.surveyor is None or self._parts.gateway.chosen(job.request.image_id) != "self":
            return unseen(working.pixels, given)
        return self._parts.surveyor.survey(working.pixels, given, clock.part)

    def _put_together(
        self, job: StagingJob, working: Working, survey: Survey, staged: StagedPicture, task: Task, clock: _Clock
    ) -> _Made:
        with clock.part("composite"):
            pixels = composite(working.pixels, staged.pixels, task.mask)
        made = _Made(working=working, survey=survey, staged=staged, task=task, pixels=pixels)
        enlarging = self._enlarging(job)
        if enlarging is None or working.full is None or staged.provider != "self":
            return made
        with clock.part("upscale"), metered() as meter:
            pixels, upscaled = enlarged(pixels, working.full, task.mask, enlarging.upscale)
        return replace(made, pixels=pixels, upscaled=upscaled, upscale_s=meter.seconds)

    def _fetched(self, job: StagingJob) -> tuple[bytes, bytes | None]:
        """The original and the mask, from below the prefixes that the caller may read."""
        request = job.request
        allowed = AllowedPrefixes(job.account.allowed(self._parts.root, request))
        original = self._read(allowed, "original_key", request.original_key)
        return original, None if request.mask_key is None else self._read(allowed, "mask_key", request.mask_key)

    def _read(self, allowed: AllowedPrefixes, field_name: str, key: str) -> bytes:
        try:
            address = allowed.admit(parse_address(self._parts.root).child(key))
        except InvalidInput:
            raise NotFound(f"{field_name} {_NO_OBJECT}") from None
        try:
            reader = replace(self._parts.originals, allowed=allowed)
            return reader.read(address.uri(), limit_bytes=self._parts.limits.max_bytes)
        except ObjectNotFound:
            raise NotFound(f"{field_name} {_NO_OBJECT}") from None
        except InvalidInput:
            raise InvalidInput(f"{field_name} is over {self._parts.limits.max_bytes} bytes") from None

    def _task(self, job: StagingJob, wording: Wording, working: Working, survey: Survey) -> Task:
        request, wish = job.request, self._parts.unsaid
        return Task(
            key=sha256(f"{job.name}:{request.fingerprint}".encode()).hexdigest()[:32],
            picture=working.pixels,
            mask=survey.mask,
            wording=wording,
            seed=request.used_seed,
            strength=wish.strength if request.strength is None else request.strength,
            guidance_scale=wish.guidance_scale if request.guidance_scale is None else request.guidance_scale,
            style=request.style,
            inverse_depth=survey.inverse_depth,
        )

    def _answer(self, job: StagingJob, made: _Made, key: str) -> dict[str, object]:
        height_px, width_px = made.pixels.shape[:2]
        unknown = [f"the field {name[:40]} is not known and was ignored" for name in job.request.unknown]
        warnings = [*made.staged.warnings, *made.survey.warnings, *made.working.warnings, *unknown]
        answer: dict[str, object] = {
            "image_id": job.request.image_id,
            "staged_key": key,
            "width": width_px,
            "height": height_px,
            "model_rev": made.staged.model_rev,
            "duration_ms": round((self._clock() - job.accepted_s) * 1000),
        }
        return answer | ({"warnings": warnings} if warnings else {})

    def _meta(self, job: StagingJob, made: _Made) -> dict[str, object]:
        staged, task = made.staged, made.task
        usd = self._parts.cost.charge(staged.provider, made.gpu_s)
        self._listen.charged(job.tier, staged.provider, made.gpu_s, usd)
        quality = {} if staged.quality is None else {"quality": dict(staged.quality)}
        return quality | {
            "provider": staged.provider,
            "mock": staged.mock,
            "seed": task.seed,
            "strength": task.strength,
            "guidance_scale": task.guidance_scale,
            "mask": made.survey.origin,
            "upscaled": made.upscaled,
            "prompts": self._parts.prompts.revision,
            "tier": job.tier,
            "gpu_seconds": round(made.gpu_s, 3),
            "cost_usd": round(usd, 6),
        }

    def _provenance(self, job: StagingJob, made: _Made, original: bytes) -> Provenance:
        staged, task = made.staged, made.task
        height_px, width_px = made.pixels.shape[:2]
        return Provenance(
            generation_id=job.request.image_id,
            prompt=task.wording.prompt,
            negative_prompt=task.wording.negative_prompt,
            seed=task.seed,
            num_inference_steps=0,
            sampler=staged.provider,
            guidance_scale=task.guidance_scale,
            width_px=width_px,
            height_px=height_px,
            model_name=staged.model_rev,
            model_sha256=staged.model_sha256,
            created=datetime.now(UTC),
            software_version=__version__,
            mock=staged.mock,
            composite=True,
            extra={
                "Room type": job.request.room_type,
                "Staging style": job.request.style,
                "Denoising strength": task.strength,
                "Original SHA-256": sha256(original).hexdigest(),
            },
        )
