"""Pictures show what their prompts say: a hundred prompts that no training scene was allowed to match.

Each picture is scored against the claims of its prompt (which time, weather and ground, which things in which colour),
and against another prompt's. A contact sheet for the eye is written beside the test's other files.

The aim is 80 % of the claims and at most 40 % of another prompt's. Weights of fifty training minutes ago reached 73.6 and
27.1 %; on forty of the prompts those of now keep 1.5 points more than they did (docs/decisions.md says what is missing).
The test holds 70 % and prints the figure.
"""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo.score import claims_from_json, fraction, has_light, has_thing, score
from orchestrator.job import Job
from orchestrator.pipeline import Pipeline

pytestmark = pytest.mark.slow

HELD_OUT = json.loads((Path(__file__).parents[2] / "demo" / "prompts_heldout.json").read_text())
PipelineOn = Callable[[str], Pipeline]
STEPS = 20
AIM = 0.80
REACHED = 0.70  # what the weights before these reached, less what another CPU's bfloat16 may cost


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


def test_a_hundred_held_out_prompts_are_followed_and_shuffled_ones_are_not(
    paint: Callable[[Sequence[Job]], list[Image.Image]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    claims = [claims_from_json(entry["claims"]) for entry in HELD_OUT]
    pictures = paint([job(entry["prompt"], entry["seed"]) for entry in HELD_OUT])
    contact_sheet(pictures, tmp_path / "held_out.png")
    others = claims[37:] + claims[:37]
    kept = float(np.mean([fraction(score(p, c)) for p, c in zip(pictures, claims, strict=True)]))
    shuffled = float(np.mean([fraction(score(p, c)) for p, c in zip(pictures, others, strict=True)]))
    with capsys.disabled():
        print(f"\n100 held-out prompts: {kept:.1%} of claims kept (aim {AIM:.0%}), {shuffled:.1%} of another's")
    assert len(pictures) == 100
    assert kept >= REACHED
    assert shuffled <= 0.40


def test_the_same_seed_with_another_prompt_is_another_scene(
    paint: Callable[[Sequence[Job]], list[Image.Image]],
) -> None:
    boat, house = paint([job("a red boat on the sea at dusk", 3), job("a blue house in the snow at night", 3)])
    assert has_thing(boat, "boat", "red")
    assert has_thing(house, "house", "blue")
    assert not has_thing(boat, "house", "blue")


def test_guidance_makes_pictures_follow_their_prompts(
    paint: Callable[[Sequence[Job]], list[Image.Image]],
) -> None:
    entries = random.Random(1).sample(HELD_OUT, 10)

    def kept(guidance: float) -> float:
        pictures = paint([job(entry["prompt"], entry["seed"], guidance=guidance) for entry in entries])
        scores = [fraction(score(p, claims_from_json(e["claims"]))) for p, e in zip(pictures, entries, strict=True)]
        return float(np.mean(scores))

    assert kept(7.5) > kept(1.0) + 0.05


def test_a_negative_prompt_removes_what_it_names(
    paint: Callable[[Sequence[Job]], list[Image.Image]],
) -> None:
    seeds = range(8)
    with_sun = paint([job("hills, day, house, sun", seed) for seed in seeds])
    without = paint([job("hills, day, house", seed, negative="sun") for seed in seeds])
    shown, left = (sum(has_light(picture, "sun") for picture in pictures) for pictures in (with_sun, without))
    assert shown >= 5
    assert left <= shown - 3
