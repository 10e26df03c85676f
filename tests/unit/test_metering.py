"""What the networks take, measured around every call."""

import time

import numpy as np
import pytest
from fakes.networks import FormulaServer

from orchestrator.errors import OutOfMemory
from orchestrator.metering import MeteredNetworks, metered

PICTURE = np.zeros((1, 16, 16, 3), np.uint8)


@pytest.fixture
def heard() -> list[tuple[str, float]]:
    return []


@pytest.fixture
def networks(heard: list[tuple[str, float]]) -> MeteredNetworks:
    return MeteredNetworks(FormulaServer(), lambda model, seconds: heard.append((model, seconds)))


def test_every_call_is_heard_of_by_its_models_name(networks: MeteredNetworks, heard: list[tuple[str, float]]):
    hidden, _ = networks.encode_text(np.zeros((1, 77), np.int64), model="text_encoder_2")
    latents, _ = networks.encode(PICTURE)
    with networks.conditioned("unet", {"encoder_hidden_states": hidden}) as network:
        network(latents, np.ones((1, 1), np.float32))
        network(latents, np.ones((1, 1), np.float32))
    networks.decode(latents)
    networks.depth(PICTURE)
    networks.upscale(PICTURE)
    assert [model for model, _ in heard] == [
        "text_encoder_2", "vae_encoder", "unet", "unet", "vae_decoder", "depth", "upscaler",
    ]  # fmt: skip


def test_a_meter_counts_what_is_called_while_it_lasts_and_nothing_else(networks: MeteredNetworks, heard: list):
    networks.depth(PICTURE)
    with metered() as outer:
        networks.depth(PICTURE)
        with metered() as inner:
            networks.depth(PICTURE)
        time.sleep(0.05)
    assert inner.seconds == heard[2][1]
    assert outer.seconds == pytest.approx(heard[1][1] + heard[2][1])


def test_a_call_that_broke_is_counted_too(heard: list[tuple[str, float]]):
    server = FormulaServer()
    server.fault["depth"] = OutOfMemory("too large")
    networks = MeteredNetworks(server, lambda model, seconds: heard.append((model, seconds)))
    with metered() as meter, pytest.raises(OutOfMemory):
        networks.depth(PICTURE)
    assert meter.seconds == heard[0][1] > 0
