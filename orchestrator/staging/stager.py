"""One staging from its request to its manifest: the lines of :meth:`Stager.run` are its life."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Protocol

from orchestrator import __version__
from orchestrator.clients.addresses import AllowedPrefixes, parse_address
from orchestrator.clients.storage import Reader
from orchestrator.errors import InvalidInput, NotFound, ObjectNotFound
from orchestrator.imaging.credentials import SigningKey
from orchestrator.imaging.picture import encode
from orchestrator.imaging.provenance import Provenance
from orchestrator.staging.cost import CostLedger
from orchestrator.staging.gateway import Gateway
from orchestrator.staging.job import StagingJob
from orchestrator.staging.ledger import Manifest, StagingLedger
from orchestrator.staging.masks import composite, floor_mask
from orchestrator.staging.original import PhotoLimits, Working, read_mask, read_photo
from orchestrator.staging.policy import Rule, check_original, check_wording
from orchestrator.staging.prompts import PromptTable, Wording
from orchestrator.staging.provider import StagedPicture, Task

# The same for what is not there and for what is somebody else's: nobody can look around by asking.
_NO_OBJECT = "names no object that this token may read"


class Listen(Protocol):
    """Hears how long each part of a job took, and what a picture cost."""

    def stage(self, name: str, seconds: float) -> None: ...

    def charged(self, tier: str, provider: str, gpu_s: float, usd: float) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StagerParts:
    """What stagings share. ``originals`` reads the store, ``root`` is where the keys of originals begin."""

    originals: Reader
    root: str
    ledger: StagingLedger
    gateway: Gateway
    prompts: PromptTable
    rules: Sequence[Rule]
    limits: PhotoLimits
    cost: CostLedger
    signing_key: SigningKey


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
            working = read_photo(original, parts.limits)
            task = self._task(job, wording, working, mask)
            check_original(parts.rules, working.pixels)
        job.check()
        with clock.part("provider"):
            staged = parts.gateway.stage(job.request.image_id, task, job)
        task = staged.task or task
        with clock.part("composite"):
            pixels = composite(working.pixels, staged.pixels, task.mask)
        with clock.part("encode"):
            picture = encode(pixels, self._provenance(job, task, staged, original), "png", parts.signing_key)
        job.check()
        with clock.part("store"):
            key = parts.ledger.store_picture(job.name, picture)
        answer = self._answer(job, staged, working, key) | {"durations_ms": clock.durations_ms}
        answer |= {"inference_meta": self._meta(job, task, staged)}
        return parts.ledger.commit(job.name, Manifest(fingerprint=job.request.fingerprint, answer=answer))

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

    def _task(self, job: StagingJob, wording: Wording, working: Working, mask: bytes | None) -> Task:
        request, (height_px, width_px) = job.request, working.pixels.shape[:2]
        return Task(
            key=sha256(f"{job.name}:{request.fingerprint}".encode()).hexdigest()[:32],
            picture=working.pixels,
            mask=floor_mask(height_px, width_px) if mask is None else read_mask(mask, working, self._parts.limits),
            wording=wording,
            seed=request.used_seed,
            strength=request.used_strength,
            guidance_scale=request.used_guidance_scale,
            style=request.style,
        )

    def _answer(self, job: StagingJob, staged: StagedPicture, working: Working, key: str) -> dict[str, object]:
        height_px, width_px = working.pixels.shape[:2]
        unknown = [f"the field {name[:40]} is not known and was ignored" for name in job.request.unknown]
        warnings = [*staged.warnings, *working.warnings, *unknown]
        answer: dict[str, object] = {
            "image_id": job.request.image_id,
            "staged_key": key,
            "width": width_px,
            "height": height_px,
            "model_rev": staged.model_rev,
            "duration_ms": round((self._clock() - job.accepted_s) * 1000),
        }
        return answer | ({"warnings": warnings} if warnings else {})

    def _meta(self, job: StagingJob, task: Task, staged: StagedPicture) -> dict[str, object]:
        usd = self._parts.cost.charge(staged.provider, staged.gpu_s)
        self._listen.charged(job.tier, staged.provider, staged.gpu_s, usd)
        quality = {} if staged.quality is None else {"quality": dict(staged.quality)}
        return quality | {
            "provider": staged.provider,
            "mock": staged.mock,
            "seed": task.seed,
            "strength": task.strength,
            "guidance_scale": task.guidance_scale,
            "mask": "floor" if job.request.mask_key is None else "given",
            "prompts": self._parts.prompts.revision,
            "tier": job.tier,
            "gpu_seconds": round(staged.gpu_s, 3),
            "cost_usd": round(usd, 6),
        }

    def _provenance(self, job: StagingJob, task: Task, staged: StagedPicture, original: bytes) -> Provenance:
        height_px, width_px = task.picture.shape[:2]
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
