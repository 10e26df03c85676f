"""Writes the held-out prompts and their claims: `python -m demo.write_prompts --out demo/prompts_heldout.json`.

Every prompt names an object in a colour, a time of day and a place that no training scene combines
(`scenes.held_out`), so a model that knew its training pictures by heart would fail here.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from demo.captions import Claims, choose_claims, plain_words
from demo.scenes import Scene, Thing, held_out, random_scene
from demo.score import claims_to_json


def tells_enough(claims: Claims, scene: Scene) -> bool:
    """True for prompts that name the held-out combination: time, place and a coloured object."""
    if claims.time is None or claims.ground is None:
        return False
    return any(thing.colour and held_out_thing(Thing(thing.kind, thing.colour), scene) for thing in claims.things)


def held_out_thing(thing: Thing, scene: Scene) -> bool:
    """True when this object alone would keep `scene` out of training."""
    alone = Scene(scene.time, scene.weather, scene.ground, False, "none", "left", False, (thing,), "left", 0)
    return held_out(alone)


def prompts(count: int, seed: int) -> list[dict[str, object]]:
    """So many different prompts, each with the seed of its noise and its claims as JSON."""
    rng = random.Random(seed)
    entries: list[dict[str, object]] = []
    seen: set[str] = set()
    while len(entries) < count:
        scene = random_scene(rng)
        claims = choose_claims(scene, rng)
        text = plain_words(claims, rng)
        if tells_enough(claims, scene) and text not in seen:
            seen.add(text)
            entries.append({"prompt": text, "seed": 1000 + len(entries), "claims": claims_to_json(claims)})
    return entries


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=20261122)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.write_text(json.dumps(prompts(args.count, args.seed), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
