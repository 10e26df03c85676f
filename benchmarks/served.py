"""The server under test: the real Triton, and the painter that the worker's runner drives, without queue and store.

Every picture runs in a thread of its own, as in the worker. What is left out (queue, signature, store, webhooks) costs
the same per picture whatever the batching does, and :mod:`benchmarks.sections.startup` times it with the whole worker.
"""

import json
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.repository import base_models
from benchmarks.timing import run_for
from local.triton import LocalTriton
from orchestrator.app import build_shelf, build_studio
from orchestrator.checkpoint import CheckpointInfo
from orchestrator.clients.storage import Storage
from orchestrator.clients.triton import TritonModels
from orchestrator.config import from_environ
from orchestrator.denoising import Painter
from orchestrator.job import Job, StyleRef
from orchestrator.pipeline import Finished
from orchestrator.plan import Plan, make_plan
from orchestrator.style_ways import StyleMode
from orchestrator.styles import StyleShelf

PROMPTS = Path(__file__).resolve().parents[1] / "demo" / "prompts_heldout.json"


@dataclass(frozen=True, slots=True)
class Work:
    """What every contestant is asked for: ``count`` pictures that differ in prompt and seed."""

    width_px: int = 512
    height_px: int = 512
    steps: int = 10
    guidance_scale: float = 7.5

    def jobs(self, count: int, first: int = 0) -> list[Job]:
        """Jobs ``first`` to ``first + count`` of an endless list."""
        said = prompts()
        return [self.job(said[index % len(said)], index) for index in range(first, first + count)]

    def job(self, prompt: str, seed: int, steps: int | None = None, style: Path | None = None) -> Job:
        """One of them."""
        return Job(
            generation_id=seed + 1,
            task_id=f"bench-{seed}",
            prompt=prompt,
            width_px=self.width_px,
            height_px=self.height_px,
            seed=seed,
            num_inference_steps=self.steps if steps is None else steps,
            guidance_scale=self.guidance_scale,
            styles=() if style is None else (StyleRef(path=str(style)),),
        )


@dataclass(frozen=True, slots=True)
class Lap:
    """One picture's times on one clock, in seconds: asked for, begun, each step done, picture there."""

    asked_s: float
    begun_s: float
    steps_s: tuple[float, ...]
    done_s: float
    picture: NDArray[np.uint8]

    @property
    def latency_s(self) -> float:
        """From being asked for to the picture."""
        return self.done_s - self.asked_s


@dataclass(frozen=True, slots=True)
class Served:
    """A running server and what asks it."""

    triton: LocalTriton
    models: TritonModels
    painter: Painter
    repository: Path
    shelf: StyleShelf

    @property
    def checkpoint(self) -> CheckpointInfo:
        """What is served."""
        return self.painter.checkpoint

    def plans(self, jobs: Sequence[Job], style_mode: StyleMode = "auto") -> list[Plan]:
        """The jobs' plans, their styles read and checked."""
        return [
            make_plan(job, self.checkpoint, lambda: 0, styles=self.shelf.admit(job.styles), style_mode=style_mode)
            for job in jobs
        ]

    def paint(self, plan: Plan, asked_s: float | None = None) -> Lap:
        """One picture in this thread."""
        begun_s = time.perf_counter()
        steps: list[float] = []
        with closing(self.painter.run(plan)) as turns:
            for turn in turns:
                if isinstance(turn, Finished):
                    done_s = time.perf_counter()
                    asked_s = begun_s if asked_s is None else asked_s
                    return Lap(asked_s, begun_s, tuple(steps), done_s, turn.picture)
                steps.append(time.perf_counter())
        raise RuntimeError("the run ended without a picture")

    def together(self, plans: Sequence[Plan]) -> list[Lap]:
        """All at once, each in a thread of its own."""
        with ThreadPoolExecutor(len(plans)) as pool:
            asked_s = time.perf_counter()
            return [made.result() for made in [pool.submit(self.paint, plan, asked_s) for plan in plans]]

    def settle(self, work: Work, seconds: float, counts: Sequence[int] = (1, 2, 3, 4)) -> None:
        """Each number of jobs for ``seconds``: shapes that earn a graph of their own then have it (``model.py``)."""
        for count in counts:
            run_for(seconds, partial(self.together, self.plans(work.jobs(count))))

    def arriving(self, plans: Sequence[Plan], at_s: Sequence[float], at_once: int) -> list[Lap]:
        """Each plan asked for at its time after now; at most ``at_once`` run, the others wait in order."""
        with ThreadPoolExecutor(at_once) as pool:
            begun_s = time.perf_counter()
            made = []
            for plan, after_s in zip(plans, at_s, strict=True):
                asked_s = begun_s + after_s
                time.sleep(max(0.0, asked_s - time.perf_counter()))
                made.append(pool.submit(self.paint, plan, asked_s))
            return [one.result() for one in made]

    def inputs(self, model: str, rows: int, dims: "Sequence[int]" = (64, 64, 77)) -> dict[str, NDArray[Any]]:
        """Real-shaped random inputs of ``model`` as the server declares it."""
        return random_inputs(metadata(self.triton.http_url, model), rows, *dims)


