"""Real services for the tests. What cannot start skips on a laptop, with the reason, and fails in CI."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import tiny_graphs

from local.environment import Environment, prepare
from local.triton import LocalTriton
from orchestrator.clients.triton import TritonModels
from orchestrator.errors import ServiceError

ServeModels = Callable[..., LocalTriton]


@pytest.fixture(scope="session")
def triton_environment() -> Environment:
    """The server's files; a machine that cannot have them cannot run the tests that ask for this."""
    try:
        return prepare()
    except ServiceError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def serve_models(triton_environment: Environment) -> Iterator[ServeModels]:
    """Start a server for a model repository, with LocalTriton's options; it runs until the session ends."""
    with ExitStack() as running:
        yield lambda repository, **options: running.enter_context(LocalTriton(repository, **options))


@pytest.fixture(scope="session")
def tiny_repository(triton_environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four networks and four graphs that go wrong on demand, a few kilobytes each."""
    return tiny_graphs.write_repository(tmp_path_factory.mktemp("tiny_models"))


@pytest.fixture(scope="session")
def local_triton(serve_models: ServeModels, tiny_repository: Path) -> LocalTriton:
    """A server with tiny stand-ins for the four networks. Tests that end or break a server start their own."""
    return serve_models(tiny_repository, models=tiny_graphs.NETWORKS)


@pytest.fixture
def triton_models(local_triton: LocalTriton) -> Iterator[TritonModels]:
    """A client of ``local_triton``."""
    models = TritonModels(local_triton.http_url, deadline_s=60)
    yield models
    models.close()
