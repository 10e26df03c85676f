"""What the orchestrator reads of a built model repository."""

import json
from pathlib import Path

import pytest
from small_checkpoint import small_tokenizer, write_repository

from orchestrator.checkpoint import read_checkpoint
from orchestrator.errors import ConfigError


def changed(folder: Path, **changes: object) -> Path:
    """A repository whose remarque.json says something else; None takes a field away."""
    path = write_repository(folder) / "remarque.json"
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not None}))
    return folder


def test_a_built_repository_is_read(tmp_path: Path):
    checkpoint = read_checkpoint(write_repository(tmp_path))
    assert (checkpoint.name, checkpoint.family, checkpoint.native_size_px) == ("small", "sd1", 512)
    assert (checkpoint.min_size_px, checkpoint.max_size_px, checkpoint.size_step_px) == (256, 1024, 64)
    assert checkpoint.tokenizer == small_tokenizer()
    assert checkpoint.preview.matrix[0] == pytest.approx((0.2, 0.0, 0.0))


def test_what_newer_builds_state_overrules_the_family(tmp_path: Path):
    checkpoint = read_checkpoint(changed(tmp_path, size_step_px=32, max_chunks=2, native_size_px=320))
    assert (checkpoint.size_step_px, checkpoint.max_chunks, checkpoint.native_size_px) == (32, 2, 320)


def test_models_beside_the_checkpoints_own_are_told_where_they_were_built(tmp_path: Path):
    plain = read_checkpoint(write_repository(tmp_path / "plain"))
    assert (plain.depth_size_px, plain.upscale_factor) == (None, None)
    more = read_checkpoint(changed(tmp_path / "more", depth={"size_px": 256}, upscaler={"factor": 2}))
    assert (more.depth_size_px, more.upscale_factor) == (256, 2)


@pytest.mark.parametrize("said", [True, False, None])
def test_whether_the_unet_was_trained_to_inpaint_is_read(tmp_path: Path, said: bool | None):
    assert read_checkpoint(changed(tmp_path, inpainting=said)).is_inpainting is bool(said)


def test_the_layout_of_the_input_for_styles_is_read(tmp_path: Path):
    layers = {"unet": {"a.to_q": [8, 6], "b.to_q": [8, 8], "conv": [8, 8, 3, 3]}}
    checkpoint = read_checkpoint(changed(tmp_path, layers=layers, style={"rank": 4, "layers": ["b.to_q", "a.to_q"]}))
    layout = checkpoint.style_layout
    assert (layout.rank, layout.layers, layout.shapes) == (4, ("b.to_q", "a.to_q"), ((8, 8), (8, 6)))
    assert layout.size == 4 * (16 + 14)


def test_a_repository_built_without_the_input_has_none(tmp_path: Path):
    assert read_checkpoint(write_repository(tmp_path / "old")).style_layout.size == 0
    assert read_checkpoint(changed(tmp_path / "off", style={"rank": 0, "layers": []})).style_layout.size == 0


def test_a_folder_that_was_never_built_says_what_builds_it(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no remarque.json can be read; `make triton` builds"):
        read_checkpoint(tmp_path)


def test_a_file_that_is_no_json_is_refused(tmp_path: Path):
    (write_repository(tmp_path) / "remarque.json").write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"format": 2}, "format 2, where format 1 is read"),
        ({"family": "sd3"}, "family sd3, where sd1, sdxl are served"),
        ({"weights_sha256": None}, "weights_sha256"),
        ({"latent_channels": "4"}, "latent_channels '4'"),
        ({"models": []}, "models"),
        ({"preview": {"matrix": [[1, 2, 3]], "bias": [0, 0, 0]}}, r"preview with a matrix \(1, 3\)"),
        ({"preview": None}, "preview"),
        ({"style": {"rank": 4, "layers": ["a.to_q"]}}, "style layers that hold a.to_q"),
        ({"style": {"rank": 4}}, "style of rank 4 in 0 layers"),
        ({"style": {"rank": "4", "layers": []}}, "style of rank '4'"),
        ({"depth": {"size_px": "256"}}, "depth with size_px '256'"),
        ({"upscaler": {"factor": 0}}, "upscaler with factor 0"),
        ({"upscaler": {}}, "factor"),
        ({"scheduler": {"beta_schedule": "squaredcos_cap_v2"}}, "squaredcos_cap_v2"),
    ],
)
def test_a_repository_of_another_version_or_family_is_refused(tmp_path: Path, changes: dict[str, object], told: str):
    with pytest.raises(ConfigError, match=told):
        read_checkpoint(changed(tmp_path, **changes))
