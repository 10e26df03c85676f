"""Everything on one card, in one command, without a network.

    benchmarks/gpu/bundle.sh wheels            # where there is a network: the wheels to bring along
    benchmarks/gpu/run.sh wheels               # on the GPU machine: SD 1.5 and SDXL, random weights of full size
    python -m benchmarks.gpu.run --shapes demo --trial    # on a CPU: the same path on the demo checkpoint

Starts the Triton of the wheel with our repository, its graphs run by torch on the card (there is no TensorRT in the
wheel), and writes benchmarks/results/gpu-CARD-DATE.{md,json} and plots.
"""

import argparse
import datetime
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import plots
from benchmarks.bench import ROOT, Bench
from benchmarks.gpu import measure
from benchmarks.gpu.environment import bring_stub
from benchmarks.gpu.floor import device_name
from benchmarks.machine import describe
from benchmarks.random_styles import write_styles
from benchmarks.results import Section, write
from benchmarks.served import Work, served
from local.environment import state_folder

SIZES_PX = {"sd15": 512, "sdxl": 1024, "tiny": 256, "tiny-sdxl": 256, "demo": 512}
MOST_ROWS = 20
CPU_RUNTIME = "onnxruntime-f32"


def main() -> int:
    """Command line."""
    options = _options()
    state = state_folder()
    bring_stub(state, options.wheels)
    machine = describe() | {"device": device_name()}
    name = f"gpu-{device_name()}-{datetime.date.today():%Y-%m-%d}"
    sections: list[Section] = []
    for shape in options.shapes:
        print(f"{shape} ...", flush=True)
        checkpoint, repository = prepared(state / "gpu", shape)
        for section in _measured(options, _bench(options, shape, checkpoint, repository)):
            sections.append(replace(section, name=f"{shape}-{section.name}", title=f"{shape}: {section.title}"))
            drawn = [replace(plot, name=f"{shape}-{plot.name}") for plot in section.plots]
            sections[-1] = replace(sections[-1], plots=drawn)
            plots.draw(drawn, options.out, name)
            write(options.out, name, machine, sections)
            print(f"  {section.title}", flush=True)
    print((options.out / f"{name}.md").read_text("utf-8"))
    return 0


def prepared(folder: Path, shape: str) -> tuple[Path, Path]:
    """A checkpoint of random weights and its repository, built once; batches as a card takes them."""
    checkpoint = ROOT / "demo" / "checkpoint" if shape == "demo" else folder / shape / "checkpoint"
    repository = folder / shape / "models"
    if not checkpoint.exists():
        _python("export/random_checkpoint.py", "--shape", shape, "--out", str(checkpoint))
    if not (repository / "remarque.json").exists():
        _python(
            "export/build_engines.py", "--checkpoint", str(checkpoint), "--runtime", "onnx", "--out", str(repository)
        )
        for config in repository.glob("unet/config.pbtxt"):
            config.write_text(re.sub(r"max_batch_size: \d+", f"max_batch_size: {MOST_ROWS}", config.read_text("utf-8")))
    return checkpoint, repository


def _python(script: str, *arguments: str) -> None:
    subprocess.run([sys.executable, script, *arguments], cwd=ROOT, check=True, env=os.environ)


def _bench(options: argparse.Namespace, shape: str, checkpoint: Path, repository: Path) -> Bench:
    size = 256 if options.trial else SIZES_PX[shape]
    work = Work(width_px=size, height_px=size, steps=3 if options.trial else options.steps)
    return Bench(repository=repository, checkpoint=checkpoint, work=work, scale=0.05 if options.trial else 1.0)


def _measured(options: argparse.Namespace, bench: Bench) -> Iterator[Section]:
    """Every question in turn. The reference picture comes first: two servers would not fit every host."""
    reference = None if options.no_reference else _reference(bench)
    with ExitStack() as ending:
        server = ending.enter_context(served(bench.repository, runtime=measure.RUNTIME))
        styles = write_styles(bench.state / "gpu" / "styles", server.checkpoint, 8)
        with bench.engine() as engine:
            section, steps = measure.steps(bench, server, engine)
        yield section
        yield measure.jobs(bench, server, steps)
        if server.checkpoint.style_layout.size:
            yield measure.mixed(bench, server, styles)
        if reference is not None:
            yield measure.same_picture(server, reference, bench)
        if options.soak:
            yield measure.soak(bench, server, styles, options.soak)
    with bench.diffusers() as child:
        # Compiling takes minutes, which a trial is not worth.
        settings = child.ask(do="settings")
        yield measure.rival(bench, child, settings[:1] if options.trial else settings)


def _reference(bench: Bench) -> NDArray[np.uint8] | None:
    """The first job's picture in fp32 on the CPU; None where the stub has no ONNX Runtime."""
    stub = os.environ["REMARQUE_STUB"]
    if subprocess.run([f"{stub}/bin/python3", "-c", "import onnxruntime"], check=False, capture_output=True).returncode:
        return None
    with served(bench.repository, runtime=CPU_RUNTIME) as server:
        return server.paint(server.plans(bench.work.jobs(1))[0]).picture


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, help="where pip finds what is missing; the network where not given")
    parser.add_argument("--shapes", nargs="+", choices=list(SIZES_PX), default=["sd15", "sdxl"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--soak", type=float, default=0.0, metavar="SECONDS", help="mixed styles and sizes for so long")
    parser.add_argument("--no-reference", action="store_true", help="leave out the picture made on the CPU")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--trial", action="store_true", help="256x256 px, three steps: to see that it runs")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
