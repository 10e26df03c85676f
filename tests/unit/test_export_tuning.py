"""What tuning makes of a curve, and how it gets into a model's configuration."""

import io
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from export import tune
from export.config_pbtxt import Serving, render
from export.curve import Point, Refused, Server, curve, rows_to_try, worth
from export.errors import ExportError
from export.specs import Batching, Device, Graph, Kind, Precision, Runtime, Tensor
from export.tuning import Tuned, read_tuning, write_tuning

CONFIG = {
    "backend": "python",
    "max_batch_size": 8,
    "input": [{"name": "sample", "data_type": "TYPE_FP32", "dims": ["4", "-1", "-1"]}],
    "output": [{"name": "out_sample", "data_type": "TYPE_FP32", "dims": ["4", "-1", "-1"]}],
    "dynamic_batching": {"max_queue_delay_microseconds": 5000},
    "instance_group": [{"count": 1}],
    "parameters": {"runtime": {"string_value": "auto"}, "threads": {"string_value": "0"}},
}


class Machine(Server):
    """A server whose executions take ``fixed_s`` and ``row_s`` a row, times the runtime's factor."""

    def __init__(self, fixed_s: float = 0.002, row_s: float = 0.0005, fits: int = 99) -> None:
        self.fixed_s, self.row_s, self.fits = fixed_s, row_s, fits
        self.now: dict[str, Any] = CONFIG
        self.ran = 0
        self.joins_from_us = 1000

    def parameter(self, key: str) -> str:
        return str(self.now["parameters"][key]["string_value"])

    def config(self, model: str) -> dict[str, Any]:
        return self.now

    def load(self, model: str, config: Any = None) -> None:
        if config and config["parameters"].get("runtime", {}).get("string_value") == "openvino-bf16":
            raise Refused("this CPU does not compute in bf16")
        self.now = config or CONFIG

    def executions(self, model: str) -> int:
        return self.ran

    def step(self, model: str, config: Any, rows: int, side: int) -> None:
        if rows > self.fits:
            raise Refused("unet ran out of memory")
        factor = 3.0 if self.parameter("runtime") == "onnxruntime-f32" else 1.0
        time.sleep(factor * (self.fixed_s + self.row_s * rows))
        self.ran += 1

    @contextmanager
    def zeros(self, size: int) -> Iterator[str | None]:
        yield None

    def steps(self, model: str, config: Any, rows: int, side: int, calls: int, region: str | None) -> None:
        joins = self.now["dynamic_batching"]["max_queue_delay_microseconds"] >= self.joins_from_us
        before = self.ran
        for _ in range(calls):
            self.step(model, config, rows, side)
        self.ran = before + (1 if joins else calls)


def graph() -> Graph:
    batching = Batching(8, (2, 2), 5000)
    tensor = Tensor("sample", Kind.NETWORK, (4,))
    return Graph("unet", "unet", (tensor,), (tensor,), {Device.CPU: batching, Device.GPU: batching})


def config() -> str:
    return render(graph(), Serving(Runtime.ONNX, Device.CPU), Precision.FP32)


def test_rows_are_doubled_up_to_the_limit() -> None:
    assert list(rows_to_try(8)) == [1, 2, 4, 8]
    assert list(rows_to_try(20)) == [1, 2, 4, 8, 16, 20]
    assert list(rows_to_try(1)) == [1]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({1: 1.0, 2: 2.0, 4: 4.0, 8: 8.0}, 2),
        ({1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0}, 8),
        ({1: 1.0, 2: 1.1, 4: 1.4, 8: 2.75}, 4),
        ({1: 1.0}, 1),
    ],
    ids=["linear", "constant", "knee", "one point"],
)
def test_the_fewest_rows_that_reach_almost_all_are_worth_it(seconds: dict[int, float], expected: int) -> None:
    assert worth([Point(rows, each) for rows, each in seconds.items()]) == expected


def test_a_curve_ends_where_memory_does() -> None:
    assert [point.rows for point in curve(Machine(fits=4), "unet", 64, 1, 60.0)] == [1, 2, 4]


def test_a_curve_ends_where_patience_does() -> None:
    assert [point.rows for point in curve(Machine(row_s=0.01), "unet", 64, 1, 0.03)] == [1]


