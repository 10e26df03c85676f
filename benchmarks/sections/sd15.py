"""SD 1.5's full size with random weights: what one guidance pair costs on our path and in each runtime alone."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench import ROOT, Bench
from benchmarks.children import Child
from benchmarks.machine import has_amx
from benchmarks.results import Bar, Plot, Section, Series, Table
from benchmarks.served import Served, metadata, random_inputs, served
from benchmarks.timing import Spread, interleaved, ratios, seconds_of, spread

ROWS, HEIGHT, WIDTH = 2, 64, 64
PATH, OPENVINO, ONNXRUNTIME, TORCH_BF16, TORCH_FP32 = (
    "through Triton (OpenVINO, bf16)", "OpenVINO bf16, alone", "ONNX Runtime fp32, alone",
    "torch bf16, channels-last", "torch fp32",
)  # fmt: skip
BAR_BF16 = 3.3


def run(bench: Bench) -> Section:
    """Two rounds of contestants, since not all fit into memory at once; OpenVINO alone is in both."""
    repository, checkpoint = _prepared(bench)
    graph = str(repository / "unet" / "1" / "model.onnx")
    with ExitStack() as ending:
        server = ending.enter_context(served(repository, models=["unet"]))
        engine = _engine(bench, ending, graph, "auto")
        torch = _torch(bench, ending, checkpoint, "bf16, channels-last")
        shapes = _shapes(server)
        near = _rounds(bench, {PATH: _path(server, ending), OPENVINO: _run(engine, shapes), TORCH_BF16: _unet(torch)})
    with ExitStack() as ending:
        engine = _engine(bench, ending, graph, "auto")
        slow = _engine(bench, ending, graph, "onnxruntime-f32")
        torch = _torch(bench, ending, checkpoint, "fp32")
        ways = {OPENVINO: _run(engine, shapes), ONNXRUNTIME: _run(slow, shapes), TORCH_FP32: _unet(torch)}
        far = _rounds(bench, ways)
    return _section(bench, near, far)


def _prepared(bench: Bench) -> tuple[Path, Path]:
    """The repository named, or one of random weights, built once into the state folder."""
    if "sd15" in str(bench.repository):
        return bench.repository, bench.checkpoint
    checkpoint, repository = bench.state / "sd15" / "checkpoint", bench.state / "sd15" / "models"
    if not (repository / "remarque.json").exists():
        for command in (
            ["export/random_checkpoint.py", "--shape", "sd15", "--out", str(checkpoint)],
            ["export/build_engines.py", "--checkpoint", str(checkpoint), "--runtime", "onnx", "--out", str(repository)],
        ):
            subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    return repository, checkpoint


def _engine(bench: Bench, ending: ExitStack, graph: str, runtime: str) -> Child:
    engine = ending.enter_context(bench.engine())
    threads = len(os.sched_getaffinity(0))
    engine.ask(do="load", graph=graph, runtime=runtime, threads=threads, outputs=["out_sample"])
    return engine


def _torch(bench: Bench, ending: ExitStack, checkpoint: Path, setting: str) -> Child:
    child = ending.enter_context(bench.diffusers())
    child.ask(do="load", checkpoint=str(checkpoint), setting=setting)
    return child


def _shapes(server: Served) -> dict[str, Any]:
    inputs = random_inputs(metadata(server.triton.http_url, "unet"), ROWS, HEIGHT, WIDTH, 77)
    return {name: {"dims": list(array.shape[1:]), "dtype": str(array.dtype)} for name, array in inputs.items()}


def _path(server: Served, ending: ExitStack) -> Callable[[], float]:
    """One step as a job takes it: latents there and back, everything else placed once."""
    inputs = random_inputs(metadata(server.triton.http_url, "unet"), ROWS, HEIGHT, WIDTH, 77)
    sample, timestep = (inputs.pop(name) for name in ("sample", "timestep"))
    network = ending.enter_context(server.models.conditioned("unet", inputs))
    return lambda: seconds_of(lambda: network(sample.astype(np.float32), timestep.astype(np.float32)))


def _run(engine: Child, shapes: dict[str, Any]) -> Callable[[], float]:
    return lambda: float(engine.ask(do="run", shapes=shapes, rows=ROWS, repeat=1)[0])


def _unet(torch: Child) -> Callable[[], float]:
    return lambda: float(torch.ask(do="unet", rows=ROWS, height=8 * HEIGHT, width=8 * WIDTH, repeat=1)[0])


def _rounds(bench: Bench, ways: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    for warm in ways.values():
        warm()
    return interleaved(ways, bench.scaled(2 * bench.rounds, 1))


def _section(bench: Bench, near: dict[str, list[float]], far: dict[str, list[float]]) -> Section:
    faster = spread(ratios(far[ONNXRUNTIME], far[OPENVINO]))
    added_ms = spread([1000 * (a - b) for a, b in zip(near[PATH], near[OPENVINO], strict=True)])
    found: dict[str, Spread] = {name: spread(times) for name, times in {**far, **near}.items()}
    order = [PATH, OPENVINO, TORCH_BF16, ONNXRUNTIME, TORCH_FP32]
    note = "" if has_amx() else "the bar is for a CPU with AMX; this one has none"
    column = Series("seconds", list(range(len(order))), [found[name].median for name in order],
                    [found[name].low for name in order], [found[name].high for name in order])  # fmt: skip
    names = [name.replace(" (", "\n(").replace(", ", ",\n") for name in order]
    return Section(
        "sd15",
        "SD 1.5 at full size",
        "One guidance pair of 64x64 latents (512x512 px), 0.86 G random weights. Two rounds of contestants, since "
        "not all fit into memory at once; each ratio is from contestants of one round.",
        tables=(
            Table(("who", "a guidance pair, s"), [(name, found[name]) for name in order]),
            Table(
                ("ratio", ""),
                [
                    ("ONNX Runtime fp32 by OpenVINO bf16", faster),
                    ("torch bf16 by our path", spread(ratios(near[TORCH_BF16], near[PATH]))),
                    ("torch fp32 by OpenVINO bf16", spread(ratios(far[TORCH_FP32], far[OPENVINO]))),
                    ("our path less OpenVINO alone, ms", added_ms),
                ],
            ),
        ),
        bars=[Bar("OpenVINO bf16 against ONNX Runtime fp32", "at least", BAR_BF16, faster.median, "times", note)],
        plots=[Plot("sd15", "SD 1.5, one guidance pair at 512x512", "", "seconds", [column], columns=names)],
        figures={"with_triton_s": near, "with_fp32_s": far},
    )
