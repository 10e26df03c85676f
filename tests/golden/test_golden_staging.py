"""Staged pictures that are kept: where each is from, that the mock still draws it, and what the scores thought of it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator.staging.mock import MockProvider
from orchestrator.staging.prompts import Wording
from orchestrator.staging.provider import Task
from orchestrator.staging.scores.verdict import Judge, Verdict

HERE = Path(__file__).parent
ORIGINS = json.loads((HERE / "origins.json").read_text())


class Patient:
    """A watch without a clock."""

    def check(self) -> None: ...

    def wait(self, seconds: float) -> None: ...

    def nudge(self) -> None: ...

    def left_s(self) -> float:
        return 100.0

    def report(self, percent: int) -> None: ...


def picture(name: str) -> np.ndarray:
    with Image.open(HERE / name) as image:
        return np.asarray(image)


def verdict(name: str) -> Verdict:
    return Judge().verdict(picture("room.png"), picture(name), picture("room_mask.png") > 0, "traditional")


def test_every_picture_says_where_it_is_from():
    assert {path.name for path in HERE.glob("*.png")} == set(ORIGINS)
    assert all(entry["origin"] and entry["what"] for entry in ORIGINS.values())


def test_the_mock_draws_the_picture_that_is_kept():
    room, mask = picture("room.png"), picture("room_mask.png") > 0
    task = Task(key="k", picture=room, mask=mask, wording=Wording("a", "b"), seed=7, strength=0.5, guidance_scale=6)
    drawn = np.where(mask[..., None], MockProvider(0).stage(task, Patient()).pixels, room)
    # Letters differ by a shade between versions of FreeType.
    assert np.abs(drawn.astype(int) - picture("room_mock.png")).mean() < 1


@pytest.mark.parametrize("name", [name for name, entry in ORIGINS.items() if "scores" in entry])
def test_scores_of_what_is_kept_stay_as_they_were(name: str):
    assert verdict(name).scores == pytest.approx(ORIGINS[name]["scores"], abs=0.05)


def test_drawn_furniture_passes_and_outlines_are_none():
    assert verdict("room_furnished.png").passed
    assert set(verdict("room_mock.png").reasons) == {"furnished"}
