"""``python -m orchestrator generate``: a prompt, or a job as a publisher writes it, to signed picture files."""

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from PIL import Image

from orchestrator.denoising import Painter
from orchestrator.errors import Cancelled, InvalidInput, StorageError
from orchestrator.finishing import Finishing, Materials
from orchestrator.orders import Order
from orchestrator.pipeline import Finished, PipelineStep, preview
from orchestrator.plan import Plan
from orchestrator.terminal import ProgressBar

# So many pictures at once share Triton's batches; more only wait for each other.
AT_ONCE = 4
PREVIEW_EVERY_STEPS = 3
INTERRUPTED = 130


class Generation:
    """Makes all orders of one command, up to four at once; :meth:`run` is called once."""

    def __init__(self, orders: Sequence[Order], painter: Painter, finishing: Finishing) -> None:
        self._orders = orders
        self._painter = painter
        self._finishing = finishing
        self._stopping = threading.Event()
        self._kept: list[Path] = []
        total_steps = sum(order.plan.total_steps for order in orders)
        self._bar = ProgressBar(sys.stderr, total_steps, sum(_cost(order.plan) for order in orders))

    def run(self) -> int:
        """0 when every picture is written, 130 where Ctrl-C came first; what was kept is said.

        Raises:
            InvalidInput: a picture could not be written where it is to lie; nothing was painted.
            RemarqueError: a picture failed; the others were stopped within a step.
        """
        for order in self._orders:
            for path in filter(None, (order.out, order.rough)):
                _require_writable(path)
        materials = self._finishing.materials(self._orders[0].job)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            try:
                made = [pool.submit(self._make, order, materials) for order in self._orders]
                said = [future.result() for future in as_completed(made)]
            except BaseException as error:
                self._stop(pool)
                self._bar.end()
                sys.stderr.write(f"stopped at step {self._bar.done}; {self._keepsakes()}\n")
                if isinstance(error, KeyboardInterrupt):
                    return INTERRUPTED
                raise
        self._bar.end()
        sys.stdout.write("".join(f"{line}\n" for line in sorted(said)))
        return 0

    def _stop(self, pool: ThreadPoolExecutor) -> None:
        self._stopping.set()
        pool.shutdown(wait=True, cancel_futures=True)

    def _make(self, order: Order, materials: Materials) -> str:
        """One picture, from its plan to its file; the line that says so."""
        begun_s = time.monotonic()
        with closing(self._painter.run(order.plan)) as turns:
            for turn in turns:
                if isinstance(turn, Finished):
                    data = self._finishing.file(order.job, order.plan, materials, turn.picture)
                    with _replacing(order.out) as draft:
                        draft.write_bytes(data)
                    self._kept.append(order.out)
                    return _said(order, time.monotonic() - begun_s)
                if self._stopping.is_set():
                    break
                self._report(order, turn)
        raise Cancelled("the generation was stopped")

    def _report(self, order: Order, step: PipelineStep) -> None:
        self._bar.step(_pixels(order.plan, step.pass_index))
        if order.rough is not None and step.index % PREVIEW_EVERY_STEPS == 0:
            small = Image.fromarray(preview(self._painter.checkpoint, step))
            large = small.resize((order.plan.width_px, order.plan.height_px), Image.Resampling.BICUBIC)
            with _replacing(order.rough) as draft:
                large.save(draft, format="PNG", compress_level=1)
            if order.rough not in self._kept:
                self._kept.append(order.rough)

    def _keepsakes(self) -> str:
        kept = ", ".join(map(str, self._kept))
        return f"kept {kept}" if kept else "no picture was finished and nothing was kept"


def _require_writable(path: Path) -> None:
    """Refuses before the first step what would lose the picture after the last."""
    if path.is_dir():
        raise InvalidInput(f"{path} is a folder; name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _draft(path).touch()
        _draft(path).unlink()
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written: {error.strerror}") from error


def _draft(path: Path) -> Path:
    return path.with_name(f".{path.name}.unfinished")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file beside ``path`` that takes its place once it is whole: a viewer never meets half a picture."""
    draft = _draft(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        draft.replace(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        with suppress(OSError):
            draft.unlink()


def _cost(plan: Plan) -> float:
    return sum(one.levels.turns * _pixels(plan, index) for index, one in enumerate(plan.passes))


def _pixels(plan: Plan, pass_index: int) -> float:
    one = plan.passes[pass_index]
    return float(one.width_px * one.height_px)


def _said(order: Order, seconds: float) -> str:
    plan = order.plan
    size = f"{plan.width_px}x{plan.height_px} px"
    return f"{order.out}  {size}, seed {plan.seed}, {plan.total_steps} steps of {plan.sampler}, {seconds:.1f} s"
