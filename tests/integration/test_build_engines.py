"""The build as a shell starts it, and what it leaves on disk."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from export.build_engines import main
from export.checkpoint import open_checkpoint
from export.session import Session

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "demo" / "checkpoint"
NETWORKS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's repository with styles, built without torch."""
    out = tmp_path_factory.mktemp("built") / "models"
    with pytest.MonkeyPatch.context() as without:
        for name in ("torch", "diffusers", "transformers", "onnxscript"):
            without.setitem(sys.modules, name, None)
        assert main(["--checkpoint", str(DEMO), "--runtime", "onnx", "--style-rank", "8", "--out", str(out)]) == 0
    return out


def test_command_runs_as_a_script_from_anywhere_and_its_help_reads_like_a_page(tmp_path: Path) -> None:
    script = ROOT / "export" / "build_engines.py"

    answer = subprocess.run(
        [sys.executable, str(script), "--help"], capture_output=True, text=True, cwd=tmp_path, check=True
    )

    for part in ("Turns a Stable Diffusion 1.x checkpoint", "tensorrt-rtx", "Exit codes", "--checkpoint FOLDER_OR_ID"):
        assert part in answer.stdout


def test_demo_repository_is_built_without_torch(models: Path) -> None:
    files = {str(path.relative_to(models)) for path in models.rglob("*") if path.is_file()}

    own = {file for file in files if "/weights/" in file}
    expected = {f"{name}/1/{file}" for name in NETWORKS for file in ("model.onnx", "model.onnx.data", "model.py")}
    expected |= {f"{name}/config.pbtxt" for name in NETWORKS}
    assert files - own == expected | {
        "remarque.json",
        "text_encoder/tokenizer/vocab.json",
        "text_encoder/tokenizer/merges.txt",
        "text_encoder/weights.json",
        "unet/weights.json",
    }
    assert {file.split("/")[0] for file in own} == {"text_encoder", "unet"}


@pytest.mark.parametrize("model", ["unet", "text_encoder"])
def test_every_layer_that_a_style_may_change_has_its_weight_in_a_file_of_its_own(models: Path, model: str) -> None:
    layers = json.loads((models / "remarque.json").read_text())["layers"][model]
    parts = json.loads((models / model / "weights.json").read_text())["layers"]

    assert parts.keys() == layers.keys()
    for layer, (part,) in parts.items():
        assert part["file"] == f"weights/{layer}.weight"
        size_bytes = int(np.prod(part["dims"])) * np.dtype(part["dtype"]).itemsize
        assert (models / model / "1" / part["file"]).stat().st_size == size_bytes
        axes = [int(axis) for axis in part["axes"].split(",") if axis != "n"]
        assert [layers[layer][axis] for axis in axes] == [
            size for size, axis in zip(part["dims"], part["axes"].split(","), strict=True) if axis != "n"
        ]


def test_replacing_one_file_of_a_linked_copy_changes_that_layer_and_nothing_of_the_base(
    models: Path, tmp_path: Path
) -> None:
    """How a style is merged: every other file is the base's own."""
    base, copy = models / "unet" / "1", tmp_path / "unet--0" / "1"
    shutil.copytree(base, copy, copy_function=os.link)
    generator = np.random.default_rng(0)
    rows = {
        "sample": generator.standard_normal((1, 4, 32, 32), dtype=np.float32),
        "timestep": np.array([[500.0]], np.float32),
        "encoder_hidden_states": generator.standard_normal((1, 77, 128), dtype=np.float32),
        "style": np.zeros((1, 100_352), np.float32),
    }
    before = Session(base / "model.onnx").run(rows)["out_sample"]
    file = copy / "weights" / "conv_out.weight"
    doubled = np.fromfile(file, np.float32) * 2
    file.unlink()
    file.write_bytes(doubled.tobytes())

    answer = Session(copy / "model.onnx").run(rows)["out_sample"]

    bias = np.asarray(open_checkpoint(str(DEMO)).weights("unet")["conv_out.bias"], np.float32).reshape(1, -1, 1, 1)
    np.testing.assert_allclose(answer, 2 * before - bias, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(Session(base / "model.onnx").run(rows)["out_sample"], before)


def peft_style(folder: Path, layer: str, seed: int) -> Path:
    """A style on one layer of the demo's UNet, strong enough to show."""
    generator = np.random.default_rng(seed)
    out, into = open_checkpoint(str(DEMO)).weights("unet")[f"{layer}.weight"].shape
    tensors = {
        f"base_model.model.{layer}.lora_A.weight": generator.standard_normal((8, into)).astype(np.float32) * 0.2,
        f"base_model.model.{layer}.lora_B.weight": generator.standard_normal((out, 8)).astype(np.float32) * 0.2,
    }
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 32}))
    return folder


def add_style(out: Path, *styles: str, options: tuple[str, ...] = ("--style-rank", "8")) -> int:
    common = ["--checkpoint", str(DEMO), "--runtime", "onnx", "--out", str(out), *options]
    return main([*common, *(part for style in styles for part in ("--style", style))])


def test_two_styles_one_after_the_other_become_models_of_which_neither_holds_the_other(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torch", "diffusers", "transformers", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None)
    out = tmp_path / "models"
    shutil.copytree(models, out)
    description = (out / "remarque.json").read_bytes()
    layers = [f"mid_block.attentions.0.transformer_blocks.0.attn{i}.to_q" for i in (1, 2)]
    found = []
    for i, layer in enumerate(layers):
        before = set(out.iterdir())
        assert add_style(out, str(peft_style(tmp_path / f"style{i}", layer, i))) == 0
        found.append((set(out.iterdir()) - before).pop())

    for model, layer in zip(found, layers, strict=True):
        assert model.name.startswith("unet--")
        assert f'name: "{model.name}"' in (model / "config.pbtxt").read_text()
        own = {path.name for path in (model / "1").rglob("*") if path.is_file() and path.stat().st_nlink == 1}
        assert own == {f"{layer}.weight"}
    assert (out / "remarque.json").read_bytes() == description


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--style-rank", "4"), "was built with --style-rank 8; --style-rank is 4"),
        (("--style-rank", "8", "--local-runtime", "openvino-f32"), "was built with other options"),
    ],
)
def test_style_is_refused_where_its_base_model_was_built_otherwise(
    models: Path, tmp_path: Path, options: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    style = peft_style(tmp_path / "style", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q", 0)

    assert add_style(models, str(style), options=options) == 2
    assert sentence in capsys.readouterr().err


def test_style_is_refused_where_no_repository_was_built(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    style = peft_style(tmp_path / "style", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q", 0)

    assert add_style(tmp_path / "models", str(style)) == 2
    assert "build the repository without --style first" in capsys.readouterr().err
