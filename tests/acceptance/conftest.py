"""The demo's models served by the real Triton, and pictures made through it."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

from local.triton import LocalTriton
from orchestrator.checkpoint import CheckpointInfo
from orchestrator.clients.triton import TritonModels
from orchestrator.errors import ObjectNotFound, ServiceError
from orchestrator.job import Job
from orchestrator.pipeline import Finished, Pipeline
from orchestrator.plan import make_plan
from orchestrator.styles import StyleShelf

AT_ONCE = 4


@pytest.fixture(scope="session")
def triton_on(demo_repository: Path) -> Iterator[Callable[[str], LocalTriton]]:
    """A Triton of the runtime that is named, one server for each."""
    with ExitStack() as ending:

        @cache
        def start(runtime: str) -> LocalTriton:
            try:
                return ending.enter_context(LocalTriton(demo_repository, runtime=runtime))
            except ServiceError as error:
                if os.environ.get("CI"):
                    raise
                pytest.skip(str(error))

        yield start


@pytest.fixture(scope="session")
def pipeline_on(
    triton_on: Callable[[str], LocalTriton], demo_checkpoint: CheckpointInfo
) -> Iterator[Callable[[str], Pipeline]]:
    """The pipeline on the Triton of the runtime that is named."""
    with ExitStack() as ending:

        @cache
        def connect(runtime: str) -> Pipeline:
            models = TritonModels(triton_on(runtime).http_url, deadline_s=600)
            ending.callback(models.close)
            return Pipeline(models, demo_checkpoint)

        yield connect


class Files:
    """The folder as a store of styles."""

    def read(self, uri: str, *, limit_bytes: int) -> bytes:
        return Path(uri).read_bytes()

    def version(self, uri: str) -> str:
        if not Path(uri).is_file():
            raise ObjectNotFound(f"there is no {uri}")
        return str(Path(uri).stat().st_mtime_ns)


@pytest.fixture(scope="module")
def paint(
    pipeline_on: Callable[[str], Pipeline], demo_checkpoint: CheckpointInfo
) -> Callable[[Sequence[Job]], list[Image.Image]]:
    """Pictures of jobs, each in its own style, a few at once, so that they share Triton's batches as a server's do."""
    pipeline, shelf = pipeline_on("auto"), StyleShelf(Files(), demo_checkpoint)

    def one(wanted: Job) -> Image.Image:
        plan = make_plan(wanted, demo_checkpoint, lambda: 0, styles=shelf.admit(wanted.styles), style_mode="mixed")
        *_, last = pipeline.run(plan)
        assert isinstance(last, Finished)
        return Image.fromarray(last.picture)

    def many(jobs: Sequence[Job]) -> list[Image.Image]:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(one, jobs))

    return many
