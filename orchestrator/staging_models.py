"""Builds what stages with networks of our own out of settings; what could not work does not start."""

import logging
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from orchestrator.app import build_models
from orchestrator.checkpoint import CheckpointInfo, read_checkpoint
from orchestrator.clients.gate import Batch
from orchestrator.config import Settings
from orchestrator.denoising import Painter
from orchestrator.diffusion.prompt import chunk_prompt
from orchestrator.diffusion.sampling import SAMPLERS
from orchestrator.endpoints import Server
from orchestrator.errors import ConfigError
from orchestrator.imaging.opencv import Shapes
from orchestrator.metering import MeteredNetworks
from orchestrator.pipeline import Finished, Pipeline
from orchestrator.plan import Plan
from orchestrator.staging.accounts import Tier
from orchestrator.staging.enlarging import Enlarging
from orchestrator.staging.own import OwnProvider, OwnSettings, Paint
from orchestrator.staging.prompts import BUILT_IN, PromptTable, load_prompts
from orchestrator.staging.survey import DepthSight, Surveyor
from orchestrator.staging_settings import StagingSettings
from orchestrator.staging_telemetry import StagingTelemetry

CONTROLS = ("depth", "canny")
LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class OwnStaging:
    """The provider ``self``, and what looks at photographs before it and enlarges pictures after it."""

    provider: OwnProvider
    surveyor: Surveyor
    sight: DepthSight | None
    enlarging: Enlarging | None
    server: Server


def build_own(
    settings: Settings, telemetry: StagingTelemetry, on_batch: Callable[[Batch], None] | None = None
) -> OwnStaging | None:
    """What ``self`` is where the settings name it as mode or canary, else None; nothing is called yet.

    Raises:
        ConfigError: a setting and the built models do not go together; the sentence says which.
    """
    wanted = settings.staging
    if "self" not in (settings.models.mode, wanted.canary_mode):
        return None
    checkpoint = read_checkpoint(settings.models.repository)
    _check(wanted, checkpoint)
    _check_prompts(load_prompts(wanted.prompts_file or BUILT_IN), checkpoint)
    server = build_models(_hurried(settings), needed(checkpoint, wanted), on_batch)
    networks, shapes = MeteredNetworks(server, telemetry.model_called), Shapes()
    sight = None if checkpoint.depth_size_px is None else DepthSight(networks.depth, checkpoint.depth_size_px)
    provider = OwnProvider(
        painting(Pipeline(networks, checkpoint)),
        checkpoint,
        OwnSettings(
            steps=wanted.own.steps,
            sampler=wanted.own.sampler,
            control_scales={"depth": wanted.own.depth_scale, "canny": wanted.own.canny_scale},
            control_start=wanted.own.control_start,
            control_end=wanted.own.control_end,
        ),
        shapes,
        depth=sight,
        missing=server.ready,
    )
    tiers = frozenset(cast("tuple[Tier, ...]", wanted.own.upscale_tiers))
    enlarging = Enlarging(upscale=networks.upscale, tiers=tiers) if wanted.own.upscale else None
    return OwnStaging(provider, Surveyor(sight, shapes), sight, enlarging, server)


def painting(painter: Painter) -> Paint:
    """What runs plans, as the provider has it."""

    def paint(plan: Plan) -> Generator[tuple[int, int] | NDArray[np.uint8], None, None]:
        with closing(painter.run(plan)) as turns:
            for turn in turns:
                yield turn.picture if isinstance(turn, Finished) else (turn.index + 1, turn.total)

    return paint


def _check(wanted: StagingSettings, checkpoint: CheckpointInfo) -> None:
    """Refuses what would be refused of every request."""
    if wanted.own.sampler not in SAMPLERS:
        raise ConfigError(f"STAGING_SAMPLER is {wanted.own.sampler!r}; expected {' or '.join(SAMPLERS)}")
    if not checkpoint.min_size_px <= wanted.working_px <= checkpoint.max_size_px:
        raise ConfigError(
            f"STAGING_WORKING_PX is {wanted.working_px}; "
            f"{checkpoint.name} was built for {checkpoint.min_size_px} to {checkpoint.max_size_px} px"
        )
    if wanted.size_step_px % checkpoint.size_step_px:
        raise ConfigError(
            f"STAGING_SIZE_STEP_PX is {wanted.size_step_px}; "
            f"{checkpoint.name} needs sizes in steps of {checkpoint.size_step_px} px"
        )
    if wanted.own.upscale and checkpoint.upscale_factor is None:
        raise ConfigError(
            f"UPSCALE_ENABLED is true and {checkpoint.name} was built without an upscaler (build_engines.py --upscaler)"
        )
    if "depth" in checkpoint.controls and checkpoint.depth_size_px is None:
        LOG.warning("%s has a ControlNet for depth, and no network that tells it: it has no say", checkpoint.name)


def _check_prompts(prompts: PromptTable, checkpoint: CheckpointInfo) -> None:
    """Refuses prompts that are longer than the checkpoint reads."""
    for (room, style), wording in prompts.wordings.items():
        for text in (wording.prompt, wording.negative_prompt):
            chunks = len(chunk_prompt(text, checkpoint.tokenizer, checkpoint.max_tokens))
            if chunks > checkpoint.max_chunks:
                raise ConfigError(
                    f"prompts: {room} in {style} fills {chunks} chunks of {checkpoint.max_tokens - 2} tokens; "
                    f"{checkpoint.name} reads {checkpoint.max_chunks} (STAGING_PROMPTS_FILE)"
                )


def needed(checkpoint: CheckpointInfo, wanted: StagingSettings) -> tuple[str, ...]:
    """The models that a staging calls."""
    names = [*checkpoint.layout.text_encoders, "unet", "vae_decoder", "vae_encoder"]
    if set(CONTROLS) & set(checkpoint.controls):
        names.append("unet_controlnet")
    if checkpoint.depth_size_px is not None:
        names.append("depth")
    if wanted.own.upscale:
        names.append("upscaler")
    return tuple(names)


def _hurried(settings: Settings) -> Settings:
    """With calls that end when the longest deadline of a staging has passed, whatever a job of the queue may take."""
    deadline_s = min(settings.service.job_timeout_s, settings.staging.deadline_s)
    return replace(settings, service=replace(settings.service, job_timeout_s=deadline_s))
