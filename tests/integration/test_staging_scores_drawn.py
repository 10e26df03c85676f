"""The scores on a drawn room, furnished soundly and broken in the ways that they are to find."""

from functools import cache

import pytest

from demo.rooms.damages import OTHER, SOUND, Pair, pairs_of
from demo.rooms.learn_scores import LEARNED, verdict_on_pair
from orchestrator.staging.scores.style import load_styles

ROOM = 900_005
# Drawn furniture that floats a little may still end on the floor, and a room that moves looks like a room.
FOUND = (
    "empty",
    "noise",
    "one colour",
    "specks",
    "noisy furniture",
    "a cast",
    "vivid",
    "stripes",
    "a dead area",
    OTHER,
)


@cache
def pairs() -> dict[str, Pair]:
    return pairs_of(ROOM)


@pytest.mark.parametrize("name", SOUND)
def test_sound_furniture_passes(name: str):
    verdict = verdict_on_pair(pairs()[name], load_styles(LEARNED), depth=True)
    assert verdict.passed, verdict.reasons


@pytest.mark.parametrize("name", FOUND)
def test_broken_pictures_do_not_pass(name: str):
    assert not verdict_on_pair(pairs()[name], load_styles(LEARNED), depth=True).passed


def test_sound_furniture_passes_where_no_network_tells_depth():
    assert verdict_on_pair(pairs()["furnished"], load_styles(LEARNED), depth=False).passed


def test_the_style_is_told_from_the_furniture_alone():
    verdict = verdict_on_pair(pairs()[OTHER], load_styles(LEARNED), depth=True)
    assert set(verdict.reasons) == {"style"}
