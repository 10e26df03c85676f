"""A plan turned into a picture: prompts encoded, latents denoised step by step, the last of them decoded."""

import hashlib
import io
import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from orchestrator.checkpoint import CheckpointInfo
from orchestrator.conditioning import Conditioning, Merged
from orchestrator.diffusion.control import scales_by_turn
from orchestrator.diffusion.denoiser import Network, denoiser, guided
from orchestrator.diffusion.inpainting import Kept, latent_mask, uncovered
from orchestrator.diffusion.levels import Levels, Step
from orchestrator.diffusion.noise import Latents, StepNoise, TorchNormal
from orchestrator.diffusion.resize import enlarged, rough_picture
from orchestrator.diffusion.sampling import SAMPLERS
from orchestrator.errors import ModelUnavailable
from orchestrator.pictures import SourcePicture
from orchestrator.plan import Pass, Plan
from orchestrator.stages import stage

STEP_FORMAT = 2
_DIGEST_BYTES = hashlib.sha256().digest_size
# Every pass draws from its own noise: one seed for all would lay the base's start noise over the second pass.
SEED_STRIDE = 0x9E3779B9


class Models(Protocol):
    """The networks, wherever they run. ``n`` is any number of rows; rows do not see each other."""

    def encode_text(
        self, input_ids: NDArray[np.int64], /, model: str = "text_encoder"
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """``[n,77]`` to hidden states ``[n,77,width]`` and pooled output ``[n,width]``; ``model`` names the encoder."""
        ...

    def conditioned(self, model: str, inputs: Mapping[str, NDArray[Any]], /) -> AbstractContextManager[Network]:
        """``model`` as a network of ``n`` rows whose other inputs ([n, ...] each) stay what they are between steps.

        They are placed once and gone when the context ends; until then any number of calls may be made, one at a time.
        """
        ...

    def decode(self, latents: Latents, /) -> NDArray[np.uint8]:
        """``[n,4,h,w] -> [n,8h,8w,3]``; raises ModelUnavailable for NaN."""
        ...

    def encode(self, picture: NDArray[np.uint8], /) -> tuple[Latents, Latents]:
        """``[n,8h,8w,3]`` to mean and standard deviation ``[n,4,h,w]`` of its latents."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class PipelineStep:
    """One step of a picture, done; ``index`` of ``total`` counts over all passes and starts at 0.

    ``step`` is all that the loop needs to go on from here: see :func:`step_to_bytes`.
    """

    pass_index: int
    index: int
    total: int
    step: Step


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """The last thing a run yields: the picture, [height,width,3] uint8."""

    picture: NDArray[np.uint8]


Turns = Generator[PipelineStep | Finished, None, None]
"""What a run yields. Whoever does not exhaust it closes it, so that what the run placed in the server goes too."""


class _Beginning(NamedTuple):
    """The step that a pass goes on from, and the picture of which some must stay.

    A UNet that was trained to inpaint needs no keeping: it sees ``masked`` in every step, [1,5,h,w], the mask and then
    the latents of the picture without what the mask covers.
    """

    start: Step
    kept: Kept | None = None
    masked: Latents | None = None


class Pipeline:
    """Runs plans on one checkpoint; shared by all jobs, it keeps nothing of them but prompt embeddings."""

    def __init__(self, models: Models, checkpoint: CheckpointInfo, merged: Merged | None = None) -> None:
        """Without ``merged`` a style is mixed or refused."""
        self.checkpoint = checkpoint
        self._models = models
        self._merged = merged
        self._conditioning = Conditioning(models.encode_text, checkpoint, merged)

    def run(self, plan: Plan, resume: PipelineStep | None = None) -> Turns:
        """Every step of ``plan``, or those after ``resume``, then the picture. To stop, close it.

        The picture is the same from wherever the run was resumed.

        Raises:
            GenerationFailed: a network could not be reached, took too long or answered NaN.
        """
        clean: Latents | None = None
        first = 0 if resume is None else resume.pass_index
        for pass_index in range(first, len(plan.passes)):
            resumed = resume.step if resume is not None and pass_index == first else None
            with ExitStack() as placed:
                begun = self._begun(plan, pass_index, clean, resumed)
                networks = self._networks(plan, plan.passes[pass_index], begun.masked, placed)
                with stage("denoise"):
                    clean = yield from self._denoise(plan, pass_index, networks, begun, placed)
        assert clean is not None
        with stage("decode"):
            picture = self._models.decode(clean)[0]
        yield Finished(picture)

    def _networks(self, plan: Plan, one: Pass, masked: Latents | None, placed: ExitStack) -> tuple[Network, ...]:
        """The network of each turn: the UNet, fused with ControlNets in turns in which one of them has a say."""
        with stage("text"):
            inputs = self._conditioning.inputs(plan, one, masked)
        scales = scales_by_turn(plan.controls, one.levels.turns)
        networks: dict[tuple[float, ...], Network] = {}
        for each in dict.fromkeys(scales):
            controls = self._conditioning.control_inputs(plan, each) if any(each) else {}
            base = "unet_controlnet" if controls else "unet"
            model = placed.enter_context(self._conditioning.serving(plan, base))
            rows = placed.enter_context(self._models.conditioned(model, inputs | controls))
            networks[each] = guided(rows if model == base else self._lasting(rows, model), plan.guidance_scale)
        return tuple(networks[each] for each in scales)

    def _lasting(self, network: Network, model: str) -> Network:
        """A merged model's network, loaded again if the server lost it, to a restart or to another process."""

        def network_or_again(sample: Latents, timestep: NDArray[np.float32]) -> Latents:
            try:
                return network(sample, timestep)
            except ModelUnavailable:
                if self._merged is None or not self._merged.load(model):
                    raise
                return network(sample, timestep)

        return network_or_again

    def _begun(self, plan: Plan, pass_index: int, clean: Latents | None, resumed: Step | None) -> _Beginning:
        """Where a pass goes on from: ``resumed``, else noise, the job's picture or the pass before, under noise."""
        levels, source = plan.passes[pass_index].levels, plan.source
        if resumed is not None and (source is None or source.mask is None):
            return _Beginning(resumed)
        normal, shape = TorchNormal(_seed(plan, pass_index)), self._shape(plan, pass_index)
        if source is None:
            before = None if clean is None else self._enlarged(clean, plan.passes[pass_index])
            return _Beginning(levels.start(normal.draw(shape), before))
        begun = self._begun_from(source, levels, normal, shape)
        return begun if resumed is None else begun._replace(start=resumed)

    def _begun_from(
        self, source: SourcePicture, levels: Levels, normal: TorchNormal, shape: tuple[int, int, int, int]
    ) -> _Beginning:
        """Begins with a picture, drawing in diffusers' order: its latents, noise, and latents of what a mask leaves.

        At full strength a masked picture begins as noise alone, and a UNet that was trained to inpaint draws no latents
        of the whole picture; without a mask a trace of the picture is left.
        """
        mask = None if source.mask is None else latent_mask(source.mask, *shape[2:])
        is_noise = mask is not None and source.strength == 1.0
        sees_mask = self.checkpoint.is_inpainting and source.mask is not None
        clean = None if is_noise and sees_mask else self._encoded(source.picture, normal, shape)
        noise = normal.draw(shape)
        start = levels.start(noise, None if is_noise else clean)
        if mask is None or source.mask is None:
            return _Beginning(start)
        if clean is not None and not sees_mask:
            return _Beginning(start, kept=Kept(clean, noise, mask))
        left = self._encoded(uncovered(source.picture, source.mask), normal, shape)
        return _Beginning(start, masked=np.concatenate((mask, left), axis=1))

    def _encoded(self, picture: NDArray[np.uint8], normal: TorchNormal, shape: tuple[int, ...]) -> Latents:
        """Latents [1,4,h,w] of a picture [8h,8w,3], drawn as the VAE spreads them."""
        mean, deviation = self._models.encode(picture[None])
        return mean + deviation * normal.draw(shape)

    def _enlarged(self, clean: Latents, to: Pass) -> Latents:
        """Latents of the picture that ``clean`` shows, at the size of ``to``.

        By way of the VAE: latents enlarged as they are come back with specks along every edge.
        """
        picture = np.moveaxis(self._models.decode(clean).astype(np.float32), -1, 1)
        large = np.rint(enlarged(picture, to.height_px, to.width_px)).clip(0, 255).astype(np.uint8)
        mean, _ = self._models.encode(np.moveaxis(large, 1, -1))
        return mean

    def _denoise(
        self, plan: Plan, pass_index: int, networks: Sequence[Network], begun: _Beginning, placed: ExitStack
    ) -> Generator[PipelineStep, None, Latents]:
        """Yields the steps of the pass from where it was begun; returns its latents as the VAE decodes them.

        ``placed``, what the networks hold, is let go before the last step is yielded: until then other jobs wait for
        this one's next step.
        """
        levels, total = plan.passes[pass_index].levels, plan.total_steps
        # Turns of earlier passes, less those that a start from a picture leaves out.
        before = sum(one.levels.turns for one in plan.passes[:pass_index]) - levels.first
        seed, shape = _seed(plan, pass_index), self._shape(plan, pass_index)
        noise = StepNoise(seed, shape, drawn_before=_draws(plan, self.checkpoint), first=levels.first)
        step, turns = begun.start, levels.after(begun.start)
        # Each turn is a loop resumed from the last step: only between turns may the network or the latents change.
        for turn in turns:
            denoise = denoiser(networks[turn - levels.first], levels)
            step = next(SAMPLERS[plan.sampler](denoise, step, levels, noise))
            if begun.kept is not None:
                step = begun.kept.restored(step, levels)
            if not np.isfinite(step.latents).all():
                raise ModelUnavailable(
                    f"the UNet answered NaN or infinity in step {before + step.index + 1} of {total}"
                )
            if turn == turns[-1]:
                placed.close()
            yield PipelineStep(pass_index, before + step.index, total, step)
        return levels.model_latents(step)

    def _shape(self, plan: Plan, pass_index: int) -> tuple[int, int, int, int]:
        one, scale = plan.passes[pass_index], self.checkpoint.vae_scale_factor
        return 1, self.checkpoint.latent_channels, one.height_px // scale, one.width_px // scale


def preview(checkpoint: CheckpointInfo, step: PipelineStep) -> NDArray[np.uint8]:
    """The picture so far, roughly: [height/8,width/8,3] uint8 from the latents alone, no network asked."""
    return rough_picture(step.step.denoised, checkpoint.preview.matrix, checkpoint.preview.bias)


def _draws(plan: Plan, checkpoint: CheckpointInfo) -> int:
    """How often diffusers' pipelines draw before the first step; the latents of a masked picture are the third.

    A UNet that was trained to inpaint asks for no latents of the whole picture where it begins with noise alone.
    """
    if plan.source is None:
        return 1
    if plan.source.mask is None or (checkpoint.is_inpainting and plan.source.strength == 1.0):
        return 2
    return 3


def _seed(plan: Plan, pass_index: int) -> int:
    return plan.seed + pass_index * SEED_STRIDE


def step_to_bytes(step: PipelineStep, plan: Plan) -> bytes:
    """``step`` as a file to resume from: a digest, and the numpy archive without pickles that it is of."""
    about = {"format": STEP_FORMAT, "plan": plan.digest, "pass_index": step.pass_index, "index": step.index}
    about |= {"total": step.total, "step_index": step.step.index}
    arrays = {"latents": step.step.latents, "denoised": step.step.denoised}
    arrays |= {f"memory_{i}": kept for i, kept in enumerate(step.step.memory)}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, about=np.array(json.dumps(about)), **arrays)
    archive = buffer.getvalue()
    return hashlib.sha256(archive).digest() + archive


def step_from_bytes(data: bytes, plan: Plan) -> PipelineStep | None:
    """The step in ``data``; None where it is broken, of another version or of another plan: such a job starts anew."""
    digest, archived = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    # Not by what reading raises: of damaged files numpy and zipfile raise a dozen kinds of errors.
    if hashlib.sha256(archived).digest() != digest:
        return None
    with np.load(io.BytesIO(archived), allow_pickle=False) as archive:
        arrays = dict(archive)
    about = json.loads(str(arrays["about"]))
    if (about["format"], about["plan"]) != (STEP_FORMAT, plan.digest):
        return None
    memory = tuple(arrays[f"memory_{i}"] for i in range(len(arrays) - 3))
    step = Step(about["step_index"], arrays["latents"], arrays["denoised"], memory)
    return PipelineStep(about["pass_index"], about["index"], about["total"], step)
