"""How rows are cut into calls, and what is learned from a server that ran out of memory."""

import numpy as np
import pytest

from orchestrator.clients.gate import Limits
from orchestrator.clients.rows import FORGOTTEN_AFTER_S, RowLimits, area_of, in_parts
from orchestrator.errors import DeadlineExceeded, GenerationFailed, ModelUnavailable, OutOfMemory


class Model:
    """Answers its rows doubled; ``fits`` rows at most, never the row whose value is ``bad`` in company."""

    def __init__(self, rows: int, fits: int = 99, bad: float | None = None) -> None:
        self.rows = np.arange(rows, dtype=np.float32).reshape(rows, 1, 1, 1)
        self.fits, self.bad = fits, bad
        self.calls: list[tuple[int, bool]] = []

    def __call__(self, rows: slice, alone: bool) -> dict[str, np.ndarray]:
        part = self.rows[rows]
        self.calls.append((len(part), alone))
        if len(part) > self.fits:
            raise OutOfMemory("too much")
        if self.bad in part and not alone:
            raise GenerationFailed("one of them")
        return {"out": part * 2}


def test_what_fits_into_one_call_goes_as_one() -> None:
    model = Model(8)
    in_parts(model.rows, RowLimits(8, {}), model)
    assert model.calls == [(8, False)]


def test_more_rows_come_back_in_their_order() -> None:
    model = Model(7)
    np.testing.assert_array_equal(in_parts(model.rows, RowLimits(3, {}), model)["out"], model.rows * 2)


def test_rows_that_do_not_fit_are_halved_until_they_do() -> None:
    model = Model(8, fits=2)
    np.testing.assert_array_equal(in_parts(model.rows, RowLimits(8, {}), model)["out"], model.rows * 2)
    assert model.calls == [(8, False), (4, False), *[(2, False)] * 4]


def test_one_row_that_does_not_fit_is_the_error() -> None:
    model = Model(2, fits=0)
    with pytest.raises(OutOfMemory):
        in_parts(model.rows, RowLimits(8, {}), model)
    assert model.calls[-1] == (1, False)


def test_what_failed_in_company_is_called_again_alone() -> None:
    model = Model(4, bad=3.0)
    np.testing.assert_array_equal(in_parts(model.rows, RowLimits(2, {}), model)["out"], model.rows * 2)
    assert model.calls == [(2, False), (2, False), (2, True)]


@pytest.mark.parametrize("error", [ModelUnavailable("gone"), DeadlineExceeded("late")])
def test_a_server_that_is_not_there_is_not_called_again(error: GenerationFailed) -> None:
    calls = []

    def call(rows: slice, alone: bool) -> dict[str, np.ndarray]:
        calls.append(rows)
        raise error

    with pytest.raises(type(error)):
        in_parts(np.zeros((1, 4, 8, 8), np.float32), RowLimits(8, {}), call)
    assert len(calls) == 1


def test_what_was_learned_counts_for_larger_pictures_too_and_not_for_smaller_ones() -> None:
    limits = RowLimits(8, {})
    limits.halve(4096, 8)
    assert [limits.at(area).group for area in (1024, 4096, 5000)] == [8, 4, 4]


def test_everyone_in_an_execution_that_did_not_fit_says_so_and_it_counts_once() -> None:
    limits = RowLimits(8, {})
    for _ in range(4):
        assert limits.halve(4096, 8)
    assert limits.at(4096).group == 4


def test_what_was_learned_is_forgotten_after_ten_minutes() -> None:
    now_s = 0.0
    limits = RowLimits(8, {}, clock=lambda: now_s)
    limits.halve(4096, 8)
    learned = limits.at(4096).group
    now_s = FORGOTTEN_AFTER_S + 1
    assert (learned, limits.at(4096).group) == (4, 8)


def test_what_was_learned_is_forgotten_of_larger_pictures_too() -> None:
    now_s = 0.0
    limits = RowLimits(8, {"rows_that_fit": "16384:8"}, clock=lambda: now_s)
    limits.halve(4096, 8)
    learned = limits.at(16384).group
    now_s = FORGOTTEN_AFTER_S + 1
    limits.at(4096)  # whoever asks first
    assert (learned, limits.at(16384).group) == (4, 8)


def test_rows_are_limited_by_the_picture_s_area() -> None:
    limits = RowLimits(8, {"rows_that_fit": "4096:8, 16384:2"})
    assert [limits.at(area).group for area in (1024, 4096, 8192, 16384, 65536)] == [8, 8, 2, 2, 1]


def test_where_less_than_an_execution_fits_no_more_is_under_way_at_all() -> None:
    limits = RowLimits(8, {"rows_that_fit": "4096:8,16384:2"})
    assert limits.at(16384) == Limits(group=2, under_way=2)
    assert limits.at(4096) == Limits(group=8, under_way=16)


def test_without_a_word_of_the_model_what_fits_at_512_px_shrinks_with_the_picture() -> None:
    limits = RowLimits(8, {})
    assert [limits.at(area) for area in (1, 4096, 16384)] == [Limits(8, 16), Limits(8, 16), Limits(2, 2)]


def test_a_group_is_no_larger_than_pays() -> None:
    limits = RowLimits(20, {"rows_that_fit": "4096:20", "rows_aimed_at": "4096:8"})
    assert limits.at(4096) == Limits(group=8, under_way=16)


@pytest.mark.parametrize(
    ("array", "area"),
    [
        (np.zeros((2, 4, 64, 96), np.float32), 6144),
        (np.zeros((2, 512, 768, 3), np.uint8), 6144),
        (np.zeros((2, 77), np.int64), 1),
    ],
    ids=["latents", "pictures", "tokens"],
)
def test_an_area_is_counted_in_latent_pixels(array: np.ndarray, area: int) -> None:
    assert area_of(array) == area
