"""Ten jobs in ten styles against ten jobs in one, mixed and merged, and against diffusers' two ways."""

import os
import shutil
import tempfile
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.children import Child
from benchmarks.memory import MIB, pss_bytes, tree_bytes
from benchmarks.random_styles import write_styles
from benchmarks.results import Bar, Plot, Section, Series, Table
from benchmarks.sections.against_diffusers import fastest_setting
from benchmarks.served import Served, Work, served
from benchmarks.timing import interleaved, ratios, spread
from orchestrator.job import Job
from orchestrator.plan import Plan
from orchestrator.style_ways import StyleMode

COUNT = 10
FOR_MEMORY = 40
MIXED_BAR, MEMORY_BAR = 0.9, 1.2
LABEL_WIDTH = 12
NONE, ONE, TEN, MERGED = (
    "no style",
    "ten jobs, one style, mixed",
    "ten jobs, ten styles, mixed",
    "ten jobs, ten styles, merged",
)
ADAPTERS, RELOADED = "diffusers, set_adapters a job", "diffusers, load and unload a job"


def run(bench: Bench) -> Section:
    """All ways in turns, on a copy of the repository: merged models are written into it."""
    with tempfile.TemporaryDirectory(prefix="remarque-styles-") as folder:
        repository, files = Path(folder, "models"), Path(folder, "styles")
        shutil.copytree(bench.repository, repository, copy_function=_link)
        with served(repository) as server, bench.diffusers() as child:
            if not server.checkpoint.style_layout.size:
                raise SystemExit("this repository's UNet takes no style; build it with --style-rank 8")
            styles = write_styles(files, server.checkpoint, FOR_MEMORY)
            first, memory = _first_uses(bench, server, styles), _memory(server, styles)
            loads = _merged_loads(bench, server, styles[:COUNT])
            setting, _ = fastest_setting(replace(bench, compile_rival=False), child)
            child.ask(do="load", checkpoint=str(bench.checkpoint), setting=setting)
            child.ask(do="styles", paths=[str(path) for path in styles[:COUNT]])
            server.settle(bench.work, bench.settling_s, counts=(COUNT,))
            ways = _ours(bench, server, styles) | {ADAPTERS: partial(_adapters, child, bench.work)}
            seconds = interleaved(ways, bench.rounds)
            # Loading and unloading forgets the adapters that the other way needs, so it has its rounds after them.
            reload_each = partial(_reloaded, child, bench.work, styles[:COUNT])
            seconds[RELOADED] = [reload_each() for _ in range(bench.rounds)]
    return _section(bench, seconds, {**first, **memory, **loads}, setting)


