"""Pictures show what their prompts say: a hundred prompts that no training scene was allowed to match.

Each picture is scored against the claims of its prompt (which time, weather and ground, which things in which colour),
and against another prompt's. A contact sheet for the eye is written beside the test's other files.

The bar is 80 % of the claims and at most 40 % of another prompt's; 85.2 and 25.9 % were reached (demo/README.md). The test
prints the figures.
"""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo.captions import Claims
from demo.score import claims_from_json, fraction, has_light, has_thing, score
from orchestrator.job import Job

pytestmark = pytest.mark.slow

HELD_OUT = json.loads((Path(__file__).parents[2] / "demo" / "prompts_heldout.json").read_text())
CLAIMS = [claims_from_json(entry["claims"]) for entry in HELD_OUT]
STEPS = 20
LEAST_KEPT, MOST_OF_ANOTHERS = 0.80, 0.40


def job(prompt: str, seed: int, negative: str = "", guidance: float = 7.5) -> Job:
    return Job(
        generation_id=1,
        task_id="t",
        prompt=prompt,
        negative_prompt=negative,
        seed=seed,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
    )


def contact_sheet(pictures: Sequence[Image.Image], path: Path) -> None:
    side, columns = 160, 10
    sheet = Image.new("RGB", (columns * side, -(-len(pictures) // columns) * side))
    for index, picture in enumerate(pictures):
        sheet.paste(
            picture.resize((side, side), Image.Resampling.BOX), (index % columns * side, index // columns * side)
        )
    sheet.save(path)


@pytest.fixture(scope="module")
def held_out(paint: Callable[[Sequence[Job]], list[Image.Image]]) -> list[Image.Image]:
    """A picture of every held-out prompt, in their order."""
    return paint([job(entry["prompt"], entry["seed"]) for entry in HELD_OUT])


def kept_on(pictures: Sequence[Image.Image], claims: Sequence[Claims]) -> float:
    """Share of the claims that the pictures keep, each picture its own claims."""
    return float(np.mean([fraction(score(p, c)) for p, c in zip(pictures, claims, strict=True)]))


def test_a_hundred_held_out_prompts_are_followed_and_shuffled_ones_are_not(
    held_out: list[Image.Image], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contact_sheet(held_out, tmp_path / "held_out.png")
    kept, shuffled = kept_on(held_out, CLAIMS), kept_on(held_out, CLAIMS[37:] + CLAIMS[:37])
    with capsys.disabled():
        print(f"\n100 held-out prompts: {kept:.1%} of claims kept, {shuffled:.1%} of another's")
    assert len(held_out) == 100
    assert kept >= LEAST_KEPT
    assert shuffled <= MOST_OF_ANOTHERS


def test_the_same_seed_with_another_prompt_is_another_scene(
    paint: Callable[[Sequence[Job]], list[Image.Image]],
) -> None:
    boat, house = paint([job("a red boat on the sea at dusk", 3), job("a blue house in the snow at night", 3)])
    assert has_thing(boat, "boat", "red")
    assert has_thing(house, "house", "blue")
    assert not has_thing(boat, "house", "blue")


def test_guidance_makes_pictures_follow_their_prompts(
    paint: Callable[[Sequence[Job]], list[Image.Image]], held_out: list[Image.Image]
) -> None:
    chosen = random.Random(1).sample(range(len(HELD_OUT)), 10)
    unguided = paint([job(HELD_OUT[i]["prompt"], HELD_OUT[i]["seed"], guidance=1.0) for i in chosen])
    claims = [CLAIMS[i] for i in chosen]

    assert kept_on([held_out[i] for i in chosen], claims) > kept_on(unguided, claims) + 0.05


def test_a_negative_prompt_removes_what_it_names(
    paint: Callable[[Sequence[Job]], list[Image.Image]],
) -> None:
    seeds = range(8)
    with_sun = paint([job("hills, day, house, sun", seed) for seed in seeds])
    without = paint([job("hills, day, house", seed, negative="sun") for seed in seeds])
    shown, left = (sum(has_light(picture, "sun") for picture in pictures) for pictures in (with_sun, without))
    assert shown >= 5
    assert left <= shown - 3
