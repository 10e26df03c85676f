"""Torch's noise, checked against values that torch 2.13 printed; tests/parity compares whole tensors."""

import numpy as np
import pytest

from orchestrator.diffusion.noise import StepNoise, TorchNormal
from orchestrator.errors import InvalidInput

SHAPE = (1, 4, 8, 8)

# Three values of a first draw of SHAPE, the last two of a second one, and values 0, 4 and 19 of a draw of 20 after it.
PRINTED_BY_TORCH = {
    0: (-1.12584, -1.15236, -0.250579, 1.309424, -1.661295, -0.546073, 0.036156, -0.195299),
    42: (1.926915, 1.487284, 0.900717, -0.338898, 0.517973, -1.36377, 0.353316, -1.407827),
    2**32 - 1: (-2.664298, -1.091049, 0.451447, -0.14856, 1.855822, -0.0001, 1.731023, 1.231831),
    2**63 - 1: (-2.664298, -1.091049, 0.451447, -0.14856, 1.855822, -0.0001, 1.731023, 1.231831),
}


@pytest.mark.parametrize("seed", PRINTED_BY_TORCH)
def test_successive_draws_are_those_of_torch(seed):
    normal = TorchNormal(seed)
    first, second, odd = normal.draw(SHAPE), normal.draw(SHAPE), normal.draw((20,))

    drawn = [*first.ravel()[:3], *second.ravel()[-2:], *odd[[0, 4, 19]]]
    np.testing.assert_allclose(drawn, PRINTED_BY_TORCH[seed], atol=1.5e-6)
    assert first.dtype == np.float32


@pytest.mark.parametrize("shape", [(16,), (17,), (31,), (1, 4, 9, 7), SHAPE])
def test_skipping_draws_goes_on_where_drawing_them_would_have(shape):
    drawn, skipped = TorchNormal(7), TorchNormal(7)
    for _ in range(3):
        drawn.draw(shape)
    skipped.skip(shape, 3)

    np.testing.assert_array_equal(skipped.draw(shape), drawn.draw(shape))


def test_two_seeds_give_two_noises():
    assert not np.allclose(TorchNormal(1).draw(SHAPE), TorchNormal(2).draw(SHAPE))


def test_many_values_have_mean_0_and_variance_1():
    values = TorchNormal(3).draw((1, 4, 256, 256))

    assert abs(float(values.mean())) < 0.005
    assert abs(float(values.std()) - 1.0) < 0.005


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_that_torch_would_fold_or_refuse_is_refused(seed):
    with pytest.raises(InvalidInput, match=f"seed is {seed}; seeds 0 to 18446744073709551615 are served"):
        TorchNormal(seed)


def test_draw_of_fewer_than_16_values_is_refused():
    with pytest.raises(InvalidInput, match=r"noise of shape \(3, 5\) is 15 values; draws of 16 values and more"):
        TorchNormal(0).draw((3, 5))


def test_noise_of_a_step_is_the_draw_that_follows_those_before_it():
    normal = TorchNormal(5)
    start, *of_steps = [normal.draw(SHAPE) for _ in range(4)]
    noise = StepNoise(5, SHAPE)

    for index, expected in enumerate(of_steps):
        np.testing.assert_array_equal(noise(index), expected)
    np.testing.assert_array_equal(StepNoise(5, SHAPE, drawn_before=0)(0), start)


def test_noise_of_a_step_is_the_same_whichever_steps_were_asked_for_before():
    noise, in_order = StepNoise(5, SHAPE), StepNoise(5, SHAPE)
    expected = [in_order(index) for index in range(6)]

    for index in (4, 4, 0, 5, 2, 3):
        np.testing.assert_array_equal(noise(index), expected[index])


def test_noise_of_a_loop_from_a_picture_counts_from_its_first_step():
    np.testing.assert_array_equal(StepNoise(5, SHAPE, first=12)(13), StepNoise(5, SHAPE)(1))