def _link(source: str, target: str) -> None:
    """The same file under another name, or a copy where the two lie on different disks."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _ours(bench: Bench, server: Served, styles: list[Path]) -> dict[str, Callable[[], float]]:
    jobs = bench.work.jobs(COUNT)

    def plans(pick: Callable[[int], Path | None], mode: StyleMode) -> list[Plan]:
        asked = [bench.work.job(job.prompt, job.seed or 0, style=pick(index)) for index, job in enumerate(jobs)]
        return server.plans(asked, mode)

    return {
        NONE: partial(_together, server, plans(lambda index: None, "auto")),
        ONE: partial(_together, server, plans(lambda index: styles[0], "mixed")),
        TEN: partial(_together, server, plans(lambda index: styles[index], "mixed")),
        MERGED: partial(_together, server, plans(lambda index: styles[index], "merged")),
    }


def _together(server: Served, plans: list[Plan]) -> float:
    return max(lap.latency_s for lap in server.together(plans))


def _asked(work: Work) -> tuple[list[str], list[int], dict[str, float]]:
    jobs: list[Job] = work.jobs(COUNT)
    options = {
        "width_px": work.width_px,
        "height_px": work.height_px,
        "steps": work.steps,
        "guidance_scale": work.guidance_scale,
    }
    return [job.prompt for job in jobs], [job.seed or 0 for job in jobs], options


def _adapters(child: Child, work: Work) -> float:
    prompts, seeds, options = _asked(work)
    done: list[float] = child.ask(do="styled", prompts=prompts, seeds=seeds, adapters=list(range(COUNT)), **options)
    return max(done)


def _reloaded(child: Child, work: Work, styles: list[Path]) -> float:
    prompts, seeds, options = _asked(work)
    paths = [str(path) for path in styles]
    done: list[float] = child.ask(do="restyled", prompts=prompts, seeds=seeds, paths=paths, **options)
    return max(done)


def _first_uses(bench: Bench, server: Served, styles: list[Path]) -> dict[str, float]:
    """What reading and checking a style that was never seen takes, beside one step of the UNet."""
    server.paint(server.plans(bench.work.jobs(1))[0])
    lap = server.paint(server.plans(bench.work.jobs(1, 1))[0])
    steps = [later - earlier for earlier, later in zip(lap.steps_s, lap.steps_s[1:], strict=False)]
    jobs = [bench.work.job("a boat", index, style=path) for index, path in enumerate(styles[:COUNT])]
    plain, taken = bench.work.jobs(1), []
    begun_s = time.perf_counter()
    server.plans(plain)
    plan_s = time.perf_counter() - begun_s
    for job in jobs:
        begun_s = time.perf_counter()
        server.plans([job], "mixed")
        taken.append(time.perf_counter() - begun_s - plan_s)
    return {"first use of a mixed style, s": spread(taken).median, "one step of one job, s": spread(steps).median}


def _memory(server: Served, styles: list[Path]) -> dict[str, float]:
    """Growth of this process by styles that were not read before, by the size of their files."""
    fresh = styles[COUNT:]
    before = pss_bytes(os.getpid())
    for path in fresh:
        server.shelf.get(str(path))
    grown = pss_bytes(os.getpid()) - before
    return {
        "a style's file, MiB": fresh[0].stat().st_size / MIB,
        "memory per mixed style, MiB": grown / len(fresh) / MIB,
    }


def _merged_loads(bench: Bench, server: Served, styles: list[Path]) -> dict[str, float]:
    """Merging, loading and using each style for the first time; what Triton grew by."""
    assert server.triton.server_pid is not None
    before = tree_bytes(server.triton.server_pid)
    taken = []
    for index, path in enumerate(styles):
        job = bench.work.job("a boat", index, 1, path)
        begun_s = time.perf_counter()
        server.paint(server.plans([job], "merged")[0])
        taken.append(time.perf_counter() - begun_s)
    grown = tree_bytes(server.triton.server_pid) - before
    return {
        "first use of a merged style (merge, load, one step, decode), s": spread(taken).median,
        "memory per merged style in Triton, MiB": grown / len(styles) / MIB,
    }


def _section(bench: Bench, seconds: dict[str, list[float]], costs: dict[str, float], setting: str) -> Section:
    order = (NONE, ONE, TEN, MERGED, ADAPTERS, RELOADED)
    per_minute = {name: [60 * COUNT / each for each in seconds[name]] for name in order}
    against = {name: spread(ratios(per_minute[name], per_minute[ONE])) for name in order}
    rivals = [max(pair) for pair in zip(per_minute[ADAPTERS], per_minute[RELOADED], strict=True)]
    by_rival = spread(ratios(per_minute[TEN], rivals))
    rows = [(name, spread(per_minute[name]), against[name]) for name in order]
    files = costs["a style's file, MiB"]
    bars = [
        Bar("ten styles by one style, mixed", "at least", MIXED_BAR, against[TEN].median),
        Bar("ten styles, mixed, by diffusers' better way", "at least", 1.0, by_rival.median),
        Bar("memory of a mixed style by its file", "at most", MEMORY_BAR, costs["memory per mixed style, MiB"] / files),
        Bar(
            "first use of a mixed style by one step", "at most", 1.0,
            costs["first use of a mixed style, s"] / costs["one step of one job, s"],
        ),
    ]  # fmt: skip
    text = (
        f"Ten jobs asked for at once, {bench.work.width_px}x{bench.work.height_px} px, {bench.work.steps} steps. "
        f"Styles are random factors of rank 8 in every attention projection. diffusers runs one by one, in its fastest "
        f"setting here ({setting}); its ten adapters are loaded before the clock starts. Merged models are, too."
    )
    found = [spread(per_minute[name]) for name in order]
    column = Series("pictures a minute", list(range(len(order))), [one.median for one in found],
                    [one.low for one in found], [one.high for one in found])  # fmt: skip
    names = [textwrap.fill(name, LABEL_WIDTH) for name in order]
    return Section(
        "styles",
        "Styles",
        text,
        tables=(
            Table(("ten jobs at once", "pictures a minute", "by one style, mixed"), rows),
            Table(("what it costs", ""), list(costs.items())),
        ),
        bars=bars,
        plots=[Plot("styles", "Ten jobs at once: pictures a minute", "", "pictures a minute", [column], columns=names)],
        figures={"seconds": seconds, "costs": costs},
    )
