"""What a UNet's layers read while it paints, for fp8: guided pictures of words drawn at random, by ONNX Runtime."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from export import to_fp8
from export.binding import bind
from export.checkpoint import Checkpoint
from export.description import BOS_TOKEN, EOS_TOKEN, pad_ids_of, vocabulary_of
from export.errors import ExportError
from export.session import Session

PICTURES, STEPS, EDGE = 2, 8, 64
"""EDGE is in latents: 512 pixels."""
WORDS: Final = 8
GUIDANCE: Final = 7.5
_HEADROOM: Final = 1.1
"""Other prompts and seeds reach a little further; e4m3 loses nothing by a wider range, it has 2^15 of it."""

Floats = NDArray[np.float32]


def calibrated(
    checkpoint: Checkpoint, encoder: onnx.ModelProto, unet: onnx.ModelProto, tensors: Mapping[str, NDArray[Any]]
) -> dict[str, float]:
    """The largest input of each layer, by its checkpoint tensor, of weightless fp32 graphs of SD 1.x.

    Raises:
        ExportError: the UNet reads more than latents, timestep, text and style.
    """
    known = {"sample", "timestep", "encoder_hidden_states", "style"}
    if others := {entry.name for entry in unet.graph.input} - known:
        raise ExportError(f"the UNet also reads {', '.join(sorted(others))}; SD 1.x's that paints from text gets fp8")
    with TemporaryDirectory() as folder:
        text, watched = Path(folder) / "text.onnx", Path(folder) / "unet.onnx"
        bind(encoder, checkpoint.weights("text_encoder"), text)
        bind(to_fp8.watched(unet), tensors, watched)
        states = Session(text).run({"input_ids": random_prompts(checkpoint)})["last_hidden_state"]
        runs = _painted(Session(watched), checkpoint, states, _style(unet))
    return {name: _HEADROOM * value for name, value in to_fp8.largest_inputs(unet, runs).items()}


def _painted(unet: Session, checkpoint: Checkpoint, states: Floats, style: Floats) -> list[dict[str, NDArray[Any]]]:
    """Every output of every step of DDIM (Song, Meng, Ermon 2021) with guidance; the first row's text is empty."""
    config = checkpoint.configs["scheduler"]
    betas = np.linspace(config["beta_start"] ** 0.5, config["beta_end"] ** 0.5, config["num_train_timesteps"]) ** 2
    kept = np.append(np.cumprod(1 - betas), 1.0)
    steps = np.linspace(len(betas) - 1, 0, STEPS + 1).astype(int)
    x = np.random.default_rng(0).standard_normal((PICTURES, 4, EDGE, EDGE)).astype(np.float32)
    both = np.concatenate((np.repeat(states[:1], PICTURES, axis=0), states[1:]))
    runs = []
    for now, then in zip(steps[:-1], [*steps[1:-1], -1], strict=True):
        feeds = {
            "sample": np.tile(x, (2, 1, 1, 1)),
            "timestep": np.full((2 * PICTURES, 1), now, np.float32),
            "encoder_hidden_states": both,
        }
        runs.append(unet.run(feeds | ({"style": np.repeat(style, 2 * PICTURES, axis=0)} if style.size else {})))
        plain, told = np.split(runs[-1]["out_sample"], 2)
        clean, noise = _clean_and_noise(x, plain + GUIDANCE * (told - plain), kept[now], config["prediction_type"])
        x = np.asarray(kept[then] ** 0.5 * clean + (1 - kept[then]) ** 0.5 * noise, np.float32)
    return runs


def _clean_and_noise(x: Floats, predicted: Floats, kept: float, kind: str) -> tuple[Floats, Floats]:
    a, s = kept**0.5, (1 - kept) ** 0.5
    if kind == "v_prediction":
        return a * x - s * predicted, a * predicted + s * x
    return (x - s * predicted) / a, predicted


def random_prompts(checkpoint: Checkpoint) -> NDArray[np.int64]:
    """[1 + PICTURES, 77] token ids: an empty prompt, then prompts of a few tokens each.

    The ends are the vocabulary's: SD 1.5's config of the text encoder, as published, names other ids.
    """
    vocabulary = vocabulary_of(checkpoint.folder / "tokenizer")
    if missing := {BOS_TOKEN, EOS_TOKEN} - vocabulary.keys():
        raise ExportError(f"{checkpoint.folder}/tokenizer has no {' and no '.join(sorted(missing))}")
    end = vocabulary[EOS_TOKEN]
    draw = np.random.default_rng(0)
    ids = np.full((1 + PICTURES, 77), pad_ids_of(checkpoint).get("text_encoder", end), np.int64)
    ids[:, 0] = vocabulary[BOS_TOKEN]
    ids[0, 1] = ids[1:, 1 + WORDS] = end
    ids[1:, 1 : 1 + WORDS] = draw.integers(0, len(vocabulary) - 2, (PICTURES, WORDS))
    return ids


def _style(unet: onnx.ModelProto) -> Floats:
    """[1, n] zeros, no style; [1, 0] where the UNet takes none."""
    sizes = [entry.type.tensor_type.shape.dim[1].dim_value for entry in unet.graph.input if entry.name == "style"]
    return np.zeros((1, sizes[0] if sizes else 0), np.float32)
