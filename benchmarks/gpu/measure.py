"""The questions of the GPU run, each answered by one function on a running server."""

import math
import os
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.bench import Bench
from benchmarks.children import Child, ChildError
from benchmarks.gpu.floor import matrix_tflops, tflop_per_row
from benchmarks.memory import MIB, pss_bytes, tree_bytes
from benchmarks.results import Plot, Section, Series, Table
from benchmarks.sections.batching import shapes_of
from benchmarks.served import Served
from benchmarks.timing import number, percentile, spread

RUNTIME = "module:benchmarks.gpu.torch_runtime"
ROWS = (1, 2, 4, 8, 12, 16)
JOBS = (1, 2, 4, 8, 16)
SPARE_MIB = 64.0


@dataclass(frozen=True, slots=True)
class Steps:
    """Seconds of a UNet execution by rows, and the floor's."""

    seconds: dict[int, float]
    floor_s: dict[int, float]


def steps(bench: Bench, server: Served, engine: Child) -> tuple[Section, Steps]:
    """The engine alone at 1 to 16 rows, against the floor."""
    rate, each = matrix_tflops(), tflop_per_row(bench.checkpoint, bench.work.height_px, bench.work.width_px)
    graph = str(bench.repository / "unet" / "1" / "model.onnx")
    engine.ask(do="load", graph=graph, runtime=RUNTIME, threads=len(os.sched_getaffinity(0)), outputs=["out_sample"])
    shapes, seconds = shapes_of(bench, server), {}
    for rows in ROWS:
        engine.ask(do="run", shapes=shapes, rows=rows, repeat=2)
        seconds[rows] = spread(engine.ask(do="run", shapes=shapes, rows=rows, repeat=bench.scaled(20))).median
    floor = {rows: rows * each / rate for rows in ROWS}
    table = [(rows, 1000 * seconds[rows], 1000 * floor[rows], floor[rows] / seconds[rows]) for rows in ROWS]
    lines = [
        Series("measured", ROWS, [1000 * seconds[rows] for rows in ROWS]),
        Series("compute floor", ROWS, [1000 * floor[rows] for rows in ROWS], dashed=True),
    ]
    section = Section(
        "steps",
        "UNet step",
        f"{number(each)} TFLOP a row over {number(rate)} TFLOP/s, what a large matrix product reaches here. The graph "
        "is run as Triton's python backend runs it, without Triton; transfers to and from the card are in it.",
        tables=(Table(("rows", "ms", "floor, ms", "share of the floor's rate"), table),),
        plots=[Plot("steps", "ms per UNet step", "rows", "ms", lines)],
        figures={"seconds": {str(rows): each for rows, each in seconds.items()}, "tflop_per_row": each, "tflops": rate},
    )
    return section, Steps(seconds, floor)


def jobs(bench: Bench, server: Served, engine: Steps) -> Section:
    """Pictures a second and the slowest picture with 1 to 16 jobs at once, and what is not the engine's."""
    rows, rates, share = [], [], 0.0
    for count in JOBS:
        plans = server.plans(bench.work.jobs(bench.scaled(4 * count, count)))
        server.together(plans[:count])
        laps = server.arriving(plans, [0.0] * len(plans), count)
        rate = len(plans) / (max(lap.done_s for lap in laps) - laps[0].asked_s)
        rates.append(rate)
        alone = [lap.done_s - lap.begun_s for lap in laps]
        turns = [later - earlier for lap in laps for earlier, later in zip(lap.steps_s, lap.steps_s[1:], strict=False)]
        if count == 1:
            share = 1 - engine.seconds[2] / spread(turns).median
        rows.append((count, rate, percentile(alone, 50), percentile(alone, 99), 1000 * spread(turns).median))
    text = (
        f"{bench.work.width_px}x{bench.work.height_px} px, {bench.work.steps} steps, guidance. With one job "
        f"{share:.0%} of a step is not the engine's: Triton, the python backend's copies, the client, the sampler."
    )
    return Section(
        "jobs",
        "Concurrent jobs",
        text,
        tables=(Table(("jobs at once", "pictures a second", "p50, s", "p99, s", "a job's step, ms"), rows),),
        plots=[Plot("jobs", "Pictures a second", "jobs at once", "pictures a second", [Series("server", JOBS, rates)])],
        figures={"orchestration_share": share, "pictures_per_s": dict(zip(map(str, JOBS), rates, strict=True))},
    )


