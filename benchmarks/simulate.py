"""Capacity on paper: ``python -m benchmarks.simulate``.

Replays arrivals against nodes with known step curves and prints, for volumes up to ten million pictures a day, how many
nodes keep the promises (queue wait p95 at most 15 s, latency p95 at most 60 s, through the busiest hour), what a
picture costs, and what bursts, style skew, scaling from zero and lost spot nodes do. The same seed gives the same
tables. Curves marked "derived" were computed from floating point operations, on no card.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.results import Section, Table, markdown
from benchmarks.simulation import sizing
from benchmarks.simulation.arrivals import Mix
from benchmarks.simulation.curves import StepCurve, curve_from_bench, read_curves

VOLUMES = (10_000, 100_000, 1_000_000, 10_000_000)
# What publishers ask for: mostly the default of 50 steps.
STEPS = ((20, 0.2), (30, 0.2), (50, 0.6))
# 512x512, 512x1024 or the reverse, and 1024x1024 in two passes: FLOPs of a row by those of 512x512.
SIZES = ((1.0, 0.7), (2.3, 0.3))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", nargs="+", metavar="NAME", help="of curves.json; all of them where none is named")
    parser.add_argument("--bench", type=Path, metavar="JSON", help="add the curve that make bench measured here")
    parser.add_argument("--volumes", type=float, nargs="+", default=VOLUMES, metavar="N", help="pictures a day")
    parser.add_argument("--cases", default="l4", metavar="NAME", help="the curve of the second table")
    parser.add_argument("--nodes", type=int, default=8, help="nodes of the second table")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the Markdown there as well")
    arguments = parser.parse_args()
    curves = _chosen(arguments)
    mix = Mix(steps=STEPS, weights=SIZES)
    sizings = [
        sizing.size(curve, volume, mix, arguments.seed) for volume in arguments.volumes for curve in curves.values()
    ]
    curve = curves.get(arguments.cases) or read_curves()[arguments.cases]
    happened = sizing.cases(curve, arguments.nodes, mix, arguments.seed)
    page = _page(sizing.table(sizings), curve, arguments.nodes, happened, curves)
    print(page)
    if arguments.out is not None:
        arguments.out.write_text(page, "utf-8")
    return 0


def _chosen(arguments: argparse.Namespace) -> dict[str, StepCurve]:
    known = read_curves()
    names = list(known) if arguments.curves is None else arguments.curves
    chosen = {name: known[name] for name in names}
    if arguments.bench is not None:
        chosen["bench"] = curve_from_bench(arguments.bench)
    return chosen


def _page(
    rows: Sequence[Sequence[str | float | int]],
    curve: StepCurve,
    nodes: int,
    happened: list[sizing.Case],
    curves: dict[str, StepCurve],
) -> str:
    shares = ", ".join(f"{share:.0%} of jobs {steps} steps" for steps, share in STEPS)
    sections = [
        Section(
            "sizing",
            "How many nodes",
            f"The fewest nodes that keep queue wait p95 within {sizing.WAIT_P95_S:g} s and latency p95 within "
            f"{sizing.LATENCY_P95_S:g} s through the busiest hour ({1 + sizing.SWING:g} times the day's mean), with at "
            f"most {sizing.MOST_LOAD:.0%} of what they can do with every place taken; they are busy more often, with "
            f"fewer jobs at once. {shares}; {SIZES[1][1]:.0%} of them at twice the area; always on.",
            tables=(Table(sizing.HEADER, rows),),
        ),
        Section(
            "cases",
            f"What happens to {nodes} nodes of {curve.name}",
            f"Arrivals at 70 % of what {nodes} nodes can do; curve {curve.source}: {curve.basis}.",
            tables=(Table(sizing.CASE_HEADER, [case.row(curve.price_per_hour) for case in happened]),),
        ),
        Section(
            "curves",
            "The curves",
            "A derived curve is arithmetic and no measurement; its prices are examples.",
            tables=(
                Table(
                    ("node", "source", "basis", "20 rows, ms a step", "$ an hour"),
                    [(c.name, c.source, c.basis, 1000 * c(20), c.price_per_hour) for c in curves.values()],
                ),
            ),
        ),
    ]
    return markdown("simulation", {}, sections)


if __name__ == "__main__":
    raise SystemExit(main())
