"""ONNX to engines, for TensorRT and TensorRT-RTX alike: their Python APIs differ by name and by one setting.

The only module that imports either. Networks are strongly typed: precision comes from the graph and no builder flag
changes it. TensorRT builds for the GPU it finds; TensorRT-RTX builds on any machine for the capabilities it is told.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from export import specs
from export.errors import ExportError

_LIBRARIES: Final = {
    specs.Runtime.TENSORRT: ("tensorrt", "tensorrt"),
    specs.Runtime.TENSORRT_RTX: ("tensorrt_rtx", "tensorrt-rtx"),
}


@dataclass(frozen=True)
class Order:
    """One engine: which graph, by which library, for which GPUs (86 is an A10, 89 an L4; none means this machine's).

    TensorRT knows its own machine's GPU only.
    """

    graph: specs.Graph
    runtime: specs.Runtime
    compute_capabilities: Sequence[int] = ()


def check_available(runtime: specs.Runtime, compute_capabilities: Sequence[int] = ()) -> None:
    """Refuses a runtime whose library is not installed, and GPUs that it does not know."""
    trt = _library(runtime)
    for number in compute_capabilities:
        _capability(trt, number)


def build_engine(onnx_path: Path, order: Order, out: Path, tell: Callable[[str], None] = lambda text: None) -> int:
    """Writes the engine of a bound graph to ``out`` and returns its bytes; ``tell`` hears where the builder is."""
    trt = _library(order.runtime)
    log = _make_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    # From the file and not from its bytes: the weights lie beside it.
    if not parser.parse_from_file(str(onnx_path)):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        reasons = "; ".join(f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in errors)
        raise ExportError(f"{trt.__name__} {trt.__version__} cannot read {order.graph.name}: {reasons}")
    config = builder.create_builder_config()
    for profile in specs.profiles_of(order.graph):
        _add_profile(builder, config, profile)
    _choose_gpus(trt, config, order)
    monitor = _make_monitor(trt, tell)
    config.progress_monitor = monitor
    engine = builder.build_serialized_network(network, config)
    if monitor.interrupted:
        raise KeyboardInterrupt
    if engine is None:
        raise ExportError(f"{trt.__name__} {trt.__version__} cannot build {order.graph.name}: {log.last}")
    with out.open("wb") as stream:
        stream.write(engine)
    return int(engine.nbytes)


def _library(runtime: specs.Runtime) -> ModuleType:
    module, package = _LIBRARIES[runtime]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ExportError(
            f"--runtime {runtime} needs the package {package}: pip install {package} ({error})"
        ) from error


def _add_profile(builder: Any, config: Any, profile: specs.Profile) -> None:
    shapes = builder.create_optimization_profile()
    for name, (low, best, high) in profile.shapes.items():
        shapes.set_shape(name, low, best, high)
    if config.add_optimization_profile(shapes) < 0:
        raise ExportError(f"the optimisation profile {profile.shapes} is refused; specs.py declares it")


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
    """Keeps the last error, which is the reason when the builder returns nothing; prints none of the rest."""

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = "no reason was logged"

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.last = message

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
