"""ONNX to engines, for TensorRT and TensorRT-RTX alike: their Python APIs differ by name and by one setting.

The only module that imports either. Networks are strongly typed: precision comes from the graph and no builder flag
changes it. TensorRT builds for the GPU it finds; TensorRT-RTX builds on any machine for the capabilities it is told.
"""

import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from export import specs
from export.errors import ExportError
from export.profiles import Profile

_LIBRARIES: Final = {
    specs.Runtime.TENSORRT: ("tensorrt", "tensorrt"),
    specs.Runtime.TENSORRT_RTX: ("tensorrt_rtx", "tensorrt-rtx"),
}


# What the builder logs for each profile, in their order, and once for the engine.
_ACTIVATIONS: Final = re.compile(r"Total Activation Memory: (\d+) bytes")
_WEIGHTS: Final = re.compile(r"Total Weights Memory: (\d+) bytes")


@dataclass(frozen=True)
class Order:
    """One engine: which graph, by which library, for which GPUs (86 is an A10, 89 an L4; none means this machine's).

    TensorRT knows its own machine's GPU only. ``timing_cache`` is a file that remembers which kernels were fastest; a
    second build of the same layers takes a fraction of the time.
    """

    graph: specs.Graph
    runtime: specs.Runtime
    profiles: Sequence[Profile]
    compute_capabilities: Sequence[int] = ()
    timing_cache: Path | None = None


@dataclass(frozen=True)
class Engine:
    """What was written, and the GPU memory that it says it takes: each profile's activations, and the weights."""

    size_bytes: int
    activations_bytes: tuple[int, ...] = field(default=())
    weights_bytes: int = 0


def check_available(runtime: specs.Runtime, compute_capabilities: Sequence[int] = ()) -> None:
    """Refuses a runtime whose library is not installed, and GPUs that it does not know."""
    trt = _library(runtime)
    for number in compute_capabilities:
        _capability(trt, number)


def version_of(runtime: specs.Runtime) -> str:
    """The library's version, which an engine belongs to."""
    return str(_library(runtime).__version__)


def build_engine(onnx_path: Path, order: Order, out: Path, tell: Callable[[str], None] = lambda text: None) -> Engine:
    """Writes the engine of a bound graph to ``out``; ``tell`` hears where the builder is."""
    trt = _library(order.runtime)
    log = _make_log(trt)
    builder = trt.Builder(log)
    # TensorRT 10 must be told; 11 knows nothing else and ignores it.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    # From the file and not from its bytes: the weights lie beside it.
    if not parser.parse_from_file(str(onnx_path)):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        reasons = "; ".join(f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in errors)
        raise ExportError(f"{trt.__name__} {trt.__version__} cannot read {order.graph.name}: {reasons}")
    config = builder.create_builder_config()
    for profile in order.profiles:
        _add_profile(builder, config, profile)
    _choose_gpus(trt, config, order)
    _read_timings(config, order)
    monitor = _make_monitor(trt, tell)
    config.progress_monitor = monitor
    engine = builder.build_serialized_network(network, config)
    if monitor.interrupted:
        raise KeyboardInterrupt
    if engine is None:
        raise ExportError(f"{trt.__name__} {trt.__version__} cannot build {order.graph.name}: {log.last}")
    _keep_timings(config, order)
    with out.open("wb") as stream:
        stream.write(engine)
    return Engine(int(engine.nbytes), tuple(log.activations_bytes), log.weights_bytes)


def _read_timings(config: Any, order: Order) -> None:
    if order.timing_cache is None:
        return
    known = order.timing_cache.read_bytes() if order.timing_cache.is_file() else b""
    # One of another version or GPU is refused by the library, which then starts with an empty one.
    config.set_timing_cache(config.create_timing_cache(known), False)


def _keep_timings(config: Any, order: Order) -> None:
    cache = config.get_timing_cache() if order.timing_cache is not None else None
    if cache is None or order.timing_cache is None:
        return
    order.timing_cache.parent.mkdir(parents=True, exist_ok=True)
    unfinished = order.timing_cache.with_name(f".{order.timing_cache.name}.part")
    unfinished.write_bytes(bytes(cache.serialize()))
    unfinished.replace(order.timing_cache)


def _library(runtime: specs.Runtime) -> ModuleType:
    module, package = _LIBRARIES[runtime]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ExportError(
            f"--runtime {runtime} needs the package {package}: pip install {package} ({error})"
        ) from error


def _add_profile(builder: Any, config: Any, profile: Profile) -> None:
    shapes = builder.create_optimization_profile()
    for name, (low, best, high) in profile.shapes.items():
        shapes.set_shape(name, low, best, high)
    if config.add_optimization_profile(shapes) < 0:
        raise ExportError(
            f"the optimisation profile {profile.name} {profile.shapes} is refused; profiles.py declares it"
        )


def _choose_gpus(trt: ModuleType, config: Any, order: Order) -> None:
    if not order.compute_capabilities:
        return
    config.num_compute_capabilities = len(order.compute_capabilities)
    for index, number in enumerate(order.compute_capabilities):
        config.set_compute_capability(_capability(trt, number), index)


def _capability(trt: ModuleType, number: int) -> Any:
    known = {name: value for name, value in trt.ComputeCapability.__members__.items() if name.startswith("SM")}
    if f"SM{number}" not in known:
        served = ", ".join(name.removeprefix("SM") for name in known)
        raise ExportError(f"--sm is {number}; {trt.__name__} {trt.__version__} builds for {served}")
    return known[f"SM{number}"]


def _make_log(trt: ModuleType) -> Any:
    """Keeps the last error, which is the reason when the builder returns nothing, and the memory that it tells of."""

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = "no reason was logged"
            self.activations_bytes: list[int] = []
            self.weights_bytes = 0

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.last = message
            elif (found := _ACTIVATIONS.search(message)) is not None:
                self.activations_bytes.append(int(found[1]))
            elif (found := _WEIGHTS.search(message)) is not None:
                self.weights_bytes = int(found[1])

    return Log()


def _make_monitor(trt: ModuleType, tell: Callable[[str], None]) -> Any:
    """Passes the builder's phases on, and stops it on Ctrl-C, which would otherwise be lost in its native code."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.interrupted = False
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                tell(f"{phase_name} {step + 1} of {self._steps.get(phase_name, 0)}")
            except KeyboardInterrupt:
                self.interrupted = True
            return not self.interrupted

    return Monitor()
