"""The demo's score: right about drawn scenes, and not to be fooled by others; nothing here needs torch."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from demo.captions import Claims, ThingClaim, choose_claims
from demo.painting import draw
from demo.scenes import Scene, Thing, random_scene
from demo.score import claims_from_json, claims_to_json, fraction, has_light, has_thing, score
from demo.write_prompts import prompts

PROMPTS = Path(__file__).parents[2] / "demo" / "prompts_heldout.json"
SIDE_PX = 256

EVENING = Scene("dusk", "clear", "sea", False, "sun", "left", False, (Thing("boat", "red"),), "right", 5)


def test_drawn_scenes_keep_their_claims_and_break_those_of_other_scenes() -> None:
    rng = random.Random(7)
    scenes = [random_scene(rng) for _ in range(14)]
    claims = [choose_claims(scene, rng) for scene in scenes]
    pictures = [draw(scene, SIDE_PX, SIDE_PX) for scene in scenes]

    own = [fraction(score(picture, said)) for picture, said in zip(pictures, claims, strict=True)]
    other = [
        checks
        for picture, said in zip(pictures, claims[1:] + claims[:1], strict=True)
        if (checks := score(picture, said))
    ]

    assert np.mean(own) >= 0.95
    assert np.mean([fraction(checks) for checks in other]) <= 0.4


@pytest.mark.parametrize(
    ("kind", "colour", "there"), [("boat", "red", True), ("boat", "blue", False), ("house", "red", False)]
)
def test_an_object_is_found_by_kind_and_colour(kind: str, colour: str, there: bool) -> None:
    assert has_thing(draw(EVENING, SIDE_PX, SIDE_PX), kind, colour) is there


def test_the_sun_is_found_and_not_taken_for_the_moon() -> None:
    picture = draw(EVENING, SIDE_PX, SIDE_PX)

    assert has_light(picture, "sun")
    assert not has_light(picture, "moon")


def test_a_grey_picture_keeps_no_claim_about_objects() -> None:
    grey = draw(EVENING, SIDE_PX, SIDE_PX).convert("L").convert("RGB")

    assert score(grey, Claims(things=(ThingClaim("boat", "red", 1, "right"),)), strict=True) == {
        "boat": 0.0,
        "boat side": 0.0,
    }


def test_the_held_out_prompts_in_the_repository_are_those_their_seed_gives() -> None:
    entries = json.loads(PROMPTS.read_text(encoding="utf-8"))

    assert len(entries) == 100
    assert entries == json.loads(json.dumps(prompts(100, 20261122)))
    assert all(claims_to_json(claims_from_json(entry["claims"])).keys() == entry["claims"].keys() for entry in entries)
