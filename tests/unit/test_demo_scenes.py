"""The demo's scenes, captions and scorer; nothing here needs torch."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from demo.captions import Claims, ThingClaim, captioned, choose_claims, plain_words
from demo.latents import RAW_SPREAD, block_latents, colours
from demo.painting import draw
from demo.scenes import Scene, Thing, held_out, random_scene, training_scene
from demo.score import claims_from_json, claims_to_json, fraction, has_light, has_thing, score
from demo.train_tokenizer import byte_letters, learn_merges
from demo.write_prompts import prompts

PROMPTS = Path(__file__).parents[2] / "demo" / "prompts_heldout.json"
SIDE_PX = 256

EVENING = Scene("dusk", "clear", "sea", False, "sun", "left", False, (Thing("boat", "red"),), "right", 5)


def test_the_same_scene_is_drawn_the_same_at_every_size_asked_for() -> None:
    first, second = draw(EVENING, 192, 128), draw(EVENING, 192, 128)

    assert first.size == (192, 128)
    assert first.tobytes() == second.tobytes()


def test_the_same_seed_gives_the_same_scene_and_the_same_caption() -> None:
    def lot(seed: int) -> tuple[Scene, str]:
        rng = random.Random(seed)
        scene = random_scene(rng)
        return scene, captioned(scene, rng)[0]

    assert lot(3) == lot(3)
    assert lot(3) != lot(4)


def test_training_never_sees_a_held_out_combination() -> None:
    rng = random.Random(0)

    assert not any(held_out(training_scene(rng)) for _ in range(500))


def test_captions_claim_only_what_the_scene_shows() -> None:
    rng = random.Random(1)
    for _ in range(300):
        scene = random_scene(rng)
        claims = choose_claims(scene, rng)
        assert claims.time in (None, scene.time)
        assert claims.light in (None, scene.light)
        assert {claim.kind for claim in claims.things} <= {thing.kind for thing in scene.things}


def test_one_caption_in_ten_is_empty_and_claims_nothing() -> None:
    rng = random.Random(2)
    empty = [claims for text, claims in (captioned(EVENING, rng) for _ in range(1000)) if not text]

    assert 70 < len(empty) < 130
    assert set(empty) == {Claims()}


def test_a_phrase_names_count_colour_and_kind() -> None:
    claims = Claims(things=(ThingClaim("house", "blue", 2),))
    texts = {plain_words(claims, random.Random(seed)) for seed in range(50)}

    assert "two blue houses" in texts


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


def test_latents_hold_the_mean_colours_of_their_blocks() -> None:
    picture = np.asarray(draw(EVENING, SIDE_PX, SIDE_PX))
    latents = block_latents(picture[None])
    means = picture.reshape(32, 8, 32, 8, 3).mean(axis=(1, 3))

    assert latents.shape == (1, 4, 32, 32)
    assert 0.3 * RAW_SPREAD < latents.std() < 2 * RAW_SPREAD
    assert np.abs(colours(latents[0]).astype(float) - means).max() <= 1.01


def test_the_tokenizer_joins_the_most_frequent_pairs_and_knows_every_byte() -> None:
    from collections import Counter

    assert learn_merges(Counter({"sea": 10, "see": 5}), 2) == [("s", "e"), ("se", "a</w>")]
    assert len(set(byte_letters())) == 256
