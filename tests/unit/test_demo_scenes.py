"""The demo's scenes, captions and latents; nothing here needs torch."""

from __future__ import annotations

import random

import numpy as np

from demo.captions import Claims, ThingClaim, captioned, choose_claims, plain_words
from demo.latents import RAW_SPREAD, block_latents, colours
from demo.painting import draw, places
from demo.scenes import Scene, Thing, held_out, random_scene, training_scene, usual
from demo.train_tokenizer import byte_letters, learn_merges

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


def test_places_that_a_caption_leaves_open_are_the_usual_ones() -> None:
    rng = random.Random(4)
    told = 0
    for _ in range(600):
        scene = training_scene(rng)
        text, claims = captioned(scene, rng)
        if scene.side != usual(scene).side:
            assert all(claim.side for claim in claims.things if claim.count == 1), text
            told += bool(claims.things)
        if claims.light and scene.light_side != usual(scene).light_side:
            assert claims.light_side == scene.light_side, text

    assert told > 60


def test_of_two_kinds_the_first_of_the_list_stands_left_by_itself() -> None:
    for things in ((Thing("tree", "red"), Thing("boat", "blue")), (Thing("boat", "blue"), Thing("balloon", "red", 2))):
        scene = usual(Scene("day", "clear", "sea", False, "none", "left", False, things, "centre", 5))
        at = {thing.kind: across for thing, across, _ in reversed(places(scene))}
        assert at["boat"] < 0.5
    alone = usual(Scene("day", "clear", "sea", False, "none", "left", False, (Thing("boat", "blue"),), "left", 5))
    assert [across for _, across, _ in places(alone)] == [0.5]


def test_one_caption_in_ten_is_empty_and_claims_nothing() -> None:
    rng = random.Random(2)
    empty = [claims for text, claims in (captioned(EVENING, rng) for _ in range(1000)) if not text]

    assert 70 < len(empty) < 130
    assert set(empty) == {Claims()}


def test_a_phrase_names_count_colour_and_kind() -> None:
    claims = Claims(things=(ThingClaim("house", "blue", 2),))
    texts = {plain_words(claims, random.Random(seed)) for seed in range(50)}

    assert "two blue houses" in texts


def test_latents_hold_the_mean_colours_of_their_blocks() -> None:
    picture = np.asarray(draw(EVENING, 256, 256))
    latents = block_latents(picture[None])
    means = picture.reshape(32, 8, 32, 8, 3).mean(axis=(1, 3))

    assert latents.shape == (1, 4, 32, 32)
    assert 0.3 * RAW_SPREAD < latents.std() < 2 * RAW_SPREAD
    assert np.abs(colours(latents[0]).astype(float) - means).max() <= 1.01


def test_the_tokenizer_joins_the_most_frequent_pairs_and_knows_every_byte() -> None:
    from collections import Counter

    assert learn_merges(Counter({"sea": 10, "see": 5}), 2) == [("s", "e"), ("se", "a</w>")]
    assert len(set(byte_letters())) == 256
