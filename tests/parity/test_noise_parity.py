"""Our noise against torch's own, whole tensors and many draws long."""

import numpy as np
import pytest

from orchestrator.diffusion.noise import StepNoise, TorchNormal

torch = pytest.importorskip("torch")

SEEDS = (0, 1, 42, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**64 - 1)
SHAPES = ((1, 4, 64, 64), (16,), (17,), (1, 4, 13, 11), (31,), (2, 4, 8, 8), (5, 7), (1, 4, 128, 128), (33,))


def generator(seed):
    return torch.Generator("cpu").manual_seed(seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_any_sequence_of_draws_equals_torchs(seed):
    theirs, ours = generator(seed), TorchNormal(seed)

    for shape in SHAPES:
        np.testing.assert_allclose(ours.draw(shape), torch.randn(shape, generator=theirs).numpy(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(1, 4, 64, 64), (1, 4, 64, 128), (1, 4, 9, 7)])
def test_noise_of_every_step_equals_torchs_generator_that_drew_the_latents_first(shape):
    theirs, ours = generator(7), StepNoise(7, shape)
    torch.randn(shape, generator=theirs)

    for index in range(100):
        np.testing.assert_allclose(ours(index), torch.randn(shape, generator=theirs).numpy(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", range(16, 80))
def test_every_tail_of_a_block_of_16_equals_torchs(size):
    theirs, ours = generator(3), TorchNormal(3)

    for _ in range(3):
        np.testing.assert_allclose(ours.draw((size,)), torch.randn(size, generator=theirs).numpy(), atol=1e-6, rtol=0)
