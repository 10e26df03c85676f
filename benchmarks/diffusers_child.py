"""``diffusers.StableDiffusionPipeline`` on the same checkpoint, in the setting it is asked for."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline

from benchmarks.answering import answer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Settings = Mapping[str, Callable[[str], Any]]


def _load(checkpoint: str, dtype: Any) -> Any:
    made = DiffusionPipeline.from_pretrained(checkpoint, torch_dtype=dtype)
    made.set_progress_bar_config(disable=True)
    return made.to(DEVICE)


def _settle() -> None:
    """Wait for the card: what was asked of it may not have run yet."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def _channels_last(pipeline: Any) -> Any:
    for network in (pipeline.unet, pipeline.vae):
        network.to(memory_format=torch.channels_last)
    return pipeline


def _compiled(pipeline: Any) -> Any:
    pipeline.unet = torch.compile(pipeline.unet)
    pipeline.vae.decode = torch.compile(pipeline.vae.decode)
    return pipeline


ON_A_CARD: Settings = {
    "fp16, channels-last": lambda path: _channels_last(_load(path, torch.float16)),
    "fp16, channels-last, torch.compile": lambda path: _compiled(_channels_last(_load(path, torch.float16))),
}
ON_A_CPU: Settings = {
    "fp32": lambda path: _load(path, torch.float32),
    "fp32, channels-last": lambda path: _channels_last(_load(path, torch.float32)),
    "fp32, channels-last, torch.compile": lambda path: _compiled(_channels_last(_load(path, torch.float32))),
    "bf16": lambda path: _load(path, torch.bfloat16),
    "bf16, channels-last": lambda path: _channels_last(_load(path, torch.bfloat16)),
    "bf16 autocast, channels-last": lambda path: _channels_last(_load(path, torch.float32)),
    "bf16, channels-last, torch.compile": lambda path: _compiled(_channels_last(_load(path, torch.bfloat16))),
}
SETTINGS = ON_A_CARD if torch.cuda.is_available() else ON_A_CPU


class Diffusers:
    """One pipeline in one setting at a time."""

    def __init__(self) -> None:
        self._pipeline: Any = None
        self._autocast = False

    def settings(self) -> list[str]:
        """Every setting that can be loaded."""
        return list(SETTINGS)

    def load(self, checkpoint: str, setting: str) -> float:
        """Seconds that loading took."""
        begun_s = time.perf_counter()
        self._pipeline = None
        self._pipeline = SETTINGS[setting](checkpoint)
        self._autocast = "autocast" in setting
        return time.perf_counter() - begun_s

    def pictures(self, prompts: Sequence[str], seeds: Sequence[int], batch: int, **work: Any) -> list[float]:
        """Seconds from the first call's begin to each picture, made ``batch`` at a time."""
        done: list[float] = []
        begun_s = time.perf_counter()
        for first in range(0, len(prompts), batch):
            some = slice(first, first + batch)
            self._call(list(prompts[some]), list(seeds[some]), **work)
            done += [time.perf_counter() - begun_s] * len(prompts[some])
        return done

    def styles(self, paths: Sequence[str]) -> float:
        """Seconds that loading all styles, one adapter each, took."""
        begun_s = time.perf_counter()
        for index, path in enumerate(paths):
            self._pipeline.load_lora_weights(path, adapter_name=f"style{index}")
        return time.perf_counter() - begun_s

    def styled(self, prompts: Sequence[str], seeds: Sequence[int], adapters: Sequence[int], **work: Any) -> list[float]:
        """One by one, each with one of the loaded styles made active by ``set_adapters``."""
        done: list[float] = []
        begun_s = time.perf_counter()
        for prompt, seed, adapter in zip(prompts, seeds, adapters, strict=True):
            self._pipeline.set_adapters([f"style{adapter}"])
            self._call([prompt], [seed], **work)
            done.append(time.perf_counter() - begun_s)
        return done

    def restyled(self, prompts: Sequence[str], seeds: Sequence[int], paths: Sequence[str], **work: Any) -> list[float]:
        """One by one, each style loaded before its picture and unloaded after it."""
        done: list[float] = []
        self._pipeline.unload_lora_weights()
        begun_s = time.perf_counter()
        for prompt, seed, path in zip(prompts, seeds, paths, strict=True):
            self._pipeline.load_lora_weights(path)
            self._call([prompt], [seed], **work)
            self._pipeline.unload_lora_weights()
            done.append(time.perf_counter() - begun_s)
        return done

    def unet(self, rows: int, height: int, width: int, repeat: int) -> list[float]:
        """Seconds of each of ``repeat`` runs of the UNet alone."""
        network = self._pipeline.unet
        dtype, generator = network.dtype, torch.Generator().manual_seed(0)
        sample = torch.randn(rows, 4, height // 8, width // 8, generator=generator).to(DEVICE, dtype)
        width_of_text = network.config.cross_attention_dim
        hidden = torch.randn(rows, 77, width_of_text, generator=generator).to(DEVICE, dtype)
        if not network.conv_in.weight.is_contiguous():
            sample = sample.to(memory_format=torch.channels_last)
        times = []
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self._autocast):
            for _ in range(repeat):
                begun_s = time.perf_counter()
                network(sample, torch.full((rows,), 500, device=DEVICE), hidden, return_dict=False)
                _settle()
                times.append(time.perf_counter() - begun_s)
        return times

    def _call(
        self, prompts: list[str], seeds: list[int], width_px: int, height_px: int, steps: int, guidance_scale: float
    ) -> None:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        with torch.autocast("cpu", torch.bfloat16, enabled=self._autocast):
            self._pipeline(
                prompts,
                width=width_px,
                height=height_px,
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                generator=generators,
                output_type="np",
            )


if __name__ == "__main__":
    diffusers = Diffusers()
    verbs = ("settings", "load", "pictures", "styles", "styled", "restyled", "unet")
    answer({verb: getattr(diffusers, verb) for verb in verbs})
