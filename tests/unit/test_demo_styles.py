"""The demo's styles: filters that draw their training pictures, and the files that came of it; nothing here needs torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo.filters import STYLES, filtered, unfiltered

FOLDER = Path(__file__).parents[2] / "demo" / "styles"


def gradient() -> Image.Image:
    """64 x 64 pixels of modest colours with one hard border."""
    down, across = np.mgrid[0:64, 0:64]
    return Image.fromarray(
        np.stack([90 + down, 110 + across, np.where(across < 32, 90, 160)], axis=-1).astype(np.uint8)
    )


@pytest.mark.parametrize("name", STYLES)
def test_a_filter_changes_the_picture_and_the_same_seed_gives_the_same(name: str) -> None:
    first = filtered(name, gradient(), 3)

    assert first.tobytes() == filtered(name, gradient(), 3).tobytes()
    assert np.abs(np.asarray(first, float) - np.asarray(gradient(), float)).mean() > 5


@pytest.mark.parametrize("name", STYLES)
def test_a_change_of_colours_can_be_undone(name: str) -> None:
    plain = np.asarray(gradient(), np.float32) / 255
    toned = Image.fromarray(np.rint(STYLES[name].tone(plain) * 255).clip(0, 255).astype(np.uint8))

    assert np.abs(np.asarray(unfiltered(name, toned), float) - np.asarray(gradient(), float)).max() <= 4


@pytest.mark.parametrize("name", STYLES)
def test_every_style_is_a_peft_folder_as_trainers_write_it(name: str) -> None:
    settings = json.loads((FOLDER / name / "adapter_config.json").read_text(encoding="utf-8"))

    assert (settings["r"], settings["lora_alpha"]) == (8, 32)
    assert set(settings["target_modules"]) == {"to_q", "to_k", "to_v", "to_out.0"}
    assert settings["base_model_name_or_path"] == "remarque-demo"
    assert {path.name for path in (FOLDER / name).iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


def test_all_styles_together_are_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 3_000_000
