"""The rival that batches whole requests: same Triton, same samplers, same transport, one batch after the other.

Up to as many pictures as fill an execution, alike in steps, size and guidance, are denoised together from their first
step to their last; who arrives meanwhile waits for the end. That is what a server does whose batch is one call of a
pipeline.
"""

import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from benchmarks.repository import row_limit
from benchmarks.served import Lap, Served, metadata
from orchestrator.diffusion.denoiser import denoiser, guided
from orchestrator.diffusion.noise import StepNoise, TorchNormal
from orchestrator.diffusion.prompt import Chunk, weigh
from orchestrator.diffusion.sampling import SAMPLERS
from orchestrator.plan import Plan

STEPPED = ("sample", "timestep")


class WholeRequests:
    """Paints batches of alike plans on ``server``."""

    def __init__(self, server: Served) -> None:
        self._server = server
        self.at_once = max(1, row_limit(server.repository, "unet") // 2)
        self._decoded_at_once = row_limit(server.repository, "vae_decoder")
        declared = metadata(server.triton.http_url, "unet")["inputs"]
        # A style that no job asks for: zeros.
        self._others = {
            entry["name"]: entry["shape"][1:]
            for entry in declared
            if entry["name"] not in (*STEPPED, "encoder_hidden_states")
        }

    def paint(self, plans: Sequence[Plan]) -> list[NDArray[np.uint8]]:
        """One picture a plan; all plans are alike."""
        plan, count = plans[0], len(plans)
        levels = plan.passes[0].levels
        shape = (1, self._server.checkpoint.latent_channels, plan.height_px // 8, plan.width_px // 8)
        noise = np.concatenate([TorchNormal(each.seed).draw(shape) for each in plans])
        rows = self._rows(plans)
        with self._server.models.conditioned("unet", rows) as network:
            denoise = denoiser(guided(network, plan.guidance_scale), levels)
            drawn = StepNoise(plan.seed, noise.shape, first=levels.first)
            *_, step = SAMPLERS[plan.sampler](denoise, levels.start(noise), levels, drawn)
        latents = levels.model_latents(step)
        parts = range(0, count, self._decoded_at_once)
        decoded = [self._server.models.decode(latents[first : first + self._decoded_at_once]) for first in parts]
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
            with suppress(ValueError):
                waiting.remove(entry)
        return batch

    def _rows(self, plans: Sequence[Plan]) -> dict[str, NDArray[np.float32]]:
        """What stays the same: all negative prompts, then all prompts."""
        chunks: list[tuple[Chunk, ...]] = [plan.negative_chunks for plan in plans if plan.negative_chunks]
        chunks += [plan.prompt_chunks for plan in plans]
        hidden = np.concatenate([self._encoded(each) for each in chunks])
        zeros = {name: np.zeros((len(hidden), *dims), np.float32) for name, dims in self._others.items()}
        return {"encoder_hidden_states": hidden, **zeros}

    def _encoded(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        ids = np.array([chunk.ids for chunk in chunks], np.int64)
        answer = self._server.models.run("text_encoder", {"input_ids": ids}, ("last_hidden_state",))
        states = answer["last_hidden_state"]
        weighed = [weigh(each, chunk.weights) for each, chunk in zip(states, chunks, strict=True)]
        return np.concatenate(weighed)[None].astype(np.float32, copy=False)


def _alike(plan: Plan, other: Plan) -> bool:
    def key(one: Plan) -> tuple[object, ...]:
        return one.width_px, one.height_px, one.total_steps, one.guidance_scale, len(one.prompt_chunks)

    return key(plan) == key(other)
