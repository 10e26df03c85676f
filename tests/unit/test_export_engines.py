"""Engines' names, records and checks, what a machine's tuning changes, and what a dry run tells."""

import ast
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from export_checkpoints import write_checkpoint
from onnx import TensorProto, helper

import export.build_engines as command
from export import check_engines, engine_record
from export.engine_record import Target, inputs_sha256, is_current, record_path, write_record
from export.errors import ExportError
from export.profiles import Profile
from export.specs import Runtime
from export.to_tensorrt import Engine

TARGET = Target("tensorrt", "11.1.0.4", ("8.9",))
PROFILES = (Profile("512x512", {"x": ((1, 2), (2, 2), (4, 2))}), Profile("any other", {"x": ((1, 2), (1, 2), (4, 2))}))


def graph(constant: float = 1.0) -> onnx.ModelProto:
    node = helper.make_node("LeakyRelu", ["x"], ["y"], alpha=constant)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xy")
    return helper.make_model(helper.make_graph([node], "g", [x], [y]))


def repository(folder: Path, **changes: object) -> Path:
    """A repository with one engine for TensorRT 11.1 on compute capability 8.9."""
    plan = folder / "unet" / "1" / TARGET.plan_file
    plan.parent.mkdir(parents=True)
    plan.write_bytes(b"engine")
    write_record(plan, TARGET, "ab" * 32, PROFILES, Engine(6, (100, 200), 50))
    if changes:
        record_path(plan).write_text(json.dumps(json.loads(record_path(plan).read_text()) | changes))
    return folder


def test_engine_is_named_by_its_library_version_and_gpu() -> None:
    assert TARGET.plan_file == "tensorrt-11.1.0.4-sm89.plan"
    assert Target("tensorrt_rtx", "1.7.1", ("8.6", "8.9")).plan_file == "tensorrt_rtx-1.7.1-sm86-sm89.plan"


def test_engine_that_fits_is_not_complained_of(tmp_path: Path) -> None:
    assert list(check_engines.problems(repository(tmp_path), "11.1.0.4", "8.9")) == []


@pytest.mark.parametrize("said", ["11.1.0", "11.1.0.4"])
def test_versions_are_one_as_far_as_both_are_said(tmp_path: Path, said: str) -> None:
    assert list(check_engines.problems(repository(tmp_path), said, "8.9")) == []


@pytest.mark.parametrize(
    ("version", "capability", "sentence"),
    [
        ("10.13.3.9", "8.9", "unet was built by TensorRT 11.1.0.4; 10.13.3.9 is here: build it again"),
        ("11.1.0.5", "8.9", "unet was built by TensorRT 11.1.0.4; 11.1.0.5 is here"),
        ("11.1.0.4", "9.0", "unet was built for compute capability 8.9; this GPU has 9.0"),
    ],
)
def test_engine_of_another_version_or_gpu_is_refused_with_a_sentence(
    tmp_path: Path, version: str, capability: str, sentence: str
) -> None:
    (found,) = check_engines.problems(repository(tmp_path), version, capability)

    assert found.startswith(sentence)


def test_engine_of_a_library_that_triton_cannot_run_is_refused(tmp_path: Path) -> None:
    (found,) = check_engines.problems(repository(tmp_path, library="tensorrt_rtx"), "11.1.0.4", "8.9")

    assert "unet was built by tensorrt_rtx, which Triton has no backend for" in found


def test_engine_whose_file_is_gone_is_refused(tmp_path: Path) -> None:
    (repository(tmp_path) / "unet" / "1" / TARGET.plan_file).unlink()

    (found,) = check_engines.problems(tmp_path, "11.1.0.4", "8.9")
    assert found.startswith("unet lacks tensorrt-11.1.0.4-sm89.plan")


def test_version_comes_from_what_nvidias_images_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRT_VERSION", "11.1.0.4+cuda13.0")

    assert check_engines.tensorrt_version() == "11.1.0.4"


def test_machine_without_tensorrt_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRT_VERSION", raising=False)
    monkeypatch.setitem(sys.modules, "tensorrt", None)

    with pytest.raises(LookupError, match="which TensorRT is here cannot be told"):
        check_engines.tensorrt_version()


def test_check_copied_into_a_repository_needs_python_alone() -> None:
    tree = ast.parse(Path(check_engines.__file__).read_text())

    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports}
    # Where TensorRT's package is installed it is asked for its version; a server's image has none.
    assert {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) == {"tensorrt"}


def test_record_tells_the_memory_of_each_profile(tmp_path: Path) -> None:
    record = json.loads((repository(tmp_path) / "unet" / "1" / f"{TARGET.plan_file}.json").read_text())

    assert record["activations_bytes"] == {"512x512": 100, "any other": 200}
    assert (record["weights_bytes"], record["compute_capabilities"]) == (50, ["8.9"])


