"""The server against ``diffusers.StableDiffusionPipeline`` in the best of its settings on this machine."""

from collections.abc import Callable
from functools import partial

from benchmarks.bench import Bench
from benchmarks.children import Child, ChildError
from benchmarks.results import Bar, Plot, Section, Series, Table
from benchmarks.served import Served, Work, served
from benchmarks.timing import Spread, interleaved, percentile, ratios, spread

OURS, ONE_BY_ONE, BATCHED = "server", "diffusers, one by one", "diffusers, its own batch"
BAR_ALONE, BAR_TOGETHER = 0.95, 1.0
Run = list[float]
"""Seconds from the requests' arrival, all at once, to each picture."""


def run(bench: Bench) -> Section:
    """Every contestant makes the same pictures, ``n`` asked for at once; rounds of all of them in turns."""
    counts = bench.concurrency
    with served(bench.repository) as server, bench.diffusers() as child:
        best, settings = fastest_setting(bench, child)
        child.ask(do="load", checkpoint=str(bench.checkpoint), setting=best)
        ways: dict[str, Callable[[], Run]] = {f"{OURS} {n}": partial(_ours, server, bench.work, n) for n in counts}
        most = max(counts)
        # One by one the first of ten is made exactly as one alone: one run tells all counts.
        ways[ONE_BY_ONE] = partial(_theirs, child, bench.work, most, 1)
        ways |= {f"{BATCHED} {n}": partial(_theirs, child, bench.work, n, n) for n in counts if n > 1}
        _warm(server, child, bench, best, ways)
        runs = interleaved(ways, bench.rounds)
    for n in counts:
        runs[f"{ONE_BY_ONE} {n}"] = [laps[:n] for laps in runs[ONE_BY_ONE]]
    runs.setdefault(f"{BATCHED} 1", runs[f"{ONE_BY_ONE} 1"])
    return _section(bench, settings, best, {name: runs[name] for name in _names(counts)})


def _warm(server: Served, child: Child, bench: Bench, best: str, ways: dict[str, Callable[[], Run]]) -> None:
    """Once through everything; compiled code needs that for every batch size, the others do not."""
    if "torch.compile" in best:
        for way in ways.values():
            way()
    _ours(server, bench.work, min(4, max(bench.concurrency)))
    server.settle(bench.work, bench.settling_s)
    _theirs(child, bench.work, 2, 2)


def _names(counts: tuple[int, ...]) -> list[str]:
    return [f"{who} {n}" for n in counts for who in (OURS, ONE_BY_ONE, BATCHED)]


def _ours(server: Served, work: Work, count: int) -> Run:
    return sorted(lap.latency_s for lap in server.together(server.plans(work.jobs(count))))


def _theirs(child: Child, work: Work, count: int, batch: int) -> Run:
    jobs = work.jobs(count)
    answer: Run = child.ask(
        do="pictures",
        prompts=[job.prompt for job in jobs],
        seeds=[job.seed for job in jobs],
        batch=batch,
        width_px=work.width_px,
        height_px=work.height_px,
        steps=work.steps,
        guidance_scale=work.guidance_scale,
    )
    return answer


def fastest_setting(bench: Bench, child: Child) -> tuple[str, dict[str, Spread]]:
    """The best setting, and seconds of one guidance pair through diffusers' UNet in each that works here."""
    times: dict[str, Spread] = {}
    size = {"height": bench.work.height_px, "width": bench.work.width_px}
    for setting in child.ask(do="settings"):
        if "torch.compile" in setting and not bench.compile_rival:
            continue
        try:
            child.ask(do="load", checkpoint=str(bench.checkpoint), setting=setting)
            child.ask(do="unet", rows=2, repeat=1, **size)
            times[setting] = spread(child.ask(do="unet", rows=2, repeat=bench.scaled(8), **size))
        except ChildError:  # torch.compile needs a compiler, which a machine may lack
            continue
    return min(times, key=lambda name: times[name].median), times


def _section(bench: Bench, settings: dict[str, Spread], best: str, runs: dict[str, list[Run]]) -> Section:
    counts, work = bench.concurrency, bench.work
    per_minute = {name: [60 * len(laps) / max(laps) for laps in rounds] for name, rounds in runs.items()}
    rows, bars = [], []
    for n in counts:
        rivals = [max(pair) for pair in zip(*(per_minute[f"{who} {n}"] for who in (ONE_BY_ONE, BATCHED)), strict=True)]
        ratio = spread(ratios(per_minute[f"{OURS} {n}"], rivals))
        target = BAR_ALONE if n == 1 else BAR_TOGETHER
        bars.append(
            Bar(
                f"pictures a minute, {n} at once, against the better of diffusers' ways",
                "at least",
                target,
                ratio.median,
            )
        )
        for who in (OURS, ONE_BY_ONE, BATCHED):
            laps = runs[f"{who} {n}"]
            fifty, ninety_five = (spread([percentile(one, p) for one in laps]) for p in (50, 95))
            shown = ratio if who == OURS else ""
            rows.append((n, who, spread(per_minute[f"{who} {n}"]), fifty, ninety_five, shown))
    text = (
        f"{work.width_px}x{work.height_px} px, {work.steps} steps, guidance {work.guidance_scale:g}; all requests "
        "arrive at once. The server is Triton with the painter that the worker drives; diffusers runs in a process of "
        f"its own in its fastest setting here, {best}. A batch of its own means that all pictures are one call."
    )
    return Section(
        "diffusers",
        "Against diffusers",
        text,
        tables=(
            Table(("diffusers' setting", "guidance pair, s"), list(settings.items())),
            Table(("at once", "who", "pictures a minute", "p50, s", "p95, s", "ratio to diffusers' best"), rows),
        ),
        bars=bars,
        plots=[_plot(counts, per_minute)],
        figures={"laps_s": runs, "unet_pair_s": {name: each.document for name, each in settings.items()}},
    )


def _plot(counts: tuple[int, ...], per_minute: dict[str, list[float]]) -> Plot:
    series = []
    for who in (OURS, ONE_BY_ONE, BATCHED):
        found = [spread(per_minute[f"{who} {n}"]) for n in counts]
        y, low, high = ([getattr(each, name) for each in found] for name in ("median", "low", "high"))
        series.append(Series(who, list(range(len(counts))), y, low, high))
    return Plot(
        "diffusers",
        "Pictures a minute, asked for at once",
        "requests at once",
        "pictures a minute",
        series,
        columns=[str(n) for n in counts],
    )