def test_another_refusal_is_not_taken_for_memory() -> None:
    machine = Machine()
    machine.step = lambda *told: (_ for _ in ()).throw(Refused("no such model"))  # type: ignore[method-assign]
    with pytest.raises(Refused, match="no such model"):
        curve(machine, "unet", 64, 1, 60.0)


def test_the_fastest_runtime_is_chosen_and_what_cannot_run_is_said() -> None:
    said = io.StringIO()
    tuned = tune.Tuning(Machine(), said, repeats=1, patience_s=60.0).run()
    assert tuned.runtime == "openvino-f32"
    assert "openvino-bf16    is not served here: this CPU does not compute in bf16" in said.getvalue()
    assert set(tuned.rows_aimed_at) == {64 * 64, 128 * 128}
    assert tuned.max_queue_delay_us == 1000


def test_the_server_is_left_as_its_file_says() -> None:
    machine = Machine()
    tune.Tuning(machine, io.StringIO(), repeats=1, patience_s=60.0).run()
    assert machine.now is CONFIG


def test_every_trial_differs_from_the_one_before_or_triton_drops_it() -> None:
    one, two = (tune._with(CONFIG, runtime="openvino-f32") for _ in range(2))
    assert one != two and one["parameters"]["runtime"] == {"string_value": "openvino-f32"}


def test_tuned_values_replace_those_of_the_build() -> None:
    tuned = Tuned(1000, "openvino-f32", 2, {4096: 4, 16384: 2})
    text = tuned.applied(config())
    assert "max_queue_delay_microseconds: 1000 }" in text
    assert 'key: "runtime" value { string_value: "openvino-f32" }' in text
    assert 'key: "threads" value { string_value: "2" }' in text
    assert 'key: "rows_aimed_at" value { string_value: "4096:4,16384:2" }' in text


def test_tuning_twice_leaves_one_value_each() -> None:
    once = Tuned(1000, None, None, {4096: 4}).applied(config())
    twice = Tuned(500, None, None, {4096: 8}).applied(once)
    assert twice.count("rows_aimed_at") == 1 and "4096:8" in twice


def test_what_was_not_measured_stays_as_built() -> None:
    assert Tuned().applied(config()) == config()


def test_a_gpu_s_configuration_gets_no_parameter_it_did_not_have() -> None:
    text = render(graph(), Serving(Runtime.ONNX, Device.GPU), Precision.FP32)
    assert "threads" not in Tuned(500, "auto", 4, {4096: 8}).applied(text)


def test_tuning_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.pbtxt").write_text(config())
    tuned = Tuned(1000, "openvino-f32", 2, {4096: 4})
    write_tuning(tmp_path, "a machine", {"unet": tuned}, [])
    assert read_tuning(tmp_path) == {"unet": tuned}
    assert (tmp_path / "unet" / "config.pbtxt").read_text() == tuned.applied(config())


def test_a_repository_that_was_never_tuned_has_no_tuning(tmp_path: Path) -> None:
    assert read_tuning(tmp_path) == {}


@pytest.mark.parametrize(
    "text", ["", "{}", json.dumps({"format": 2, "models": {}}), '{"format": 1, "models": {"u": 1}}']
)
def test_a_broken_tuning_says_what_to_do(tmp_path: Path, text: str) -> None:
    (tmp_path / "tuning.json").write_text(text)
    with pytest.raises(ExportError, match="delete it and tune again"):
        read_tuning(tmp_path)


def test_a_folder_without_models_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.main(["--out", str(tmp_path)]) == 2
    assert "holds no unet" in capsys.readouterr().err


def test_a_repository_that_cannot_be_written_is_refused_before_minutes_of_measuring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.pbtxt").touch()
    monkeypatch.setattr(tune.os, "access", lambda path, mode: path != tmp_path)
    assert tune.main(["--out", str(tmp_path)]) == 2
    assert "cannot be written to" in capsys.readouterr().err


def test_no_repeats_are_refused_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        tune.main(["--out", str(tmp_path), "--repeats", "0"])
    assert "--repeats is 0; 1 or more are served" in capsys.readouterr().err


def test_where_a_server_shares_no_memory_calls_carry_their_zeros(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Closed(Server):
        def _asked(self, method: str, path: str, *body: object) -> bytes:
            raise Refused("shared memory is restricted")

    monkeypatch.setattr("export.curve.SHARED", tmp_path)
    with Closed("localhost:1").zeros(8) as region:
        assert region is None
    assert list(tmp_path.iterdir()) == []
