"""What a UNet is told besides latents and timestep: the prompts, the picture's size, the ControlNets' pictures."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.checkpoint import CheckpointInfo
from orchestrator.diffusion.embeddings import Embedding, EmbeddingCache, Encode
from orchestrator.diffusion.prompt import Chunk, weigh
from orchestrator.plan import Pass, Plan

EMBEDDINGS_KEPT = 512
Inputs = dict[str, NDArray[Any]]
"""The inputs that stay the same in every step, by the tensor's name; [n, ...] with the negative prompt's row first."""


class Conditioning:
    """Inputs for every job of a checkpoint; of the jobs it keeps nothing but prompt embeddings."""

    def __init__(self, encode: Encode, checkpoint: CheckpointInfo) -> None:
        self._encode = encode
        self._checkpoint = checkpoint
        self._embeddings = EmbeddingCache(EMBEDDINGS_KEPT)

    def inputs(self, plan: Plan, one: Pass) -> Inputs:
        """What the UNet needs for a pass: one row without guidance, else two."""
        prompts = (plan.negative_chunks, plan.prompt_chunks) if plan.negative_chunks else (plan.prompt_chunks,)
        told = [self._told(plan, chunks) for chunks in prompts]
        if plan.negative_chunks and not plan.negative_prompt and self._checkpoint.zeros_for_no_negative:
            told[0] = Embedding(np.zeros_like(told[1].hidden), np.zeros_like(told[1].pooled))
        inputs: Inputs = {"encoder_hidden_states": np.stack([each.hidden for each in told])}
        if self._checkpoint.layout.is_told_sizes:
            inputs["text_embeds"] = np.stack([each.pooled for each in told])
            inputs["time_ids"] = np.tile(time_ids(one.width_px, one.height_px), (len(told), 1))
        return inputs

    def control_inputs(self, plan: Plan, scales: Sequence[float]) -> Inputs:
        """What a UNet fused with ControlNets needs besides; ``scales`` has one for each of the plan's controls.

        A ControlNet that the plan does not name sees black and counts nothing.
        """
        rows = 2 if plan.negative_chunks else 1
        given = {control.name: (control.picture, scale) for control, scale in zip(plan.controls, scales, strict=True)}
        black = np.zeros((plan.height_px, plan.width_px, 3), np.uint8)
        seen = [given.get(name, (black, 0.0)) for name in self._checkpoint.controls]
        names = [f"control_{name}" for name in self._checkpoint.controls]
        inputs: Inputs = {name: np.stack([picture] * rows) for name, (picture, _) in zip(names, seen, strict=True)}
        inputs["control_scales"] = np.tile(np.array([scale for _, scale in seen], np.float32), (rows, 1))
        return inputs

    def _told(self, plan: Plan, chunks: Sequence[Chunk]) -> Embedding:
        """What every text encoder makes of a prompt, side by side; hidden states [77k,width], weights applied.

        The pooled output is the last encoder's for the first chunk, as in AUTOMATIC1111; diffusers has no second.
        """
        hidden = []
        for model in self._checkpoint.layout.text_encoders:
            encoded = self._encoded(plan.weights_sha256, chunks, model)
            weighed = (weigh(each.hidden, chunk.weights) for each, chunk in zip(encoded, chunks, strict=True))
            hidden.append(np.concatenate(list(weighed)))
        return Embedding(np.concatenate(hidden, axis=-1), encoded[0].pooled)

    def _encoded(self, weights_sha256: str, chunks: Sequence[Chunk], model: str) -> list[Embedding]:
        pad_id = self._checkpoint.pad_ids.get(model, self._checkpoint.tokenizer.pad_id)
        wanted = [chunk.padded_with(pad_id) for chunk in chunks]
        return self._embeddings.find(f"{weights_sha256} {model}", wanted, lambda ids: self._encode(ids, model))


def time_ids(width_px: int, height_px: int) -> NDArray[np.float32]:
    """[6]: the size a picture had before it was cropped, where it was cropped, and its size, height and row first.

    SDXL learned from small and cropped pictures and was told so; what is asked for is a whole picture at its own size.
    """
    return np.array([height_px, width_px, 0, 0, height_px, width_px], np.float32)
