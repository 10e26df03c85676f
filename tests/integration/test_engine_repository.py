"""A repository of engines as the build leaves it, with a stand-in for TensorRT and its GPU."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from export import calibration, check_engines, engine_record
from export.build_engines import main
from tests.fakes.tensorrt import Library

ROOT = Path(__file__).parents[2]
NETWORKS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")
PLAN = "tensorrt-11.1.0.4-sm89.plan"


class Machine:
    """One GPU node: what is installed on it, and what was built there."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.out = folder / "models"
        self._patch = monkeypatch
        self.upgrade("11.1.0.4")
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        monkeypatch.setattr(engine_record, "compute_capability", lambda: "8.9")
        for name in ("torch", "diffusers", "transformers", "onnxscript"):
            monkeypatch.setitem(sys.modules, name, None)

    def upgrade(self, version: str) -> None:
        self._patch.setitem(sys.modules, "tensorrt", Library(version))

    def build(self, *more: str) -> int:
        common = ["--checkpoint", str(ROOT / "demo" / "checkpoint"), "--runtime", "tensorrt", "--out", str(self.out)]
        return main([*common, *more])


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Machine:
    """With the demo's repository on it."""
    machine = Machine(tmp_path, monkeypatch)
    assert machine.build() == 0, capsys.readouterr().err
    capsys.readouterr()
    return machine


def test_every_model_has_a_plan_named_by_version_and_gpu_and_a_config_that_names_it(machine: Machine) -> None:
    for name in NETWORKS:
        assert [path.name for path in (machine.out / name / "1").iterdir() if path.suffix == ".plan"] == [PLAN]
        config = (machine.out / name / "config.pbtxt").read_text()
        assert f'cc_model_filenames {{ key: "8.9" value: "{PLAN}" }}' in config
    assert not list(machine.out.rglob("*.onnx*"))
    assert json.loads((machine.out / "remarque.json").read_text())["style"]["rank"] == 8


def test_timings_of_all_engines_are_kept_together(machine: Machine, tmp_path: Path) -> None:
    assert [path.name for path in (tmp_path / "cache" / "remarque" / "timings").iterdir()] == [
        PLAN.replace(".plan", ".timings")
    ]


def test_repository_brings_the_check_that_its_server_runs_first(machine: Machine) -> None:
    assert list(check_engines.problems(machine.out, "11.1.0.4", "8.9")) == []
    assert len(list(check_engines.problems(machine.out, "10.13.3.9", "8.9"))) == len(NETWORKS)

    answer = subprocess.run(
        [sys.executable, "-I", "-S", str(machine.out / "check_engines.py")], capture_output=True, text=True, check=False
    )

    assert answer.returncode == 2
    assert answer.stderr.startswith("check_engines: ")


def test_building_again_keeps_engines_that_are_made_of_the_same(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_ino for path in machine.out.rglob("*.plan")}
    description = (machine.out / "remarque.json").read_bytes()

    assert machine.build() == 0

    assert capsys.readouterr().out.count("is there already, made of the same") == len(NETWORKS)
    assert {path: path.stat().st_ino for path in machine.out.rglob("*.plan")} == before
    assert (machine.out / "remarque.json").read_bytes() == description


def test_another_tensorrt_builds_its_own_engines(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.upgrade("11.2.0.7")

    assert machine.build() == 0

    assert "is there already" not in capsys.readouterr().out
    assert {path.name for path in machine.out.rglob("*.plan")} == {"tensorrt-11.2.0.7-sm89.plan"}


def test_changed_profiles_build_what_they_concern_and_nothing_else(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert machine.build("--max-rows", "4") == 0

    said = capsys.readouterr().out.splitlines()
    kept = [line.partition(":")[0] for line in said if "is there already" in line]
    assert kept == ["text_encoder", "vae_decoder", "vae_encoder"]


def test_fp8_builds_the_unets_engine_anew_and_no_other(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, small in (("PICTURES", 1), ("STEPS", 1), ("EDGE", 32)):
        monkeypatch.setattr(calibration, name, small)

    assert machine.build("--fp8") == 0

    said = capsys.readouterr().out.splitlines()
    assert any(line.startswith("unet: calibrate") and "129 layers in fp8" in line for line in said), said
    kept = [line.partition(":")[0] for line in said if "is there already" in line]
    assert kept == ["text_encoder", "vae_decoder", "vae_encoder"]
    assert machine.build("--fp8") == 0
    assert capsys.readouterr().out.count("is there already, made of the same") == len(NETWORKS)


def test_style_is_built_beside_its_base_and_a_second_one_holds_nothing_of_it(machine: Machine, tmp_path: Path) -> None:
    layers = [f"mid_block.attentions.0.transformer_blocks.0.attn{i}.to_q" for i in (1, 2)]
    added = []
    for i, layer in enumerate(layers):
        written = f"lora_unet_{layer.replace('.', '_')}"
        factors = {"down": np.ones((2, 192), np.float32), "up": np.ones((192, 2), np.float32)}
        tensors = {f"{written}.lora_{side}.weight": value for side, value in factors.items()}
        save_file(tensors, tmp_path / f"{i}.safetensors")
        before = set(machine.out.iterdir())
        assert machine.build("--style", f"{tmp_path / f'{i}.safetensors'}=0.5") == 0
        added += set(machine.out.iterdir()) - before

    assert len(added) == 2
    inputs = set()
    for model in (*added, machine.out / "unet"):
        assert f'name: "{model.name}"' in (model / "config.pbtxt").read_text()
        inputs.add(json.loads((model / "1" / f"{PLAN}.json").read_text())["inputs_sha256"])
    assert len(inputs) == 3
