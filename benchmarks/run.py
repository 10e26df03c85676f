"""``make bench``: runs sections, one after the other, and writes their table, JSON and plots.

python -m benchmarks.run                           # the minutes' worth that make bench runs
python -m benchmarks.run --suite styles            # make bench-styles
python -m benchmarks.run --sections tail --trial   # one of them, shortened: to see that it works
"""

import argparse
import importlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import plots
from benchmarks.bench import ROOT, Bench
from benchmarks.machine import describe
from benchmarks.results import read, write
from benchmarks.served import Work
from local.environment import state_folder

SUITES = {
    "bench": ("overhead", "batching", "against_diffusers", "admission", "tail", "memory", "startup"),
    "styles": ("styles",),
    "sd15": ("sd15",),
}
RESULTS = ROOT / "benchmarks" / "results"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    arguments = _arguments(argv)
    bench = _bench(arguments)
    names = arguments.sections or SUITES[arguments.suite]
    machine = describe(bench.environment.stub / "bin" / "python3")
    kept = {section.name: section for section in read(arguments.out / f"{arguments.suite}.json")}
    for name in names:
        begun_s = time.monotonic()
        print(f"{name} ...", end=" ", flush=True)
        section = importlib.import_module(f"benchmarks.sections.{name}").run(bench)
        section = replace(section, seconds=round(time.monotonic() - begun_s, 1))
        print(f"{section.seconds:.0f} s", flush=True)
        for bar in section.bars:
            print(f"  {bar.promise}: {bar.reached} ({bar.direction} {bar.target:g})", flush=True)
        kept[section.name] = section
        write(arguments.out, arguments.suite, machine, list(kept.values()))
        plots.draw(section.plots, arguments.out, arguments.suite)
    print(f"written: {arguments.out / arguments.suite}.md, .json and plots")
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=list(SUITES), default="bench")
    parser.add_argument("--sections", nargs="+", metavar="NAME", help=", ".join(n for s in SUITES.values() for n in s))
    parser.add_argument("--repository", type=Path, help="a built model repository; the demo's by default")
    parser.add_argument(
        "--checkpoint", type=Path, default=ROOT / "demo" / "checkpoint", help="the same as diffusers reads it"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--size", type=int, default=512, metavar="PX")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="try diffusers under torch.compile too: minutes more")
    parser.add_argument("--trial", action="store_true", help="small, short and worthless as a figure")
    return parser.parse_args(argv)


def _bench(arguments: argparse.Namespace) -> Bench:
    work = Work(width_px=arguments.size, height_px=arguments.size, steps=arguments.steps)
    bench = Bench(
        repository=arguments.repository or state_folder() / "models",
        checkpoint=arguments.checkpoint,
        work=work,
        rounds=arguments.rounds,
        compile_rival=arguments.compile,
    )
    if arguments.trial:
        small = Work(width_px=256, height_px=256, steps=3)
        bench = replace(bench, work=small, rounds=1, concurrency=(1, 2), scale=0.1)
    return bench


if __name__ == "__main__":
    raise SystemExit(main())
