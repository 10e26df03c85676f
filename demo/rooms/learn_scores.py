"""Learns what the five styles look like in drawn rooms, and measures how often the scores of staged pictures are wrong.

    python -m demo.rooms.learn_scores --learn                 # writes style_scores.json, for STAGING_STYLE_SCORES
    python -m demo.rooms.learn_scores --measure --count 20    # share of drawn pairs that pass, by what was done to them

Linear discriminants (Fisher, 1936; shrunk covariance) over the features of `orchestrator.staging.scores.style`. They
belong to these drawings and to a model that was trained on them, not to the world.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import cast

import numpy as np

from demo.rooms.damages import SOUND, Pair, pairs_of
from demo.rooms.rooms import HELD_OUT_FROM
from orchestrator.imaging.opencv import Shapes
from orchestrator.staging.floor import find_floor
from orchestrator.staging.request import STAGING_STYLES, StagingStyle
from orchestrator.staging.scores.scene import Sight, scene_of
from orchestrator.staging.scores.style import Numbers, StyleScores, features, load_styles
from orchestrator.staging.scores.verdict import Judge, Verdict

LEARNED = Path(__file__).parent / "style_scores.json"
SHRINKAGE = 0.15
"""Share of the features' own variances in their covariance: generated furniture is never quite like drawn one."""


def learn(first: int, count: int) -> dict[str, list[object]]:
    """Discriminants from so many drawn rooms, each sharp and softened."""
    seen: dict[str, list[Numbers]] = {style: [] for style in STAGING_STYLES}
    for number in range(first, first + count):
        pairs = pairs_of(number, names=SOUND)
        for pair in pairs.values():
            numbers = features(scene_of(pair.before, pair.after, pair.mask))
            if numbers is not None:
                seen[pair.room.style].append(numbers)
    means = {style: np.mean(rows, axis=0) for style, rows in seen.items()}
    rest = np.concatenate([np.array(rows) - means[style] for style, rows in seen.items()])
    covariance = rest.T @ rest / len(rest)
    own = np.diag(np.diag(covariance)) + 1e-6 * np.eye(len(covariance))
    inverse = np.linalg.inv((1 - SHRINKAGE) * covariance + SHRINKAGE * own)
    weights = {style: inverse @ mean for style, mean in means.items()}
    return {
        "styles": list(weights),
        "weights": [[float(f"{number:.5g}") for number in row] for row in weights.values()],
        "offsets": [float(f"{-0.5 * means[style] @ row:.6g}") for style, row in weights.items()],
    }


def verdict_on_pair(pair: Pair, styles: StyleScores | None, depth: bool) -> Verdict:
    """As the gate judges; with ``depth`` the drawing's own depths stand in for a network's."""
    shapes = Shapes()
    told = iter(pair.depths)
    sight = Sight(lambda picture: next(told), lambda inverse: find_floor(inverse, shapes)) if depth else None
    return Judge(sight, styles).verdict(pair.before, pair.after, pair.mask, cast("StagingStyle", pair.room.style))


def measure(first: int, count: int, styles: StyleScores | None, depth: bool) -> None:
    """Prints a line for each way to break a picture: how many pass, and which scores stop the others."""
    passed: Counter[str] = Counter()
    stopped: dict[str, Counter[str]] = {}
    for number in range(first, first + count):
        for name, pair in pairs_of(number).items():
            verdict = verdict_on_pair(pair, styles, depth)
            passed[name] += verdict.passed
            stopped.setdefault(name, Counter()).update(verdict.reasons.keys())
    for name, reasons in stopped.items():
        said = ", ".join(f"{reason} {times}" for reason, times in reasons.most_common())
        print(f"{'sound' if name in SOUND else 'broken'}  {name:<20} {passed[name]:>3} of {count} pass   {said}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learn", action="store_true", help="learn anew and write style_scores.json")
    parser.add_argument("--measure", action="store_true", help="judge held-out drawn pairs")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--without-depth", action="store_true", help="judge as where no depth network is built")
    args = parser.parse_args()
    if args.learn:
        LEARNED.write_text(json.dumps(learn(0, args.count)) + "\n", encoding="utf-8")
    if args.measure:
        styles = load_styles(LEARNED) if LEARNED.exists() else None
        measure(HELD_OUT_FROM, args.count, styles, not args.without_depth)


if __name__ == "__main__":
    main()
