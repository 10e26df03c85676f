"""What TensorRT itself is told, recorded by a stand-in: its package cannot be installed without a GPU."""

import sys
from pathlib import Path

import pytest

from export import specs, to_tensorrt
from export.errors import ExportError
from export.profiles import profiles_of
from export.specs import FAMILIES, Architecture, Runtime, TextEncoder, graphs_of
from tests.fakes.tensorrt import Library

TEXT_ENCODER = graphs_of(Architecture(FAMILIES["sd1"], (TextEncoder("text_encoder", 32, 32),), 4, 8, 8))[0]


@pytest.fixture(params=["11.1.0.4", "10.13.3.9"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Library:
    found = Library(request.param)
    monkeypatch.setitem(sys.modules, "tensorrt", found)
    return found


def order(timings: Path | None = None) -> to_tensorrt.Order:
    profiles = profiles_of(TEXT_ENCODER, TEXT_ENCODER.batching[specs.Device.GPU])
    return to_tensorrt.Order(TEXT_ENCODER, Runtime.TENSORRT, profiles, (), timings)


def test_network_is_strongly_typed_and_no_flag_changes_its_precision(library: Library, tmp_path: Path) -> None:
    to_tensorrt.build_engine(tmp_path / "model.onnx", order(), tmp_path / "model.plan")

    assert library.network_flags == 1 << library.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    assert library.config.flags == []


def test_profiles_are_those_of_the_graph(library: Library, tmp_path: Path) -> None:
    to_tensorrt.build_engine(tmp_path / "model.onnx", order(), tmp_path / "model.plan")

    assert [profile.shapes for profile in library.config.profiles] == [{"input_ids": ((1, 77), (2, 77), (32, 77))}]


def test_engine_is_written_with_the_memory_that_the_builder_told(library: Library, tmp_path: Path) -> None:
    engine = to_tensorrt.build_engine(tmp_path / "model.onnx", order(), tmp_path / "model.plan")

    assert (tmp_path / "model.plan").read_bytes() == b"engine"
    assert engine == to_tensorrt.Engine(6, (100, 200), 50)


def test_timings_of_one_build_are_there_for_the_next(library: Library, tmp_path: Path) -> None:
    timings = tmp_path / "timings" / "engine.timings"

    for _ in range(2):
        to_tensorrt.build_engine(tmp_path / "model.onnx", order(timings), tmp_path / "model.plan")

    assert timings.read_bytes() == b" and this build's and this build's"
    assert [path.name for path in timings.parent.iterdir()] == ["engine.timings"]


def test_builder_that_gives_nothing_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", Library("11.1.0.4", fails=True))

    with pytest.raises(ExportError, match=r"tensorrt 11\.1\.0\.4 cannot build text_encoder: no kernel fits"):
        to_tensorrt.build_engine(tmp_path / "model.onnx", order(), tmp_path / "model.plan")
