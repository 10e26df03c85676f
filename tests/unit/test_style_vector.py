"""A job's styles as one row of numbers, and which of them fit into one."""

import re

import numpy as np
import pytest
from small_styles import CONV, KEY, LAYERS, LAYOUT, QUERY, numbers

from orchestrator.diffusion.deltas import Decomposed, LowRank, StoredTensor, Whole
from orchestrator.diffusion.style_vector import NO_LAYOUT, StyleLayout


def low_rank(layer: str, rank: int = 2, scale: float = 1.0, seed: int = 0) -> LowRank:
    out, into, *kernel = LAYERS["unet"][layer]
    down, up = numbers(rank, into, *kernel, seed=seed), numbers(out, rank, *[1] * len(kernel), seed=seed + 1)
    return LowRank(shape=(out, into, *kernel), down=StoredTensor(down), up=StoredTensor(up), scale=scale)


def styled(layout: StyleLayout, row: np.ndarray, layer: str, x: np.ndarray) -> np.ndarray:
    """What a graph makes of the row in one layer: slices in the layout's order, ``(x @ down) @ up``."""
    start = 0
    for name, (out, into) in zip(layout.layers, layout.shapes, strict=True):
        middle, end = start + into * layout.rank, start + (into + out) * layout.rank
        if name == layer:
            return x @ row[start:middle].reshape(into, layout.rank) @ row[middle:end].reshape(layout.rank, out)
        start = end
    raise KeyError(layer)


@pytest.mark.parametrize("layer", [QUERY, KEY])
def test_a_row_does_to_a_layer_what_the_style_does(layer: str) -> None:
    delta = low_rank(layer, scale=4.0)
    row = LAYOUT.row([({QUERY: low_rank(QUERY, seed=5), layer: delta}, 0.5)])
    x = numbers(3, delta.shape[1], seed=9)
    np.testing.assert_allclose(styled(LAYOUT, row, layer, x), x @ delta.delta(0.5).T, atol=1e-7)


def test_several_styles_add_up_each_with_its_weight() -> None:
    first, second = low_rank(QUERY, rank=3), low_rank(QUERY, rank=5, seed=3)
    row = LAYOUT.row([({QUERY: first}, 0.7), ({QUERY: second}, -0.3)])
    x = numbers(3, first.shape[1], seed=9)
    expected = x @ (first.delta(0.7) + second.delta(-0.3)).T
    np.testing.assert_allclose(styled(LAYOUT, row, QUERY, x), expected, atol=1e-7)


def test_a_layer_that_no_style_changes_is_zeros_and_so_is_the_row_of_none() -> None:
    row = LAYOUT.row([({QUERY: low_rank(QUERY)}, 1.0)])
    assert not styled(LAYOUT, row, KEY, np.eye(6, dtype=np.float32)).any()
    assert not LAYOUT.row([]).any()
    assert (LAYOUT.row([]).shape, LAYOUT.row([]).dtype) == ((LAYOUT.size,), np.float32)


def test_the_size_of_a_row_is_that_of_its_factors() -> None:
    assert LAYOUT.size == 8 * sum(sum(LAYERS["unet"][name]) for name in LAYOUT.layers)
    assert NO_LAYOUT.size == 0


def test_what_fits_has_no_misfit() -> None:
    assert LAYOUT.misfit([{QUERY: low_rank(QUERY, rank=8)}, {KEY: low_rank(KEY, rank=8)}]) is None


@pytest.mark.parametrize(
    ("styles", "told"),
    [
        ([{CONV: low_rank(CONV)}], f"it changes {CONV}, and an input for styles reaches the projections of attention"),
        ([{QUERY: low_rank(QUERY, rank=9)}], f"its rank at {QUERY} is 9, and the input for styles takes up to 8"),
        ([{QUERY: low_rank(QUERY, rank=5)}, {QUERY: low_rank(QUERY, rank=4)}], "its rank at .* is 9"),
        (
            [{QUERY: Decomposed(direction=low_rank(QUERY), magnitude=StoredTensor(numbers(8)))}],
            f"what it does to {QUERY} is not plain low rank",
        ),
        ([{QUERY: Whole(shape=(8, 8), difference=StoredTensor(numbers(8, 8)))}], "is not plain low rank"),
    ],
    ids=["another layer", "rank", "ranks together", "DoRA", "difference"],
)
def test_what_does_not_fit_a_row_is_said(styles: list, told: str) -> None:
    misfit = LAYOUT.misfit(styles)
    assert misfit is not None
    assert re.search(told, misfit)


def test_a_graph_without_the_input_fits_nothing() -> None:
    assert NO_LAYOUT.misfit([{QUERY: low_rank(QUERY)}]) == "the UNet was built without an input for styles"
