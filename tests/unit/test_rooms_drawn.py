"""The rooms that the project draws: no pixel of them shows nothing."""

import pytest

from demo.rooms.rooms import room_of
from demo.rooms.view import render


@pytest.mark.parametrize("supersampling", [1, 2])
@pytest.mark.parametrize("number", [900_001, 900_007, 900_018])
def test_every_pixel_of_a_room_shows_a_wall_the_floor_or_the_ceiling(number: int, supersampling: int):
    view = render(room_of(number), 768, 512, furnished=False, supersampling=supersampling)
    assert view.inverse_depth.min() > 0
    assert view.picture.max(axis=-1).min() > 20
