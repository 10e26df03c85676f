"""Batching efficiency: what N concurrent jobs reach of what the engine alone gives at its best batch."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.bench import Bench
from benchmarks.children import Child
from benchmarks.repository import parameter, row_limit
from benchmarks.results import Bar, Plot, Section, Series, Table
from benchmarks.served import Lap, Served, Work, metadata, served
from benchmarks.timing import interleaved, ratios, run_for, spread

JOBS = (1, 2, 4, 10)
STEPS = 12
"""More than elsewhere: the first and the last step of a run are not counted."""
BAR = 0.95
NUMPY_NAMES = {"FP32": "float32", "FP16": "float16", "INT64": "int64"}


def run(bench: Bench) -> Section:
    """The bare engine's rows a second at every batch that jobs can form, and the jobs' own, in turns."""
    work = replace(bench.work, steps=bench.scaled(STEPS, bench.work.steps))
    with served(bench.repository) as server, bench.engine() as engine:
        limit = row_limit(bench.repository, "unet")
        batches = sorted({rows for rows in (2, 4, 6, 8, 12, 16, 20) if rows <= limit} | {min(limit, 2)})
        shapes = shapes_of(bench, server)
        _load(bench, engine)
        ways: dict[str, Callable[[], float]] = {
            f"engine {rows}": partial(_engine, engine, shapes, rows, bench.scaled(4)) for rows in batches
        }
        ways |= {f"jobs {n}": partial(_jobs, server, work, n) for n in JOBS}
        for rows in batches:
            _engine(engine, shapes, rows, 1)
            run_for(bench.settling_s, partial(_engine, engine, shapes, rows, 1))
        _jobs(server, work, 2)
        server.settle(work, bench.settling_s)
        rates = interleaved(ways, bench.rounds)
    return _section(bench, batches, rates)


def shapes_of(bench: Bench, server: Served, model: str = "unet") -> dict[str, Any]:
    """Dims and dtype of every input at the bench's size."""
    latents = [bench.work.height_px // 8, bench.work.width_px // 8]
    shapes = {}
    for entry in metadata(server.triton.http_url, model)["inputs"]:
        dims = entry["shape"][1:]
        filling = iter([77] if entry["name"] == "encoder_hidden_states" else latents)
        filled = [dim if dim > 0 else next(filling) for dim in dims]
        shapes[entry["name"]] = {"dims": filled, "dtype": NUMPY_NAMES[entry["datatype"]]}
    return shapes


def rows_per_s(laps: list[Lap]) -> float:
    """UNet rows a second between the first and the last step that all jobs were in: text and VAE are left out."""
    begun_s, ended_s = max(lap.steps_s[0] for lap in laps), min(lap.steps_s[-1] for lap in laps)
    steps = sum(sum(begun_s < at_s <= ended_s for at_s in lap.steps_s) for lap in laps)
    return 2 * steps / (ended_s - begun_s)


def _jobs(server: Served, work: Work, count: int) -> float:
    return rows_per_s(server.together(server.plans(work.jobs(count))))


def _load(bench: Bench, engine: Child) -> None:
    """The UNet as the repository configures it."""
    graph = bench.repository / "unet" / "1" / parameter(bench.repository, "unet", "graph")
    runtime = parameter(bench.repository, "unet", "runtime", "auto")
    threads = int(parameter(bench.repository, "unet", "threads", "0")) or len(os.sched_getaffinity(0))
    own_shapes = int(parameter(bench.repository, "unet", "own_shapes", "0"))
    outputs = ["out_sample"]
    engine.ask(do="load", graph=str(graph), runtime=runtime, threads=threads, outputs=outputs, own_shapes=own_shapes)


def _engine(engine: Child, shapes: dict[str, Any], rows: int, repeat: int) -> float:
    times: list[float] = engine.ask(do="run", shapes=shapes, rows=rows, repeat=repeat)
    return rows * len(times) / sum(times)


def _section(bench: Bench, batches: list[int], rates: dict[str, list[float]]) -> Section:
    curve = {rows: spread(rates[f"engine {rows}"]) for rows in batches}
    rows, bars, shares = [], [], {}
    for n in JOBS:
        # N jobs have 2N rows under way, so no execution can hold more; the engine may prefer fewer.
        able = [b for b in batches if b <= 2 * n] or batches[:1]
        best = max(able, key=lambda b: curve[b].median)
        share = spread(ratios(rates[f"jobs {n}"], rates[f"engine {best}"]))
        shares[n] = share
        rows.append((n, spread(rates[f"jobs {n}"]), best, curve[best], share))
    bars += [Bar(f"batching efficiency, {n} jobs", "at least", BAR, shares[n].median) for n in JOBS if n > 1]
    engine = Series("engine alone, by rows in a batch", batches, [curve[b].median for b in batches],
                    [curve[b].low for b in batches], [curve[b].high for b in batches], dashed=True)  # fmt: skip
    reached = [spread(rates[f"jobs {n}"]) for n in JOBS]
    jobs = Series("N concurrent jobs, by their 2N rows", [2 * n for n in JOBS], [each.median for each in reached],
                  [each.low for each in reached], [each.high for each in reached])  # fmt: skip
    return Section(
        "batching",
        "Batching efficiency",
        "The engine alone is the same graph in the same runtime without Triton, asked for one batch after the other. "
        "Efficiency is what the jobs reach by what the engine reaches at the best batch that so many jobs could form.",
        tables=(
            Table(("rows in a batch", "engine alone, rows/s"), list(curve.items())),
            Table(("jobs", "rows/s reached", "engine's best batch", "its rows/s", "efficiency"), rows),
        ),
        bars=bars,
        plots=[Plot("batching", "UNet rows a second", "rows at once", "rows a second", [engine, jobs])],
        figures={"rows_per_s": rates},
    )
