"""The rival that batches whole requests: same Triton, same samplers, same transport, one batch after the other.

Up to as many pictures as fill an execution, alike in steps, size and guidance, are denoised together from their first
step to their last; who arrives meanwhile waits for the end. That is what a server does whose batch is one call of a
pipeline.
"""

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from benchmarks.repository import row_limit
from benchmarks.served import Lap, Served
from orchestrator.checkpoint import CheckpointInfo
from orchestrator.conditioning import EMBEDDINGS_KEPT
from orchestrator.diffusion.denoiser import denoiser, guided
from orchestrator.diffusion.embeddings import EmbeddingCache
from orchestrator.diffusion.noise import StepNoise, TorchNormal
from orchestrator.diffusion.prompt import Chunk, weigh
from orchestrator.diffusion.sampling import SAMPLERS
from orchestrator.pipeline import Models
from orchestrator.plan import Plan


class WholeRequests:
    """Paints batches of alike plans; ``at_once`` pictures fill an execution of the UNet, fewer one of the decoder."""

    def __init__(self, models: Models, checkpoint: CheckpointInfo, at_once: int, decoded_at_once: int) -> None:
        self._models = models
        self._checkpoint = checkpoint
        self.at_once = at_once
        self._decoded_at_once = decoded_at_once
        self._embeddings = EmbeddingCache(EMBEDDINGS_KEPT)

    @classmethod
    def on(cls, server: Served) -> Self:
        """With the batches that the server's repository allows."""
        rows = row_limit(server.repository, "unet")
        return cls(server.models, server.checkpoint, max(1, rows // 2), row_limit(server.repository, "vae_decoder"))

    def paint(self, plans: Sequence[Plan]) -> list[NDArray[np.uint8]]:
        """One picture a plan; all plans are alike."""
        plan, count = plans[0], len(plans)
        levels = plan.passes[0].levels
        shape = (1, self._checkpoint.latent_channels, plan.height_px // 8, plan.width_px // 8)
        noise = np.concatenate([TorchNormal(each.seed).draw(shape) for each in plans])
        rows = self._rows(plans)
        with self._models.conditioned("unet", rows) as network:
            denoise = denoiser(guided(network, plan.guidance_scale), levels)
            drawn = StepNoise(plan.seed, noise.shape, first=levels.first)
            *_, step = SAMPLERS[plan.sampler](denoise, levels.start(noise), levels, drawn)
        latents = levels.model_latents(step)
        parts = range(0, count, self._decoded_at_once)
        decoded = [self._models.decode(latents[first : first + self._decoded_at_once]) for first in parts]
        return list(np.concatenate(decoded))

    def arriving(self, plans: Sequence[Plan], at_s: Sequence[float]) -> list[Lap]:
        """Each plan asked for at its time after now; in order of arrival, alike ones together."""
        waiting: deque[tuple[int, Plan, float]] = deque()
        laps: dict[int, Lap] = {}
        news = threading.Condition()
        begun_s = time.perf_counter()

        def work() -> None:
            while len(laps) < len(plans):
                with news:
                    news.wait_for(lambda: waiting)
                    batch = self._batch(waiting)
                started_s = time.perf_counter()
                pictures = self.paint([plan for _, plan, _ in batch])
                done_s = time.perf_counter()
                for (index, _, asked_s), picture in zip(batch, pictures, strict=True):
                    laps[index] = Lap(asked_s, started_s, (), done_s, picture)

        worker = threading.Thread(target=work)
        worker.start()
        for index, (plan, after_s) in enumerate(zip(plans, at_s, strict=True)):
            time.sleep(max(0.0, begun_s + after_s - time.perf_counter()))
            with news:
                waiting.append((index, plan, begun_s + after_s))
                news.notify()
        worker.join()
        return [laps[index] for index in range(len(plans))]

    def _batch(self, waiting: deque[tuple[int, Plan, float]]) -> list[tuple[int, Plan, float]]:
        first = waiting[0][1]
        batch = [entry for entry in waiting if _alike(entry[1], first)][: self.at_once]
        for entry in batch:
            waiting.remove(entry)
        return batch

    def _rows(self, plans: Sequence[Plan]) -> dict[str, NDArray[np.float32]]:
        """What stays the same: all negative prompts, then all prompts."""
        prompts: list[tuple[Chunk, ...]] = [plan.negative_chunks for plan in plans if plan.negative_chunks]
        prompts += [plan.prompt_chunks for plan in plans]
        chunks = [chunk for prompt in prompts for chunk in prompt]
        found = self._embeddings.find(
            plans[0].weights_sha256, [chunk.ids for chunk in chunks], self._models.encode_text
        )
        weighed = [weigh(each.hidden, chunk.weights) for each, chunk in zip(found, chunks, strict=True)]
        hidden = np.stack(weighed).reshape(len(prompts), -1, weighed[0].shape[-1]).astype(np.float32, copy=False)
        rows = {"encoder_hidden_states": hidden}
        if self._checkpoint.style_layout.size:  # no job of this benchmark has a style
            rows["style"] = np.zeros((len(hidden), self._checkpoint.style_layout.size), np.float32)
        return rows


def _alike(plan: Plan, other: Plan) -> bool:
    def key(one: Plan) -> tuple[object, ...]:
        return one.width_px, one.height_px, one.total_steps, one.guidance_scale, len(one.prompt_chunks)

    return key(plan) == key(other)