def mixed(bench: Bench, server: Served, styles: Sequence[Path]) -> Section:
    """Eight jobs in no style, in one and in eight."""
    asked = bench.work.jobs(8)
    picks: dict[str, list[Path | None]] = {
        "no style": [None] * 8,
        "one style": [styles[0]] * 8,
        "eight styles": list(styles[:8]),
    }
    rates = {}
    for name, pick in picks.items():
        styled = [bench.work.job(job.prompt, job.seed or 0, style=path) for job, path in zip(asked, pick, strict=True)]
        plans = server.plans(styled, "mixed")
        server.together(plans)
        rates[name] = 8 / max(lap.latency_s for lap in server.together(plans))
    rows = [(name, rate, rate / rates["one style"]) for name, rate in rates.items()]
    return Section(
        "mixed", "Mixed styles", "Eight jobs at once, each with a row of style factors of its own.",
        tables=(Table(("eight jobs", "pictures a second", "by one style"), rows),), figures={"pictures_per_s": rates},
    )  # fmt: skip


def rival(bench: Bench, child: Child, settings: Sequence[str]) -> Section:
    """diffusers on the same device, with and without torch.compile, one by one and eight together."""
    rows = []
    for setting in settings:
        work = bench.work
        options = {"width_px": work.width_px, "height_px": work.height_px, "steps": work.steps}
        asked = work.jobs(8)
        try:
            child.ask(do="load", checkpoint=str(bench.checkpoint), setting=setting)
            for batch in (1, 8):
                question: dict[str, Any] = {
                    "prompts": [job.prompt for job in asked], "seeds": [job.seed for job in asked], "batch": batch,
                    "guidance_scale": work.guidance_scale, **options,
                }  # fmt: skip
                short = {**question, "prompts": question["prompts"][:batch], "seeds": question["seeds"][:batch]}
                child.ask(do="pictures", **short)
                rows.append((setting, batch, 8 / max(child.ask(do="pictures", **question))))
        except ChildError as error:
            rows.append((setting, 0, str(error)[:80]))
    return Section(
        "diffusers", "diffusers on the same device", "Eight pictures, in calls of one and of eight.",
        tables=(Table(("setting", "pictures a call", "pictures a second"), rows),), figures={"rows": rows},
    )  # fmt: skip


def same_picture(server: Served, reference: NDArray[np.uint8], bench: Bench) -> Section:
    """The first job's picture against the one that the CPU made of it."""
    found = server.paint(server.plans(bench.work.jobs(1))[0]).picture
    decibel = psnr(found, reference)
    return Section(
        "same", "The same picture as the CPU's", "The reference is ONNX Runtime in fp32 on the CPU; same job and seed.",
        tables=(Table(("PSNR, dB",), [(f"{decibel:.1f}",)]),), figures={"psnr_db": decibel},
    )  # fmt: skip


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Peak signal to noise of two pictures, in dB; 99 for equal ones."""
    error = float(np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2))
    return 99.0 if error == 0 else 10 * math.log10(255**2 / error)


def soak(bench: Bench, server: Served, styles: Sequence[Path], seconds: float) -> Section:
    """Eight jobs at once in random sizes and styles for as long as asked; memory then and at the end."""
    draw, end_s, made, samples = random.Random(1), time.monotonic() + seconds, 0, []
    sizes = (bench.work.width_px, bench.work.width_px // 2 + 128)
    while time.monotonic() < end_s:
        batch = []
        for _ in range(8):
            edge = draw.choice(sizes) // 64 * 64
            work = replace(bench.work, width_px=edge, height_px=draw.choice((edge, bench.work.height_px)))
            batch.append(work.job(f"a boat, {made}", made, style=draw.choice([None, *styles])))
            made += 1
        server.together(server.plans(batch))
        samples.append(
            (made, tree_bytes(server.triton.server_pid or 0) / MIB, pss_bytes(os.getpid()) / MIB, card_mib())
        )
    settled, last = samples[len(samples) // 5], samples[-1]
    flat = all(b - a <= SPARE_MIB for a, b in zip(settled[1:], last[1:], strict=True))
    return Section(
        "soak", "Soak",
        f"{made} pictures in {seconds:g} s, no error; memory {'is flat' if flat else 'GREW'} after the first fifth.",
        tables=(Table(("pictures", "Triton, MiB", "orchestrator, MiB", "card, MiB"), [settled, last]),),
        figures={"samples": samples, "flat": flat},
    )  # fmt: skip


def card_mib() -> float:
    """Memory in use on the card by everything; 0 without one."""
    import torch

    with suppress(RuntimeError):
        if torch.cuda.is_available():
            free, total = torch.cuda.mem_get_info()
            return (total - free) / MIB
    return 0.0