def test_engine_made_of_the_same_is_current_and_any_other_is_not(tmp_path: Path) -> None:
    plan = repository(tmp_path) / "unet" / "1" / TARGET.plan_file

    assert is_current(plan, "ab" * 32)
    assert not is_current(plan, "cd" * 32)
    plan.unlink()
    assert not is_current(plan, "ab" * 32)


def test_whatever_an_engine_is_made_of_is_part_of_its_name() -> None:
    weight = {"conv_in.weight": np.ones(3, np.float32)}
    base = inputs_sha256(TARGET, graph(), "weights", weight, PROFILES)

    others = [
        inputs_sha256(Target("tensorrt", "11.1.0.5", ("8.9",)), graph(), "weights", weight, PROFILES),
        inputs_sha256(Target("tensorrt", "11.1.0.4", ("8.6",)), graph(), "weights", weight, PROFILES),
        inputs_sha256(TARGET, graph(0.5), "weights", weight, PROFILES),
        inputs_sha256(TARGET, graph(), "other weights", weight, PROFILES),
        inputs_sha256(TARGET, graph(), "weights", {"conv_in.weight": np.zeros(3, np.float32)}, PROFILES),
        inputs_sha256(TARGET, graph(), "weights", weight, PROFILES[:1]),
    ]

    assert base == inputs_sha256(TARGET, graph(), "weights", dict(weight), PROFILES)
    assert len({base, *others}) == len(others) + 1


def test_machine_without_a_gpu_is_told_that_engines_are_built_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_gpu(device: int = 0) -> str:
        raise LookupError("there is no NVIDIA driver (libcuda.so.1) on this machine")

    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="11.1.0.4"))
    monkeypatch.setattr(engine_record, "compute_capability", no_gpu)

    with pytest.raises(ExportError, match=r"no NVIDIA driver .*; --runtime tensorrt builds for this machine's GPU"):
        engine_record.target_of(Runtime.TENSORRT, ())


def dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    arguments = ["--checkpoint", str(checkpoint), "--out", str(tmp_path / "models"), "--dry-run", *more]
    assert command.main([*arguments, "--graphs", str(tmp_path / "graphs")]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    return capsys.readouterr().out


def test_dry_run_needs_neither_gpu_nor_tensorrt_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)

    said = dry_run(tmp_path, capsys, "--runtime", "tensorrt")

    for part in (
        "checkpoint: tensorrt on a gpu, fp16",
        "unet: fp16, 0 MB of weights, graph to be traced",
        "512x512: rows 1 to 20, best at 8",
        "any other: rows 1 to 20, best at 2",
        "26 CUDA graphs, of 1 to 20 rows",
        "GPU memory: about",
        "time: about",
    ):
        assert part in said


def test_dry_run_of_onnx_graphs_tells_batches_and_no_profiles(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = dry_run(tmp_path, capsys, "--runtime", "onnx")

    assert "up to 8 rows, waiting up to 0.5 ms for them" in said
    assert "best at" not in said and "GPU memory" not in said


def test_dry_run_tells_the_sizes_that_were_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = dry_run(tmp_path, capsys, "--runtime", "tensorrt", "--sizes", "768x512")

    assert "768x512: rows 1 to 20" in said
    assert "1024x1024" not in said


@pytest.mark.parametrize("size", ["768x500", "2048x512", "128x512"])
def test_size_that_the_networks_do_not_serve_is_refused(
    tmp_path: Path, size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(write_checkpoint(tmp_path / "checkpoint"))

    arguments = ["--checkpoint", checkpoint, "--out", str(tmp_path / "models"), "--runtime", "tensorrt", "--dry-run"]

    code = command.main([*arguments, "--sizes", "512x512", size])

    assert code == 2
    assert f"--sizes names {size}; sides of 256 to 1024 px in steps of 64 px are served" in capsys.readouterr().err


def test_fewer_rows_take_less_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = dry_run(tmp_path, capsys, "--runtime", "tensorrt", "--max-rows", "4")

    assert "512x512: rows 1 to 4, best at 4" in said
    assert "any other: rows 1 to 4, best at 2" in said


@pytest.mark.parametrize("rows", ["1", "many"])
def test_rows_that_hold_no_guided_job_are_refused(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--checkpoint", "x", "--out", "y", "--runtime", "tensorrt", "--max-rows", rows])

    assert f"{rows} rows do not hold a guided job, which is two" in capsys.readouterr().err


def test_size_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--checkpoint", "x", "--out", "y", "--runtime", "tensorrt", "--sizes", "big"])

    assert "big is no size; WIDTHxHEIGHT in pixels is expected" in capsys.readouterr().err
