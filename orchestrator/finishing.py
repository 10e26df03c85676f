"""What follows the last step: the artist's mark on the picture, and the file that says where it comes from."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from orchestrator import __version__
from orchestrator.checkpoint import CheckpointInfo
from orchestrator.errors import InvalidInput, ObjectNotFound, SignatureInvalid, SignatureNotFound
from orchestrator.imaging.credentials import SigningKey
from orchestrator.imaging.picture import encode
from orchestrator.imaging.provenance import Provenance
from orchestrator.imaging.signature import Mark, load_signature, stamp, text_signature
from orchestrator.job import Job, StyleRef
from orchestrator.plan import SCHEDULE_DEFAULT, Plan
from orchestrator.style_ways import AppliedStyle

SIGNATURE_LIMIT_BYTES = 10 << 20


class Inputs(Protocol):
    """Reads what a job names; only allowed prefixes are admitted."""

    def read(self, uri: str, *, limit_bytes: int) -> bytes: ...


class Styles(Protocol):
    """Reads and checks styles, all of a job's or none; ``prefetch`` begins in the background and never fails."""

    def admit(self, refs: Sequence[StyleRef]) -> tuple[AppliedStyle, ...]: ...

    def prefetch(self, refs: Sequence[StyleRef]) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Materials:
    """What a job names beside its prompt, fetched and checked."""

    styles: tuple[AppliedStyle, ...]
    mark: Mark | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finishing:
    """Makes files out of pixels; ``mock`` marks them as made without a model."""

    checkpoint: CheckpointInfo
    inputs: Inputs
    styles: Styles
    signing_key: SigningKey
    mock: bool = False

    def materials(self, job: Job) -> Materials:
        """Styles and signature; fetched before the first step, so that what cannot be had costs no picture."""
        return Materials(styles=self.styles.admit(job.styles), mark=self._mark(job))

    def _mark(self, job: Job) -> Mark | None:
        wanted = job.signature
        if wanted is None:
            return None
        if wanted.path is None:
            return text_signature(wanted.artist_name or "")
        try:
            return load_signature(self.inputs.read(wanted.path, limit_bytes=SIGNATURE_LIMIT_BYTES))
        except ObjectNotFound as error:
            raise SignatureNotFound(f"signature_path is {wanted.path}; there is no such object") from error
        except InvalidInput as error:
            raise SignatureInvalid(str(error)) from error

    def file(self, job: Job, plan: Plan, materials: Materials, pixels: NDArray[np.uint8]) -> bytes:
        """The stamped picture in the job's format; ``pixels`` is [height,width,3]."""
        if materials.mark is not None and job.signature is not None:
            pixels = stamp(pixels, materials.mark, job.signature)
        return encode(pixels, self._provenance(job, plan, materials), job.picture_format, self.signing_key)

    def _provenance(self, job: Job, plan: Plan, materials: Materials) -> Provenance:
        return Provenance(
            generation_id=job.generation_id,
            prompt=plan.prompt,
            negative_prompt=plan.negative_prompt,
            seed=plan.seed,
            num_inference_steps=plan.num_inference_steps,
            sampler=plan.sampler,
            guidance_scale=plan.guidance_scale,
            width_px=plan.width_px,
            height_px=plan.height_px,
            model_name=self.checkpoint.name,
            model_sha256=self.checkpoint.weights_sha256,
            created=datetime.now(UTC),
            software_version=__version__,
            styles=tuple(style.record for style in materials.styles),
            artist_id=job.artist_id,
            artist_name=job.artist_name,
            mock=self.mock,
            composite=_keeps_source(plan) and not self.mock,
            extra=_extra(plan),
        )


def _keeps_source(plan: Plan) -> bool:
    """Whether something of a picture that the job brought is left; the mock draws over all of it."""
    return plan.source is not None and (plan.source.mask is not None or plan.source.strength < 1.0)


def _extra(plan: Plan) -> dict[str, str | int | float]:
    """What else the picture depends on, where it is not the default; without it nobody could make it again."""
    extra: dict[str, str | int | float] = {}
    if plan.spacing != SCHEDULE_DEFAULT:
        extra["Timestep spacing"] = plan.spacing
    if plan.sigmas != SCHEDULE_DEFAULT:
        extra["Schedule type"] = plan.sigmas.capitalize()
    if len(plan.passes) > 1:
        base, last = plan.passes[0], plan.passes[-1]
        extra["Base size"] = f"{base.width_px}x{base.height_px}"
        extra["Denoising strength"] = last.strength
    if plan.source is not None:
        extra["Denoising strength"] = plan.source.strength
        extra["Source digest"] = plan.source.sha256
    for number, control in enumerate(plan.controls):
        # As A1111's extension writes it, and reads it back.
        window = f"Guidance Start: {control.start:g}, Guidance End: {control.end:g}"
        extra[f"ControlNet {number}"] = f"Model: {control.name}, Weight: {control.scale:g}, {window}"
        extra[f"ControlNet {number} digest"] = control.sha256
    return extra
