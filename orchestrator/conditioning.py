"""What a UNet is told besides latents and timestep: the prompts, the picture's size, the ControlNets' pictures."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from orchestrator.checkpoint import CheckpointInfo
from orchestrator.diffusion.embeddings import Embedding, EmbeddingCache, Encode
from orchestrator.diffusion.noise import Latents
from orchestrator.diffusion.prompt import Chunk, weigh
from orchestrator.errors import LoraIncompatible
from orchestrator.plan import Pass, Plan
from orchestrator.style_ways import AppliedStyle, merged_name

EMBEDDINGS_KEPT = 512
Inputs = dict[str, NDArray[Any]]
"""The inputs that stay the same in every step, by the tensor's name; [n, ...] with the negative prompt's row first."""


class Merged(Protocol):
    """Models with styles merged into them."""

    def serving(
        self, model: str, styles: Sequence[AppliedStyle], unmixed: str | None = None, /
    ) -> AbstractContextManager[str]:
        """The name of ``model`` under ``styles``, which is served while this lasts."""
        ...

    def load(self, name: str, /) -> bool:
        """Load it again if it was lost; whether it was."""
        ...


class Conditioning:
    """Inputs for every job of a checkpoint; of the jobs it keeps nothing but prompt embeddings."""

    def __init__(self, encode: Encode, checkpoint: CheckpointInfo, merged: Merged | None = None) -> None:
        self._encode = encode
        self._checkpoint = checkpoint
        self._merged = merged
        self._embeddings = EmbeddingCache(EMBEDDINGS_KEPT)

    def inputs(self, plan: Plan, one: Pass, masked: Latents | None = None) -> Inputs:
        """What the UNet needs for a pass: one row without guidance, else two; ``masked`` [1,5,h,w] if it inpaints."""
        prompts = (plan.negative_chunks, plan.prompt_chunks) if plan.negative_chunks else (plan.prompt_chunks,)
        told = [self._told(plan, chunks) for chunks in prompts]
        if plan.negative_chunks and not plan.negative_prompt and self._checkpoint.zeros_for_no_negative:
            told[0] = Embedding(np.zeros_like(told[1].hidden), np.zeros_like(told[1].pooled))
        inputs: Inputs = {"encoder_hidden_states": np.stack([each.hidden for each in told])}
        if self._checkpoint.style_layout.size:
            inputs["style"] = np.stack([self._style_row(plan)] * len(told))
        if self._checkpoint.layout.is_told_sizes:
            inputs["text_embeds"] = np.stack([each.pooled for each in told])
            inputs["time_ids"] = np.tile(time_ids(one.width_px, one.height_px), (len(told), 1))
        if masked is not None:
            inputs["masked"] = np.repeat(masked, len(told), axis=0)
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

    def serving(self, plan: Plan, model: str) -> AbstractContextManager[str]:
        """The name under which ``model`` is served with what the plan's styles merge into it."""
        if not self._is_merged(plan, model):
            return nullcontext(model)
        if self._merged is None:
            raise LoraIncompatible(f"{self._checkpoint.name} is served without merged models; {plan.ways.unmixed}")
        return self._merged.serving(model, plan.styles, plan.ways.unmixed)

    def _style_row(self, plan: Plan) -> NDArray[np.float32]:
        """The UNet's ``style`` for every row of the plan; zeros where no style is mixed."""
        mixed = plan.styles if plan.ways.unet == "mixed" else ()
        return self._checkpoint.style_layout.row([(one.style.deltas("unet"), one.weight) for one in mixed])

    def _is_merged(self, plan: Plan, model: str) -> bool:
        if model in self._checkpoint.layout.text_encoders:
            return plan.ways.text_encoder == "merged" and any(one.style.deltas(model) for one in plan.styles)
        return plan.ways.unet == "merged"

    def _told(self, plan: Plan, chunks: Sequence[Chunk]) -> Embedding:
        """What every text encoder makes of a prompt, side by side; hidden states [77k,width], weights applied.

        The pooled output is the last encoder's for the first chunk, as in AUTOMATIC1111; diffusers has no second.
        """
        hidden = []
        for model in self._checkpoint.layout.text_encoders:
            encoded = self._encoded(plan, chunks, model)
            weighed = (weigh(each.hidden, chunk.weights) for each, chunk in zip(encoded, chunks, strict=True))
            hidden.append(np.concatenate(list(weighed)))
        return Embedding(np.concatenate(hidden, axis=-1), encoded[0].pooled)

    def _encoded(self, plan: Plan, chunks: Sequence[Chunk], model: str) -> list[Embedding]:
        pad_id = self._checkpoint.pad_ids.get(model, self._checkpoint.tokenizer.pad_id)
        wanted = [chunk.padded_with(pad_id) for chunk in chunks]
        weights = plan.weights_sha256
        if self._is_merged(plan, model):
            weights += f" {merged_name(model, self._checkpoint.models[model], plan.styles)}"

        def encode(ids: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            with self.serving(plan, model) as name:
                return self._encode(ids, name)

        return self._embeddings.find(f"{weights} {model}", wanted, encode)


def time_ids(width_px: int, height_px: int) -> NDArray[np.float32]:
    """[6]: the size a picture had before it was cropped, where it was cropped, and its size, height and row first.

    SDXL learned from small and cropped pictures and was told so; what is asked for is a whole picture at its own size.
    """
    return np.array([height_px, width_px, 0, 0, height_px, width_px], np.float32)
