"""One job from plan to stored picture: the lines of :meth:`Runner.run` are the life of a job."""

import uuid
from dataclasses import asdict, dataclass

from orchestrator.attempt import Attempt, Control, derived_seed
from orchestrator.denoising import Denoising, Emit, Painter
from orchestrator.errors import InvalidInput
from orchestrator.finishing import Finishing, Inputs, Materials, Styles
from orchestrator.given_pictures import given_pictures
from orchestrator.imaging.credentials import SigningKey
from orchestrator.imaging.picture import MIME_TYPES
from orchestrator.job import Job, Progress, Succeeded
from orchestrator.ledger import Ledger, Manifest, Picture
from orchestrator.plan import Plan, make_plan
from orchestrator.schema import body_of
from orchestrator.stages import stage
from orchestrator.style_ways import StyleMode


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerSettings:
    """``mock`` marks pictures and webhooks; a checkpoint is kept every ``checkpoint_every_s`` of denoising."""

    checkpoint_every_s: float
    signing_key: SigningKey
    style_mode: StyleMode = "auto"
    mock: bool = False


class Runner:
    """Runs attempts, any number side by side; what they share is read-only or locks itself."""

    def __init__(
        self, painter: Painter, ledger: Ledger, inputs: Inputs, styles: Styles, settings: RunnerSettings
    ) -> None:
        self._painter = painter
        self._ledger = ledger
        self._inputs = inputs
        self._styles = styles
        self._finishing = Finishing(
            checkpoint=painter.checkpoint,
            inputs=inputs,
            styles=styles,
            signing_key=settings.signing_key,
            mock=settings.mock,
        )
        self._settings = settings

    def prepare(self, job: Job) -> None:
        """Begin to fetch what the job will need, while it waits for its turn."""
        self._styles.prefetch(job.styles)

    def run(self, attempt: Attempt, control: Control, emit: Emit) -> Manifest:
        """The manifest that says how the job ended: made now, or found because it had ended before.

        Raises:
            Interrupted: the control asked for a stop; a checkpoint was kept if a step had been taken.
            RemarqueError: the attempt failed; its class says whether another may succeed.
        """
        settled = self.settled(attempt)
        if settled is not None:
            return settled
        control.check()
        with stage("inputs"):
            materials = self._finishing.materials(attempt.job)
            pictures = given_pictures(attempt.job, self._inputs, self._painter.checkpoint)
        plan = make_plan(
            attempt.job,
            self._painter.checkpoint,
            lambda: derived_seed(attempt.job),
            pictures,
            styles=materials.styles,
            style_mode=self._settings.style_mode,
        )
        denoising = Denoising(attempt, plan, self._ledger, emit)
        pixels = denoising.picture(self._painter, control, self._settings.checkpoint_every_s)
        with stage("stamp"):
            data = self._finishing.file(attempt.job, plan, materials, pixels)
        picture = Picture(data=data, content_type=MIME_TYPES[attempt.job.picture_format])
        with stage("store"):
            ours = self._offered(attempt, plan, materials, picture)
            counts = self._committed(attempt, ours, picture)
        if counts is ours:  # of another attempt's outcome the backend has heard, and nothing may follow that
            emit(_stored(attempt.job, plan))
        return counts

    def settled(self, attempt: Attempt) -> Manifest | None:
        """The outcome this job already has; a failure is reopened where an operator replayed the job since.

        Raises:
            InvalidInput: the id was used for a picture of other parameters.
        """
        generation_id = attempt.job.generation_id
        manifest = self._ledger.find(generation_id)
        if manifest is None:
            return None
        if manifest.outcome == "failed" and attempt.life > manifest.life:
            self._ledger.reopen(manifest)
            return None
        self._require_same(attempt, manifest)
        self._ledger.reveal(manifest)
        return manifest

    @staticmethod
    def _require_same(attempt: Attempt, manifest: Manifest) -> None:
        if manifest.fingerprint != attempt.fingerprint:
            raise InvalidInput(
                f"generation_id {attempt.job.generation_id} was used before with other parameters; each job has its own"
            )

    def _offered(self, attempt: Attempt, plan: Plan, materials: Materials, picture: Picture) -> Manifest:
        """Store the picture under a name of the attempt's own; the outcome that it would be."""
        job = attempt.job
        uri, sha256 = self._ledger.store_attempt(job.generation_id, uuid.uuid4().hex, picture)
        event = Succeeded(
            generation_id=job.generation_id,
            result_url=self._ledger.result_uri(job.generation_id, picture.content_type),
            metadata=self._metadata(job, plan, materials) | {"sha256": sha256},
        )
        return Manifest(
            generation_id=job.generation_id,
            outcome="complete",
            body=body_of(event),
            fingerprint=attempt.fingerprint,
            life=attempt.life,
            webhook_url=job.webhook_url,
            picture_uri=uri,
            picture_sha256=sha256,
            content_type=picture.content_type,
        )

    def _committed(self, attempt: Attempt, ours: Manifest, picture: Picture) -> Manifest:
        """Commit the outcome and give the picture its public name; another may have been first, and counts then."""
        counts = self._ledger.commit(ours)
        if counts is not ours:
            self._ledger.discard_attempt(str(ours.picture_uri))
            self._require_same(attempt, counts)
        self._ledger.reveal(counts, picture if counts is ours else None)
        return counts

    def _metadata(self, job: Job, plan: Plan, materials: Materials) -> dict[str, object]:
        """What the backend is told about the picture."""
        metadata: dict[str, object] = {
            "seed": plan.seed,
            "steps": plan.num_inference_steps,
            "guidance_scale": plan.guidance_scale,
            "sampler": plan.sampler,
            "width": plan.width_px,
            "height": plan.height_px,
            "model": self._painter.checkpoint.name,
            "model_sha256": self._painter.checkpoint.weights_sha256,
            "artist_id": job.artist_id,
        }
        if materials.styles:
            metadata["styles"] = [asdict(style.record) for style in materials.styles]
        return metadata | ({"mock": True} if self._settings.mock else {})


def _stored(job: Job, plan: Plan) -> Progress:
    return Progress(
        generation_id=job.generation_id,
        current_step=plan.total_steps,
        total_steps=plan.total_steps,
        progress_percent=100,
        estimated_seconds=0.0,
    )
