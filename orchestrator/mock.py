"""The whole service without Triton: a stand-in that takes its time and draws a picture which says that it is one."""

import hashlib
import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from orchestrator.checkpoint import CheckpointInfo, Preview
from orchestrator.diffusion.denoiser import Network
from orchestrator.diffusion.schedule import NoiseSchedule
from orchestrator.diffusion.style_vector import NO_LAYOUT
from orchestrator.diffusion.tokenizer import BOS_TOKEN, BYTE_SYMBOLS, EOS_TOKEN, WORD_END, Tokenizer
from orchestrator.pipeline import Pipeline, PipelineStep, Turns
from orchestrator.plan import Plan

TEXT_WIDTH = 8
NAME = "mock"


def mock_checkpoint() -> CheckpointInfo:
    """A checkpoint of no weights, with a byte for every token and SD 1.5's schedule."""
    symbols = [*BYTE_SYMBOLS, *(symbol + WORD_END for symbol in BYTE_SYMBOLS), BOS_TOKEN, EOS_TOKEN]
    schedule = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "timestep_spacing": "leading",
        "steps_offset": 1,
    }
    return CheckpointInfo(
        name=NAME,
        family="sd1",
        weights_sha256=hashlib.sha256(NAME.encode()).hexdigest(),
        models={},
        schedule=NoiseSchedule.from_config(schedule),
        latent_channels=4,
        vae_scale_factor=8,
        cross_attention_dim=TEXT_WIDTH,
        max_tokens=77,
        max_chunks=64,
        min_size_px=256,
        max_size_px=1024,
        size_step_px=64,
        native_size_px=512,
        style_layout=NO_LAYOUT,
        layers={},
        preview=Preview(matrix=((0.0, 0.0, 0.0),) * 4, bias=(0.5, 0.5, 0.5)),
        tokenizer=Tokenizer(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges={}),
    )


class MockPainter:
    """Goes through every step of a plan with the real sampler, spreading ``seconds`` over them."""

    def __init__(self, seconds: float) -> None:
        self.checkpoint = mock_checkpoint()
        self._pipeline = Pipeline(_MockModels(), self.checkpoint)
        self._seconds = seconds

    def run(self, plan: Plan, resume: PipelineStep | None = None) -> Turns:
        """Like :meth:`Pipeline.run`."""
        with closing(self._pipeline.run(plan, resume)) as turns:
            for turn in turns:
                if isinstance(turn, PipelineStep):
                    time.sleep(self._seconds / turn.total)
                yield turn


class _MockModels:
    """Networks that see clean latents of zeros wherever they look, and a decoder that draws a card instead of them."""

    def encode_text(
        self, input_ids: NDArray[np.int64], /, model: str = "text_encoder"
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        del model
        rows, tokens = input_ids.shape
        return np.zeros((rows, tokens, TEXT_WIDTH), np.float32), np.zeros((rows, TEXT_WIDTH), np.float32)

    def conditioned(self, model: str, inputs: Mapping[str, NDArray[Any]], /) -> AbstractContextManager[Network]:
        del model, inputs
        return nullcontext(lambda sample, timestep: sample)

    def decode(self, latents: NDArray[np.float32], /) -> NDArray[np.uint8]:
        """A card in a colour of its own for each picture."""
        return np.stack([_card(row) for row in latents])

    def encode(self, picture: NDArray[np.uint8], /) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        rows, height_px, width_px = picture.shape[:3]
        nothing = np.zeros((rows, 4, height_px // 8, width_px // 8), np.float32)
        return nothing, nothing


def _card(latents: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A slanted gradient with MOCK across it, uint8 [8h, 8w, 3]."""
    height_px, width_px = latents.shape[1] * 8, latents.shape[2] * 8
    hue = 2 * math.pi * (float(np.abs(latents).sum()) % 1.0)
    shade = np.add.outer(np.linspace(0.0, 0.35, height_px), np.linspace(0.35, 0.7, width_px))
    tint = 0.75 + 0.25 * np.cos(hue + np.array([0.0, 2.1, 4.2]))
    card = Image.fromarray((shade[..., None] * tint * 255).astype(np.uint8))
    font = ImageFont.load_default(size=width_px / 5)
    centre = (width_px / 2, height_px / 2)
    ImageDraw.Draw(card).text(centre, "MOCK", fill="white", font=font, anchor="mm")
    return np.asarray(card)
