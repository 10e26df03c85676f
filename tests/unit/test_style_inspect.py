"""``style inspect``: a page about a file that fits, and a page and a reason about one that does not."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from safetensors.numpy import save
from small_checkpoint import WIDTH, write_repository
from small_styles import CHANNELS, LAYERS, LAYOUT, QUERY, kohya_style, numbers, peft_config, peft_style

from orchestrator.__main__ import WRONG, main
from orchestrator.diffusion.lora_strength import KINDS, BlockStrength
from orchestrator.style_plot import COLOURS, ROW_PX, WIDTH_PX, draw_strengths


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_repository(tmp_path_factory.mktemp("models"))
    described = json.loads((folder / "remarque.json").read_text())
    (folder / "remarque.json").write_text(json.dumps(described | {"layers": LAYERS}))
    return folder


def described_otherwise(models: Path, folder: Path, **changes: object) -> Path:
    """A copy of ``models`` in ``folder`` with changes to what is said of it."""
    shutil.copytree(models, folder)
    described = json.loads((folder / "remarque.json").read_text())
    (folder / "remarque.json").write_text(json.dumps(described | changes))
    return folder


def inspect(path: Path, models: Path, *options: str) -> int:
    return main(["style", "inspect", str(path), "--models", str(models), *options])


def test_the_page_says_what_a_file_is(tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ink.safetensors").write_bytes(kohya_style())
    assert inspect(tmp_path / "ink.safetensors", models) == 0
    page = capsys.readouterr().out
    for fact in (
        "names of      kohya", "tensors       9, in F16", "reads text of width 6", "small has 6", "unmatched     none",
        "2 of 25 in the UNet, 1 of 3 in the text encoder", "method        LoRA", "ranks         2", "text encoder", "down 0",
    ):  # fmt: skip
        assert fact in page


def test_a_folder_of_peft_is_inspected_with_its_configuration(
    tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(peft_style())
    (tmp_path / "adapter_config.json").write_bytes(peft_config())
    assert inspect(tmp_path, models) == 0
    assert "names of      peft" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rank", "told"), [(2, "mixed; the text encoder's part merged"), (9, "merged, since its rank")]
)
def test_the_page_says_how_a_style_is_applied(
    rank: int, told: str, tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = {"rank": LAYOUT.rank, "layers": LAYOUT.layers}
    served = described_otherwise(models, tmp_path / "models", style=layout)
    (tmp_path / "ink.safetensors").write_bytes(kohya_style(rank=rank))
    assert inspect(tmp_path / "ink.safetensors", served) == 0
    assert f"applied       {told}" in capsys.readouterr().out


def test_the_page_names_the_second_text_encoder_of_sdxl(
    tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = "lora_te2_text_model_encoder_layers_0_self_attn_q_proj"
    tensors = {f"{written}.lora_down.weight": numbers(2, WIDTH), f"{written}.lora_up.weight": numbers(WIDTH, 2)}
    (tmp_path / "ink.safetensors").write_bytes(save(tensors))
    layers = LAYERS | {"text_encoder_2": LAYERS["text_encoder"]}
    served = described_otherwise(models, tmp_path / "models", layers=layers)
    assert inspect(tmp_path / "ink.safetensors", served) == 0
    assert "applied       the second text encoder's part merged" in capsys.readouterr().out


def test_a_file_that_does_not_fit_gets_its_page_and_the_reason(
    tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = {f"unet.{QUERY}.{name}.lora_A.weight": numbers(2, CHANNELS) for name in "gfedcba"} | {"emb": numbers(4)}
    (tmp_path / "odd.safetensors").write_bytes(save(tensors))
    assert inspect(tmp_path / "odd.safetensors", models) == WRONG
    said = capsys.readouterr()
    assert f"unmatched     8: unet.{QUERY}.a, " in said.out
    assert "and 3 more" in said.out
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(("name", "told"), [("none.safetensors", "does not exist"), ("", "holds no adapter_model")])
def test_a_path_that_holds_no_style_is_said(
    name: str, told: str, tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect(tmp_path / name, models) == WRONG
    assert told in capsys.readouterr().err


def test_without_models_the_file_is_still_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ink.safetensors").write_bytes(kohya_style())
    assert inspect(tmp_path / "ink.safetensors", tmp_path / "none") == WRONG
    said = capsys.readouterr()
    assert "sha256" in said.out
    assert "the file is sound; whether it fits cannot be said" in said.err


def test_the_plot_is_written_where_it_was_asked_for(tmp_path: Path, models: Path) -> None:
    (tmp_path / "ink.safetensors").write_bytes(kohya_style())
    assert inspect(tmp_path / "ink.safetensors", models, "--plot", str(tmp_path / "ink.png")) == 0
    with Image.open(tmp_path / "ink.png") as plot:
        assert (plot.format, plot.width) == ("PNG", WIDTH_PX)


def test_the_bars_of_the_plot_are_as_long_as_their_norms() -> None:
    blocks = [BlockStrength(f"down {i}", {KINDS[0]: norm}) for i, norm in enumerate((4.0, 1.0))]
    plot = draw_strengths(blocks, "a", "b")
    colour = tuple(int(COLOURS[KINDS[0]][i : i + 2], 16) for i in (1, 3, 5))
    lengths = [
        sum(plot.getpixel((x, 112 + ROW_PX * row + ROW_PX // 2)) == colour for x in range(WIDTH_PX)) for row in (0, 1)
    ]
    assert lengths[0] == pytest.approx(4 * lengths[1], rel=0.02)


def test_a_style_that_does_nothing_is_drawn_too() -> None:
    assert draw_strengths([BlockStrength("middle", {KINDS[0]: 0.0})], "a", "b").width == WIDTH_PX
