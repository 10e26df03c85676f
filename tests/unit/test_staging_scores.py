"""Each score on a small room with a chest of drawers in it, and on the same room with one thing wrong."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from orchestrator.errors import ConfigError
from orchestrator.staging.floor import Floor
from orchestrator.staging.request import STAGING_STYLES
from orchestrator.staging.scores.lab import chroma, dilated, eroded, lab, smoothed
from orchestrator.staging.scores.limits import LEAST_SCORE, LIMITS
from orchestrator.staging.scores.pieces import pieces_of
from orchestrator.staging.scores.scene import Sight
from orchestrator.staging.scores.style import FEATURES, StyleScores, load_styles
from orchestrator.staging.scores.verdict import NO_DEPTH, NO_STYLES, Judge, Verdict, verdict_on

HEIGHT, WIDTH, EDGE = 128, 192, 64
CHEST = (slice(72, 112), slice(70, 120))
MASK = np.zeros((HEIGHT, WIDTH), np.bool_)
MASK[8:124, 24:168] = True
Rgb = tuple[int, int, int]


def grain(shape: tuple[int, ...], spread: float = 1.0) -> np.ndarray:
    """What no photograph is without."""
    return np.random.default_rng(5).normal(0, spread, shape)


def room() -> np.ndarray:
    """A wall and a floor."""
    picture = np.full((HEIGHT, WIDTH, 3), (212, 206, 196), np.float64)
    picture[EDGE:] = (158, 120, 92)
    return np.clip(picture + grain(picture.shape), 0, 255).astype(np.uint8)


def chest(place: tuple[slice, slice] = CHEST, colour: Rgb = (104, 58, 30), spread: float = 1.0) -> np.ndarray:
    """The room with a chest of drawers."""
    picture = room().astype(np.float64)
    shape = picture[place].shape
    front = np.full(shape, colour, np.float64) + grain(shape, spread)
    front[shape[0] // 2] += 40
    picture[place] = front
    return np.clip(picture, 0, 255).astype(np.uint8)


def judged(staged: np.ndarray, judge: Judge | None = None, mask: np.ndarray = MASK) -> Verdict:
    return (judge or Judge()).verdict(room(), staged, mask, "modern")


def inside(change: Callable[[np.ndarray], np.ndarray], picture: np.ndarray | None = None) -> np.ndarray:
    """A change of everything inside the mask."""
    before = chest() if picture is None else picture
    after = np.clip(change(before.astype(np.float64)), 0, 255).astype(np.uint8)
    return np.where(MASK[..., None], after, before)


def leaking() -> np.ndarray:
    staged = chest()
    staged[2:6, 2:40] = 255
    return staged


def floor_raised() -> np.ndarray:
    staged = room()
    staged[EDGE - 6 : EDGE] = room()[EDGE : EDGE + 6]
    return np.where(MASK[..., None], staged, room())


def specked() -> np.ndarray:
    specks = np.random.default_rng(1).random((HEIGHT // 4, WIDTH // 4)) < 0.12
    where = np.repeat(np.repeat(specks, 4, axis=0), 4, axis=1) & (np.arange(HEIGHT)[:, None] % 4 < 2)
    return np.where((where & MASK)[..., None], np.uint8((60, 40, 30)), room())


def striped() -> np.ndarray:
    return inside(lambda picture: picture + 45.0 * (np.arange(HEIGHT) % 8 < 4)[:, None, None])


def blurred() -> np.ndarray:
    return np.where(MASK[..., None], np.asarray(Image.fromarray(chest()).filter(ImageFilter.GaussianBlur(7))), room())


DAMAGES: dict[str, Callable[[], np.ndarray]] = {
    "outside": leaking,
    "seam": lambda: inside(lambda picture: picture + np.array((24, 12, -10))),
    "lines": floor_raised,
    "furnished": room,
    "open": lambda: inside(lambda picture: 255 - picture),
    "whole": specked,
    "standing": lambda: chest((slice(14, 44), slice(70, 120))),
    "size": lambda: chest((slice(8, 123), slice(40, 150))),
    "noise": lambda: chest(spread=45.0),
    "sharp": blurred,
    "stripes": striped,
    "dead": lambda: np.where(MASK[..., None] & (chest() != room()).any(axis=-1, keepdims=True), np.uint8(90), chest()),
    "vivid": lambda: chest(colour=(255, 0, 230)),
}


def test_a_furnished_room_passes():
    verdict = judged(chest())
    assert (verdict.passed, verdict.reasons) == (True, {})


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_wrong_fails_the_score_that_looks_for_it(name: str):
    verdict = judged(DAMAGES[name]())
    assert name in verdict.reasons, verdict.scores
    assert verdict.scores[name] < LEAST_SCORE
    assert not verdict.passed


def test_every_score_is_from_0_to_1_and_has_a_limit():
    for damage in DAMAGES.values():
        assert all(0 <= score <= 1 and name in LIMITS for name, score in judged(damage()).scores.items())


def test_what_was_not_judged_is_said():
    assert judged(chest()).unjudged == (NO_DEPTH, NO_STYLES)


def test_a_picture_without_any_border_of_the_mask_is_judged():
    assert judged(chest(), mask=np.ones_like(MASK)).scores["outside"] == 1.0


def test_the_score_of_a_measure_is_a_half_halfway_between_bad_and_good():
    assert [LIMITS["noise"].score(measure) for measure in (9.0, 1.5, 0.0)] == [0.0, 0.5, 1.0]


def test_the_reason_tells_the_measure():
    assert verdict_on({"lines": 0.2}).reasons == {"lines": "only 20% of the room's lines go on inside the mask"}


# Depth


def ramp() -> np.ndarray:
    """The inverse depth of a floor below a wall."""
    rows = np.maximum(np.arange(HEIGHT), EDGE)[:, None] - 55.0
    return np.broadcast_to(rows / 70, (HEIGHT, WIDTH)).astype(np.float32)


def sight(after: np.ndarray, floor_from: int = EDGE) -> Sight:
    told = iter([ramp(), after.astype(np.float32)])
    region = np.broadcast_to(np.arange(HEIGHT)[:, None] >= floor_from, (HEIGHT, WIDTH))
    flat = np.full(WIDTH, 55.0)
    floor = Floor(region=region, edge_row=flat, horizon_row=flat, plane=ramp().astype(np.float64), residual=0.0)
    return Sight(lambda picture: next(told), lambda inverse_depth: floor)


def test_depth_in_another_unit_is_the_same_depth():
    verdict = judged(chest(), Judge(sight(3 * ramp() + 5)))
    assert (verdict.scores["depth_outside"], verdict.unjudged) == (1.0, (NO_STYLES,))


def test_depth_that_is_known_is_not_asked_for_again():
    asked = []
    seen = sight(ramp())
    once = Sight(lambda picture: asked.append(picture) or ramp(), seen.floor)
    assert Judge(once).verdict(room(), chest(), MASK, "modern", told=ramp()).scores["depth_outside"] == 1.0
    assert len(asked) == 1


def test_a_room_of_another_depth_fails():
    verdict = judged(chest(), Judge(sight(ramp().T.copy().reshape(HEIGHT, WIDTH))))
    assert {"depth_outside", "depth_border"} <= set(verdict.reasons)


def test_another_depth_behind_furniture_is_furniture():
    after = ramp().copy()
    after[CHEST] += 0.4
    assert judged(chest(), Judge(sight(after))).passed


def test_what_stands_is_told_by_the_floor_that_was_seen():
    assert "standing" in judged(chest(), Judge(sight(ramp(), floor_from=118))).reasons


# Style


def styles(**likeness: float) -> StyleScores:
    offsets = np.array([likeness.get(style, 0.0) for style in STAGING_STYLES])
    return StyleScores(np.zeros((len(STAGING_STYLES), FEATURES)), offsets)


@pytest.mark.parametrize(("likeness", "passed"), [({"modern": 5.0}, True), ({"industrial": 90.0}, False)])
def test_the_style_that_was_asked_for_must_be_likely(likeness: dict[str, float], passed: bool):
    verdict = judged(chest(), Judge(styles=styles(**likeness)))
    assert ("style" not in verdict.reasons, verdict.unjudged) == (passed, (NO_DEPTH,))


def test_the_style_of_no_furniture_is_not_judged():
    assert "style" not in judged(room(), Judge(styles=styles())).scores


def test_style_scores_are_read_as_they_are_written(tmp_path: Path):
    file = tmp_path / "s.json"
    rows = np.arange(len(STAGING_STYLES) * FEATURES).reshape(-1, FEATURES)
    file.write_text(json.dumps({"styles": STAGING_STYLES, "weights": rows.tolist(), "offsets": [0, 1, 2, 3, 4]}))
    assert list(load_styles(file).likeness(np.zeros(FEATURES)).values()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "content",
    ["{", "{}", '{"styles": [], "weights": [], "offsets": []}', '{"styles": 1, "weights": "x", "offsets": 2}'],
)
def test_style_scores_that_are_none_stop_the_start(content: str, tmp_path: Path):
    file = tmp_path / "s.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match="STAGING_STYLE_SCORES"):
        load_styles(file)


# What the scores look through


def test_lab_is_that_of_the_standard():
    colours = lab(np.array([[(255, 255, 255), (255, 0, 0), (0, 0, 0)]], np.uint8))
    assert np.allclose(colours[0], [(100, 0, 0), (53.24, 80.09, 67.20), (0, 0, 0)], atol=0.05)
    assert np.allclose(chroma(colours)[0], [0, 104.55, 0], atol=0.05)


def test_smoothing_is_the_mean_of_the_square_around():
    values = grain((9, 11)).astype(np.float32)
    assert smoothed(values, 2)[4, 5] == pytest.approx(values[2:7, 3:8].mean(), abs=1e-6)


def test_growing_and_shrinking_go_as_far_as_they_say():
    mask = np.zeros((21, 21), np.bool_)
    mask[10, 10] = True
    grown = dilated(mask, 7)
    assert (grown.sum(), eroded(grown, 7).sum(), eroded(~mask, 3).sum()) == (225, 1, 441 - 49)


def test_pieces_hang_together_by_sides_and_corners():
    mask = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 1], [1, 1, 0, 0]], np.bool_)
    found = pieces_of(mask, 2)
    assert [(piece.area_px, piece.top, piece.left, piece.bottom, piece.right) for piece in found] == [
        (3, 0, 3, 3, 4),
        (2, 0, 0, 2, 2),
        (2, 3, 0, 4, 2),
    ]


def test_a_piece_that_joins_two_from_below_is_one():
    mask = np.array([[1, 0, 1], [1, 0, 1], [1, 1, 1]], np.bool_)
    assert [piece.area_px for piece in pieces_of(mask, 1)] == [7]


def test_an_empty_mask_has_no_pieces():
    assert pieces_of(np.zeros((4, 4), np.bool_), 1) == ()
