"""Several Tritons: who gets a job, and what becomes of it when its server dies."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import pytest
from numpy.typing import NDArray

from orchestrator.endpoints import Endpoints
from orchestrator.errors import ModelUnavailable, OutOfMemory

SAMPLE = np.zeros((2, 4, 8, 8), np.float32)
TIMESTEP = np.zeros((2, 1), np.float32)
INPUTS = {"encoder_hidden_states": np.zeros((2, 77, 8), np.float32)}


class FakeServer:
    """A Triton whose UNet answers its own number."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.alive = True
        self.models = {"unet"}
        self.placed = 0
        self.closed = False
        self.error: Exception | None = None

    def encode_text(self, input_ids: NDArray[np.int64], model: str = "text_encoder"):
        return self._answer(input_ids), self._answer(input_ids)

    @contextmanager
    def conditioned(self, model: str, inputs: Mapping[str, NDArray[np.float32]]) -> Iterator:
        self.placed += 1
        try:
            yield lambda sample, timestep: self._answer(sample)
        finally:
            self.placed -= 1

    def decode(self, latents: NDArray[np.float32]) -> NDArray[np.uint8]:
        return self._answer(latents).astype(np.uint8)

    def encode(self, picture: NDArray[np.uint8]):
        return self._answer(picture), self._answer(picture)

    def depth(self, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self._answer(picture[..., 0])

    def upscale(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return self._answer(picture).astype(np.uint8)

    def ready(self) -> tuple[str, ...]:
        return () if self.alive else ("triton",)

    def load(self, model: str) -> None:
        self._answer(np.zeros(1))
        self.models.add(model)

    def unload(self, model: str) -> None:
        self._answer(np.zeros(1))
        self.models.remove(model)

    def is_ready(self, model: str) -> bool:
        self._answer(np.zeros(1))
        return model in self.models

    def loaded(self) -> tuple[str, ...]:
        self._answer(np.zeros(1))
        return tuple(self.models)

    def close(self) -> None:
        self.closed = True

    def _answer(self, like) -> NDArray[np.float32]:
        if not self.alive:
            raise ModelUnavailable("nobody answers")
        if self.error is not None:
            raise self.error
        return np.full(np.shape(like), self.number, np.float32)


@pytest.fixture
def servers() -> list[FakeServer]:
    return [FakeServer(1), FakeServer(2)]


@pytest.fixture
def endpoints(servers: list[FakeServer]) -> Iterator[Endpoints]:
    several = Endpoints({f"http://triton-{one.number}:8000": one for one in servers}, looks_every_s=0.01)
    yield several
    several.close()


def answer(network) -> int:
    return int(network(SAMPLE, TIMESTEP).flat[0])


def test_jobs_go_to_the_server_with_the_fewest_rows(endpoints: Endpoints):
    with endpoints.conditioned("unet", INPUTS) as first, endpoints.conditioned("unet", INPUTS) as second:
        assert {answer(first), answer(second)} == {1, 2}


def test_a_job_stays_where_it_began(endpoints: Endpoints):
    with endpoints.conditioned("unet", INPUTS) as first:
        where = answer(first)
        with endpoints.conditioned("unet", INPUTS) as second:
            answer(second)
        assert [answer(first) for _ in range(3)] == [where] * 3


def test_a_job_goes_on_elsewhere_when_its_server_dies(endpoints: Endpoints, servers: list[FakeServer]):
    with endpoints.conditioned("unet", INPUTS) as network:
        where = answer(network)
        servers[where - 1].alive = False
        assert answer(network) == 3 - where
        assert servers[where - 1].placed == 0


def test_a_server_that_died_is_left_alone_until_it_is_ready_again(endpoints: Endpoints, servers: list[FakeServer]):
    servers[0].alive = False
    assert [int(endpoints.decode(SAMPLE).flat[0]) for _ in range(4)] == [2] * 4
    servers[0].alive = True
    until_s = time.monotonic() + 5
    with endpoints.conditioned("unet", INPUTS) as busy:
        answer(busy)
        while int(endpoints.decode(SAMPLE).flat[0]) != 1:
            assert time.monotonic() < until_s, "the server that came back was never asked again"


def test_the_failure_of_a_model_is_the_jobs_own_and_no_reason_to_leave_its_server(
    endpoints: Endpoints, servers: list[FakeServer]
):
    for server in servers:
        server.error = ModelUnavailable("unet held NaN or infinity")
    with endpoints.conditioned("unet", INPUTS) as network, pytest.raises(ModelUnavailable, match="NaN"):
        network(SAMPLE, TIMESTEP)
    servers[0].error = servers[1].error = None
    assert len({int(endpoints.decode(SAMPLE).flat[0]) for _ in range(2)}) == 1


def test_out_of_memory_is_not_tried_on_every_server_in_turn(endpoints: Endpoints, servers: list[FakeServer]):
    for server in servers:
        server.error = OutOfMemory(f"no room on {server.number}")
    with pytest.raises(OutOfMemory):
        endpoints.decode(SAMPLE)


def test_depth_and_larger_pictures_come_from_any_server_that_is_up(endpoints: Endpoints, servers: list[FakeServer]):
    servers[0].alive = False
    picture = np.zeros((1, 8, 8, 3), np.uint8)
    assert int(endpoints.depth(picture).flat[0]) == 2
    assert int(endpoints.upscale(picture).flat[0]) == 2


def test_where_all_are_down_the_job_hears_the_last_reason(endpoints: Endpoints, servers: list[FakeServer]):
    for server in servers:
        server.alive = False
    assert endpoints.ready() == ("triton",)
    with pytest.raises(ModelUnavailable):
        endpoints.encode_text(np.zeros((1, 77), np.int64))
    with endpoints.conditioned("unet", INPUTS) as network, pytest.raises(ModelUnavailable, match="none of 2 Tritons"):
        network(SAMPLE, TIMESTEP)


def test_one_server_that_works_is_ready_enough(endpoints: Endpoints, servers: list[FakeServer]):
    servers[1].alive = False
    assert endpoints.ready() == ()


def test_a_merged_style_is_loaded_on_one_server_and_its_jobs_go_there(endpoints: Endpoints, servers: list[FakeServer]):
    endpoints.load("unet--abc")
    (holder,) = [server for server in servers if "unet--abc" in server.models]
    with endpoints.conditioned("unet--abc", INPUTS) as first, endpoints.conditioned("unet--abc", INPUTS) as second:
        assert answer(first) == answer(second) == holder.number
    assert endpoints.loaded().count("unet--abc") == 1
    endpoints.unload("unet--abc")
    assert not endpoints.is_ready("unet--abc")


def test_a_merged_style_whose_server_died_can_be_loaded_elsewhere_and_its_job_goes_on(
    endpoints: Endpoints, servers: list[FakeServer]
):
    endpoints.load("unet--abc")
    with endpoints.conditioned("unet--abc", INPUTS) as network:
        where = answer(network)
        servers[where - 1].alive = False
        with pytest.raises(ModelUnavailable):
            network(SAMPLE, TIMESTEP)
        assert not endpoints.is_ready("unet--abc")
        endpoints.load("unet--abc")
        assert answer(network) == 3 - where


@pytest.mark.parametrize("dead", [0, 1])
def test_a_server_that_died_unnoticed_hides_no_merged_style_of_another(
    endpoints: Endpoints, servers: list[FakeServer], dead: int
):
    servers[1 - dead].models.add("unet--abc")
    servers[dead].alive = False
    assert endpoints.is_ready("unet--abc")
    servers[dead].alive = True
    with endpoints.conditioned("unet--abc", INPUTS) as network:
        servers[dead].alive = False
        assert answer(network) == servers[1 - dead].number
    assert set(endpoints.loaded()) == {"unet", "unet--abc"}
    endpoints.unload("unet--abc")
    assert not endpoints.is_ready("unet--abc")


@pytest.mark.parametrize("act", [Endpoints.loaded, lambda several: several.unload("unet--abc")])
def test_what_a_server_refuses_that_lives_is_said(endpoints: Endpoints, servers: list[FakeServer], act):
    servers[0].error = ModelUnavailable("it is busy")
    with pytest.raises(ModelUnavailable, match="it is busy"):
        act(endpoints)


def test_many_jobs_survive_a_server_that_dies_among_them(endpoints: Endpoints, servers: list[FakeServer]):
    ended: list[int] = []

    def job() -> None:
        with endpoints.conditioned("unet", INPUTS) as network:
            for _ in range(50):
                answer(network)
                time.sleep(0.0005)
        ended.append(1)

    jobs = [threading.Thread(target=job) for _ in range(10)]
    for one in jobs:
        one.start()
    servers[0].alive = False
    for one in jobs:
        one.join()
    assert len(ended) == 10
    assert servers[0].placed == servers[1].placed == 0


def test_closing_closes_every_server(endpoints: Endpoints, servers: list[FakeServer]):
    endpoints.close()
    assert all(server.closed for server in servers)