@contextmanager
def served(repository: Path, *, runtime: str | None = None, models: Sequence[str] | None = None) -> Iterator[Served]:
    """Triton with ``repository``, and the worker's painter on it."""
    with LocalTriton(repository, runtime=runtime, models=models or base_models(repository)) as triton:
        yield serving(triton, repository)


def serving(triton: LocalTriton, repository: Path) -> Served:
    """The worker's painter on a Triton that runs already."""
    environ = {"TRITON_URL": triton.http_url, "MODEL_REPOSITORY": str(repository), "STYLE_DISK_MB": "0"}
    settings = from_environ(environ)
    studio = build_studio(settings)
    assert isinstance(studio.models, TritonModels)
    anywhere = Storage(Path("/").as_uri(), allowed_input_prefixes=(Path("/").as_uri(),))
    return Served(triton, studio.models, studio.painter, repository, build_shelf(anywhere.inputs, studio, settings))


def prompts() -> list[str]:
    """The demo's held-out prompts."""
    return [entry["prompt"] for entry in json.loads(PROMPTS.read_text("utf-8"))]


def metadata(url: str, model: str) -> dict[str, Any]:
    """What a server says of a model."""
    with urllib.request.urlopen(f"{url}/v2/models/{model}", timeout=10) as answer:
        told: dict[str, Any] = json.load(answer)
        return told


NUMPY_TYPES = {"FP32": np.float32, "FP16": np.float16, "INT64": np.int64, "UINT8": np.uint8}


def random_inputs(model: dict[str, Any], rows: int, height: int, width: int, tokens: int) -> dict[str, NDArray[Any]]:
    """Inputs whose open dimensions are filled in: ``tokens`` of embeddings, else height and width of latents."""
    generator = np.random.default_rng(0)
    made: dict[str, NDArray[Any]] = {}
    for entry in model["inputs"]:
        name, open_dims = entry["name"], [tokens] if entry["name"] == "encoder_hidden_states" else [height, width]
        scale = 8 if entry["datatype"] == "UINT8" else 1
        dims = [dim if dim > 0 else open_dims.pop(0) * scale for dim in entry["shape"][1:]]
        made[name] = _values(generator, name, (rows, *dims), np.dtype(NUMPY_TYPES[entry["datatype"]]))
    return made


def _values(generator: np.random.Generator, name: str, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> NDArray[Any]:
    if name == "timestep":
        return np.linspace(999, 1, shape[0], dtype=dtype).reshape(shape)
    if name == "style":
        return np.zeros(shape, dtype)
    if dtype.kind in "iu":
        return generator.integers(0, 256, shape).astype(dtype)
    return generator.standard_normal(shape).astype(dtype)
