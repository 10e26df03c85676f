"""A checkpoint small enough for unit tests: a vocabulary of bytes and a few words, and networks that are formulas."""

import json
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from orchestrator.checkpoint import CheckpointInfo, Preview
from orchestrator.diffusion.schedule import NoiseSchedule
from orchestrator.diffusion.style_vector import NO_LAYOUT
from orchestrator.diffusion.tokenizer import BOS_TOKEN, BYTE_SYMBOLS, EOS_TOKEN, WORD_END, Tokenizer

SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
}
MERGES = [("r", "e"), ("re", "d</w>"), ("b", "o"), ("a", "t</w>"), ("bo", "at</w>")]
WIDTH = 6


def small_tokenizer(pad_token: str = EOS_TOKEN) -> Tokenizer:
    symbols = [*BYTE_SYMBOLS, *(symbol + WORD_END for symbol in BYTE_SYMBOLS), *("".join(pair) for pair in MERGES)]
    vocab = {token: i for i, token in enumerate([*symbols, BOS_TOKEN, EOS_TOKEN])}
    return Tokenizer(vocab, {pair: rank for rank, pair in enumerate(MERGES)}, pad_token)


def small_checkpoint(**changes: object) -> CheckpointInfo:
    fields: dict[str, object] = {
        "name": "small",
        "family": "sd1",
        "weights_sha256": "0" * 64,
        "models": {"unet": "1" * 64},
        "schedule": NoiseSchedule.from_config(SCHEDULER),
        "latent_channels": 4,
        "vae_scale_factor": 8,
        "cross_attention_dim": WIDTH,
        "max_tokens": 77,
        "max_chunks": 3,
        "min_size_px": 256,
        "max_size_px": 1024,
        "size_step_px": 64,
        "native_size_px": 512,
        "style_layout": NO_LAYOUT,
        "layers": {},
        "preview": Preview(
            matrix=((0.2, 0.0, 0.0), (0.0, 0.2, 0.0), (0.0, 0.0, 0.2), (0.0, 0.0, 0.0)), bias=(0.5,) * 3
        ),
        "tokenizer": small_tokenizer(),
    }
    return CheckpointInfo(**{**fields, **changes})  # type: ignore[arg-type]


def write_repository(folder: Path) -> Path:
    """``folder`` as export/ leaves it, without any graph."""
    tokenizer = folder / "text_encoder" / "tokenizer"
    tokenizer.mkdir(parents=True)
    tokens = small_tokenizer()
    (tokenizer / "vocab.json").write_text(json.dumps(dict(tokens.vocab)), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in MERGES)]
    (tokenizer / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    counts = {"latent_channels": 4, "vae_scale_factor": 8, "cross_attention_dim": WIDTH, "max_tokens": 77}
    remarque = {
        "format": 1,
        "name": "small",
        "family": "sd1",
        "weights_sha256": "0" * 64,
        "models": {"unet": "1" * 64},
        "scheduler": SCHEDULER,
        **counts,
        "min_size_px": 256,
        "max_size_px": 1024,
        "preview": {"matrix": [[0.2, 0, 0], [0, 0.2, 0], [0, 0, 0.2], [0, 0, 0]], "bias": [0.5, 0.5, 0.5]},
    }
    (folder / "remarque.json").write_text(json.dumps(remarque), encoding="utf-8")
    return folder


@dataclass
class FormulaModels:
    """Networks as formulas that depend on every input, and the calls they got."""

    encoded: list[np.ndarray] = field(default_factory=list)
    predicted: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)
    styles: list[np.ndarray] = field(default_factory=list)
    encoders: list[str] = field(default_factory=list)
    unets: list[str] = field(default_factory=list)
    masked: list[np.ndarray] = field(default_factory=list)
    """What an inpainting UNet saw in each step."""
    encoded_pictures: int = 0
    decoded: int = 0
    placed: int = 0
    """How many jobs' inputs are placed now."""

    def encode_text(self, input_ids, model="text_encoder"):
        self.encoded.append(input_ids)
        self.encoders.append(model)
        hidden = (
            np.sin(input_ids[..., None] * np.arange(1, WIDTH + 1) + np.arange(77)[:, None]).astype(np.float32) + 0.5
        )
        return hidden, hidden.mean(axis=1)

    @contextmanager
    def conditioned(self, model, inputs):
        self.placed += 1
        self.unets.append(model)
        try:
            yield lambda sample, timestep: self.predict(sample, timestep, **inputs)
        finally:
            self.placed -= 1

    def predict(self, sample, timestep, encoder_hidden_states, style=None, masked=None):
        self.predicted.append((sample, timestep, encoder_hidden_states))
        told = np.tanh(encoder_hidden_states.mean(axis=(1, 2)))[:, None, None, None]
        if masked is not None:
            self.masked.append(masked)
            told = told + np.tanh(masked.mean(axis=(1, 2, 3)))[:, None, None, None]
        if style is not None:
            self.styles.append(style)
            told = told + np.tanh(style.mean(axis=1))[:, None, None, None]
        return (np.sin(sample + told) * 0.5 + sample * 0.4 + timestep[:, :, None, None] * 1e-4).astype(np.float32)

    def decode(self, latents):
        self.decoded += 1
        rgb = np.clip(np.moveaxis(latents[:, :3], 1, -1) * 64 + 128, 0, 255).astype(np.uint8)
        return rgb.repeat(8, axis=1).repeat(8, axis=2)

    def encode(self, picture):
        self.encoded_pictures += 1
        cells = picture.reshape(picture.shape[0], picture.shape[1] // 8, 8, picture.shape[2] // 8, 8, 3)
        rgb = np.moveaxis(cells.mean(axis=(2, 4)), -1, 1).astype(np.float32) / 64 - 2
        mean = np.concatenate((rgb, rgb[:, :1]), axis=1)
        return mean, np.zeros_like(mean)
