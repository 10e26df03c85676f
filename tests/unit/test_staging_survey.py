"""The floor and the free walls in inverse depth: rooms in closed form, drawn rooms, and what falls back."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from box_rooms import BoxRoom

from demo.rooms.rooms import HELD_OUT_FROM, room_of
from demo.rooms.view import render
from orchestrator.errors import ModelUnavailable
from orchestrator.imaging.opencv import Shapes
from orchestrator.staging.floor import find_floor
from orchestrator.staging.masks import floor_mask
from orchestrator.staging.survey import DepthSight, Survey, Surveyor, find_mask

SHAPES = Shapes()
WIDTH, HEIGHT = 288, 192


def painted(floor: np.ndarray) -> np.ndarray:
    """A picture of a floor before bare walls."""
    return np.where(floor[..., None], (150, 110, 80), (222, 216, 205)).astype(np.uint8)


def front(floor: np.ndarray) -> np.ndarray:
    """Without the margins at the picture's sides and below."""
    height, width = floor.shape
    kept = floor.copy()
    kept[height - round(height * 0.03) :] = False
    kept[:, : round(width * 0.02)] = False
    kept[:, width - round(width * 0.02) :] = False
    return kept


@pytest.mark.parametrize(
    "room",
    [
        BoxRoom(),
        BoxRoom(yaw=20),
        BoxRoom(yaw=-35, width=5.5),
        BoxRoom(pitch=6),
        BoxRoom(pitch=-3, yaw=8, focal=0.6),
        BoxRoom(roll=2),
        BoxRoom(camera=1.1, depth=6.5),
    ],
    ids=str,
)
def test_the_floor_of_a_box_is_found_and_its_horizon_with_it(room: BoxRoom):
    told, drawn = room.inverse_depth(WIDTH, HEIGHT)
    floor = find_floor(told, SHAPES)
    assert floor is not None
    assert (floor.region & drawn).sum() >= 0.97 * drawn.sum()
    assert (floor.region & ~drawn).sum() <= 0.03 * drawn.sum()
    level = HEIGHT / 2 - np.tan(np.radians(room.pitch)) * room.focal * WIDTH
    assert floor.horizon_row[WIDTH // 2] == pytest.approx(level, abs=0.03 * HEIGHT)


@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
def test_inverse_depth_needs_no_unit(scale: float):
    told, drawn = BoxRoom(yaw=10).inverse_depth(WIDTH, HEIGHT)
    floor = find_floor(told * np.float32(scale), SHAPES)
    assert floor is not None
    assert (floor.region & drawn).sum() >= 0.97 * drawn.sum()


def test_furniture_may_rise_to_nine_tenths_of_the_cameras_height_before_a_wall():
    told, drawn = BoxRoom().inverse_depth(WIDTH, HEIGHT)
    mask = find_mask(painted(drawn), told, SHAPES).mask
    column = WIDTH // 2
    edge, horizon = int(drawn[:, column].argmax()), HEIGHT / 2
    assert int(mask[:, column].argmax()) == pytest.approx(edge - 0.9 * (edge - horizon), abs=3)
    assert mask[edge : HEIGHT - 8, column].all()


def test_nothing_may_stand_before_a_door_and_below_a_window_it_may():
    told, drawn = BoxRoom().inverse_depth(WIDTH, HEIGHT)
    picture = painted(drawn)
    edge = int(drawn[:, WIDTH // 2].argmax())
    picture[60:edge, 100:120] = (120, 80, 60)
    picture[60 : HEIGHT // 2 + 10, 150:185] = (170, 205, 240)
    mask = find_mask(picture, told, SHAPES).mask
    assert not mask[:edge, 98:122].any()
    assert not mask[: HEIGHT // 2 + 10, 150:185].any()
    assert mask[edge - 3, 150:185].all()
    assert mask[edge - 12, 130:145].all()


def test_a_white_door_in_a_white_wall_is_known_by_its_edges():
    told, drawn = BoxRoom().inverse_depth(WIDTH, HEIGHT)
    picture = painted(drawn)
    edge = int(drawn[:, WIDTH // 2].argmax())
    picture[60:edge, 100:103] = (206, 201, 191)
    picture[60:edge, 121:124] = (206, 201, 191)
    assert not find_mask(picture, told, SHAPES).mask[:edge, 104:120].any()


def test_a_counter_keeps_its_place():
    told, drawn = BoxRoom().inverse_depth(WIDTH, HEIGHT)
    edge = int(drawn[:, WIDTH // 2].argmax())
    foot = edge + 8
    told[HEIGHT // 2 + 20 : foot, 110:160] = told[foot, 130]
    drawn[:foot, 110:160] = False
    mask = find_mask(painted(drawn), told, SHAPES).mask
    assert not mask[: foot - 2, 115:155].any()
    assert mask[edge - 5, 170:180].all()


@pytest.mark.parametrize("number", range(HELD_OUT_FROM, HELD_OUT_FROM + 6))
def test_of_a_drawn_room_the_floor_is_covered_and_windows_and_doors_are_not(number: int):
    width, height = ((288, 192), (256, 192), (192, 256))[number % 3]
    view = render(room_of(number), width, height, furnished=False, supersampling=1)
    survey = find_mask(view.picture, view.inverse_depth, SHAPES)
    assert survey.origin == "found"
    assert (survey.mask & front(view.floor)).sum() >= 0.9 * front(view.floor).sum()
    assert (survey.mask & view.openings).sum() <= 0.02 * view.openings.sum()


@pytest.mark.parametrize(
    "told",
    [
        np.ones((HEIGHT, WIDTH), np.float32),
        np.zeros((HEIGHT, WIDTH), np.float32),
        np.linspace(2, 1, HEIGHT, dtype=np.float32)[:, None].repeat(WIDTH, axis=1),
        np.random.default_rng(1).random((HEIGHT, WIDTH)).astype(np.float32),
    ],
    ids=["flat", "nothing", "a ceiling", "noise"],
)
def test_where_no_plane_can_be_a_floor_a_usual_place_is_taken(told: np.ndarray):
    survey = find_mask(np.full((HEIGHT, WIDTH, 3), 128, np.uint8), told, SHAPES)
    assert survey.origin == "floor"
    assert np.array_equal(survey.mask, floor_mask(HEIGHT, WIDTH))


def test_depth_is_looked_at_in_a_square_and_told_at_the_pictures_size():
    asked = []

    def look(pictures: np.ndarray) -> np.ndarray:
        asked.append(pictures)
        return pictures[..., 0].astype(np.float32) - 50

    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    picture[:, WIDTH // 2 :] = 200
    told = DepthSight(look, 64).inverse_depth(picture)
    assert (asked[0].shape, asked[0].dtype) == ((1, 64, 64, 3), np.uint8)
    assert (told.shape, told.dtype) == ((HEIGHT, WIDTH), np.float32)
    assert (told[10, 10], told[10, -10]) == (0, 150), "never below nothing"


class Parts:
    """Which parts were timed."""

    def __init__(self) -> None:
        self.names: list[str] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.names.append(name)
        yield


def surveyed(sight: DepthSight | None, given: np.ndarray | None = None) -> tuple[Survey, list[str]]:
    parts = Parts()
    drawn = BoxRoom().inverse_depth(WIDTH, HEIGHT)[1]
    return Surveyor(sight, SHAPES).survey(painted(drawn), given, parts), parts.names


def seeing() -> DepthSight:
    told = BoxRoom().inverse_depth(64, 64)[0]
    return DepthSight(lambda pictures: told[None], 64)


def test_a_mask_that_is_found_says_so_and_brings_the_depth():
    survey, parts = surveyed(seeing())
    assert (survey.origin, survey.warnings, parts) == ("found", (), ["depth", "mask"])
    assert survey.inverse_depth is not None


def test_a_mask_that_is_given_is_kept_and_the_depth_is_told_all_the_same():
    given = np.zeros((HEIGHT, WIDTH), np.bool_)
    given[5, 5] = True
    survey, _ = surveyed(seeing(), given)
    assert survey.origin == "given"
    assert survey.mask is given
    assert survey.inverse_depth is not None


def test_without_a_network_for_depth_the_answer_warns_of_the_guess():
    survey, parts = surveyed(None)
    assert (survey.origin, parts) == ("floor", ["mask"])
    assert "mask_key" in survey.warnings[0]


def test_a_network_that_fails_costs_the_mask_and_not_the_staging(caplog: pytest.LogCaptureFixture):
    def broken(pictures: np.ndarray) -> np.ndarray:
        raise ModelUnavailable("depth is not served")

    survey, _ = surveyed(DepthSight(broken, 64))
    assert survey.origin == "floor"
    assert survey.inverse_depth is None
    assert len(survey.warnings) == 1
    assert "staged without its depth" in caplog.text
