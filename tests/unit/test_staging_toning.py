"""Tones of a staged picture: what drifted comes back, what was painted stays."""

import numpy as np
import pytest

from orchestrator.staging.toning import toned

HEIGHT, WIDTH = 192, 256


@pytest.fixture
def photo() -> np.ndarray:
    """A wall that grows darker to the right, over a floor."""
    picture = np.empty((HEIGHT, WIDTH, 3), np.float32)
    picture[:] = (170, 190, 180)
    picture[110:] = (120, 100, 90)
    picture -= np.linspace(0, 30, WIDTH, dtype=np.float32)[None, :, None]
    return picture.astype(np.uint8)


@pytest.fixture
def mask() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    mask[40:180, 16:240] = True
    return mask


def off(one: np.ndarray, other: np.ndarray, where: np.ndarray) -> float:
    return float(np.abs(one.astype(float) - other)[where].mean())


def test_a_wall_and_a_floor_that_drifted_apart_both_come_back(photo: np.ndarray, mask: np.ndarray):
    drifted = photo.astype(np.float32)
    drifted[:110] += (22, -18, -25)
    drifted[110:] += (-30, 10, 35)
    staged = drifted.clip(0, 255).astype(np.uint8)
    found = toned(photo, staged, mask)
    rows = np.arange(HEIGHT)[:, None]
    assert off(staged, photo, mask) > 20
    assert off(found, photo, mask & (np.abs(rows - 110) > 30)) < 3


def test_furniture_keeps_its_shape_and_takes_the_tone_around_it(photo: np.ndarray, mask: np.ndarray):
    staged = photo.copy()
    staged[90:150, 100:160] = (150, 30, 35)
    drifted = (staged.astype(np.float32) + 15).clip(0, 255).astype(np.uint8)
    found = toned(photo, drifted, mask)
    assert off(found, staged, mask) < 2
    edge = np.abs(np.diff(found[100:140, 95:105].astype(float), axis=1)).max()
    assert edge == pytest.approx(np.abs(np.diff(staged[100:140, 95:105].astype(float), axis=1)).max(), abs=3)


def test_furniture_on_the_masks_border_is_no_tone_of_the_wall(photo: np.ndarray, mask: np.ndarray):
    staged = photo.copy()
    staged[90:180, 16:80] = (20, 20, 170)
    assert off(toned(photo, staged, mask), staged, mask) < 1


def test_a_picture_that_is_right_stays_as_it_is_and_so_does_what_lies_outside(photo: np.ndarray, mask: np.ndarray):
    assert np.array_equal(toned(photo, photo, mask), photo)
    outside = photo.copy()
    outside[:30] = 0
    assert np.array_equal(toned(photo, outside, mask)[~mask], outside[~mask])


@pytest.mark.parametrize("painted", [0, 255])
def test_where_furniture_is_everywhere_nothing_is_carried(photo: np.ndarray, painted: int):
    everywhere = np.ones((HEIGHT, WIDTH), np.bool_)
    staged = np.full_like(photo, painted)
    assert np.array_equal(toned(photo // 4 + 96, staged, everywhere), staged)
