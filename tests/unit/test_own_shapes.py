"""The shared ``model.py``'s choice of shapes that get a network of their own."""

import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

MODEL_PY = Path(__file__).parents[2] / "model_repository" / "model.py"


class Clock:
    """Seconds that pass only when a network runs."""

    now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def model_py(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, with a stand-in for what Triton brings along and with ``clock``."""
    said: list[str] = []
    backend = types.ModuleType("triton_python_backend_utils")
    backend.Logger = types.SimpleNamespace(log_info=said.append, log_warn=said.append)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend)
    spec = importlib.util.spec_from_file_location("remarque_model_of_own_shapes", MODEL_PY)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "time", clock)
    module.said = said
    return module


@pytest.fixture
def network(model_py: Any, clock: Clock) -> Callable[..., Any]:
    """A network of one second a run, 3 s to build, where ``asked`` lists what was built; its answer says by which it ran."""

    def make(most: int = 2, failing: bool = False) -> tuple[Any, list[Any]]:
        asked: list[Any] = []

        def general(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            clock.now_s += 1.0
            return {"by": np.zeros(len(inputs["x"]))}

        def build(shapes: Any) -> Any:
            asked.append(dict(shapes)["x"])
            if failing:
                raise RuntimeError("no such kernel")
            return lambda inputs: {"by": np.full(len(inputs["x"]), len(asked))}

        return model_py.OwnShapes(general, build, build_s=3.0, most=most), asked

    return make


def ran_by(network: Any, *shape: int) -> float:
    """0 for the general network, n for the nth that was built."""
    return float(network({"x": np.zeros(shape)})["by"][0])


def times(network: Any, count: int, *shape: int) -> list[float]:
    return [ran_by(network, *shape) for _ in range(count)]


def test_a_shape_earns_its_network_by_what_that_would_have_saved(network: Any, model_py: Any) -> None:
    own, asked = network()
    # A fifth of 16 s is more than the three seconds of building.
    assert model_py.SAVED == 0.2
    assert times(own, 16, 2, 4) == [0] * 16
    assert asked == [(2, 4)]
    assert times(own, 3, 2, 4) == [1] * 3
    assert model_py.said == ["a graph of its own for x [2, 4]"]


def test_shapes_earn_each_for_itself(network: Any) -> None:
    own, asked = network()
    for _ in range(15):
        assert (ran_by(own, 2, 4), ran_by(own, 4, 4)) == (0, 0)
    assert asked == []
    assert (ran_by(own, 4, 4), ran_by(own, 4, 4), ran_by(own, 2, 4)) == (0, 1, 0)


def test_the_least_recently_used_makes_room_and_earns_again(network: Any) -> None:
    own, asked = network(most=2)
    for rows in (1, 2):
        times(own, 16, rows)
    assert ran_by(own, 1) > 0
    times(own, 16, 3)
    assert asked == [(1,), (2,), (3,)]
    assert ran_by(own, 1) > 0 and ran_by(own, 3) > 0
    assert times(own, 16, 2) == [0] * 16
    assert asked == [(1,), (2,), (3,), (2,)]
    assert ran_by(own, 2) > 0 and ran_by(own, 1) == 0


def test_a_shape_that_cannot_be_built_is_served_on_and_asked_for_seldom(network: Any, model_py: Any) -> None:
    own, asked = network(failing=True)
    assert times(own, 31, 2) == [0] * 31
    assert asked == [(2,)]
    assert model_py.said == ["no graph of its own for x [2]: no such kernel"]
