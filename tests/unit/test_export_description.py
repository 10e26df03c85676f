"""``remarque.json`` and the tokenizer's files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_checkpoints import TENSORS, change_config, write_checkpoint, write_json
from safetensors.numpy import save_file

from export.checkpoint import open_checkpoint
from export.description import describe, fit_preview, write_tokenizer
from export.errors import ExportError
from export.specs import graphs_of

MATRIX = np.array([[0.1, 0.0, 0.02], [0.0, 0.12, 0.0], [-0.05, 0.0, 0.1], [0.03, 0.03, 0.03]])
BIAS = np.array([0.5, 0.45, 0.55])


def decode(latents: np.ndarray) -> np.ndarray:
    """A decoder that is the linear map above, each latent an 8x8 square of one colour."""
    colours = latents.transpose(0, 2, 3, 1) @ MATRIX + BIAS
    return (colours.clip(0, 1) * 255).round().astype(np.uint8).repeat(8, axis=1).repeat(8, axis=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint")


def description(folder: Path, style_rank: int = 8) -> dict[str, Any]:
    checkpoint = open_checkpoint(str(folder))
    return describe(checkpoint, graphs_of(checkpoint.architecture, style_rank), "small", decode)


def test_preview_finds_the_map_from_latents_to_colours() -> None:
    preview = fit_preview(decode, 4)

    np.testing.assert_allclose(preview["matrix"], MATRIX, atol=0.01)
    np.testing.assert_allclose(preview["bias"], BIAS, atol=0.01)


def test_preview_is_the_same_every_time() -> None:
    assert fit_preview(decode, 4) == fit_preview(decode, 4)


def test_description_names_the_weights_of_every_model(folder: Path) -> None:
    content = description(folder)

    assert content["format"] == 1
    assert content["family"] == "sd1"
    assert sorted(content["models"]) == ["text_encoder", "unet", "vae_decoder", "vae_encoder"]
    assert all(len(digest) == 64 for digest in (*content["models"].values(), content["weights_sha256"]))
    assert content["models"]["vae_decoder"] == content["models"]["vae_encoder"] != content["models"]["unet"]


@pytest.mark.parametrize("said", ["!", {"content": "!", "lstrip": False}])
@pytest.mark.parametrize("file", ["special_tokens_map.json", "tokenizer_config.json"])
def test_one_encoder_may_pad_with_another_token_than_the_end(folder: Path, file: str, said: Any) -> None:
    write_json(folder / "tokenizer" / "vocab.json", {"!": 3, "<|startoftext|>": 1, "<|endoftext|>": 2})
    write_json(folder / "tokenizer" / file, {"pad_token": said})

    assert description(folder)["pad_ids"] == {"text_encoder": 3}


def test_description_of_a_checkpoint_that_pads_with_the_end_says_nothing_of_it(folder: Path) -> None:
    write_json(folder / "tokenizer" / "tokenizer_config.json", {"pad_token": "<|endoftext|>"})

    assert "pad_ids" not in description(folder)


def test_padding_that_the_vocabulary_has_not_is_refused(folder: Path) -> None:
    write_json(folder / "tokenizer" / "tokenizer_config.json", {"pad_token": "<pad>"})

    with pytest.raises(ExportError, match="tokenizer pads with '<pad>', which its vocabulary has not"):
        description(folder)


def test_description_holds_the_sizes_the_networks_serve(folder: Path) -> None:
    content = description(folder)

    sizes = {key: content[key] for key in ("min_size_px", "max_size_px", "size_step_px", "vae_scale_factor")}
    assert sizes == {"min_size_px": 256, "max_size_px": 1024, "size_step_px": 64, "vae_scale_factor": 8}
    assert "native_size_px" not in content, "its UNet does not say the edge it was trained at"
    assert (content["latent_channels"], content["cross_attention_dim"], content["max_tokens"]) == (4, 32, 77)


def test_the_edge_that_the_unet_was_trained_at_is_told_in_pixels(folder: Path) -> None:
    change_config(folder, "unet", sample_size=40)

    assert description(folder)["native_size_px"] == 320


def test_scheduler_config_is_told_whole_and_nothing_is_added(folder: Path) -> None:
    config = {"skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1, "beta_schedule": "scaled_linear"}
    write_json(folder / "scheduler" / "scheduler_config.json", {"_class_name": "PNDMScheduler", **config})

    assert description(folder)["scheduler"] == config


def test_betas_listed_one_by_one_are_refused(folder: Path) -> None:
    write_json(folder / "scheduler" / "scheduler_config.json", {"trained_betas": [0.1, 0.2]})

    with pytest.raises(ExportError, match="lists trained_betas"):
        description(folder)


def test_tokenizer_files_are_copied(folder: Path, tmp_path: Path) -> None:
    write_tokenizer(open_checkpoint(str(folder)), tmp_path / "out")

    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / "tokenizer" / name).read_bytes()


def test_newer_tokenizer_file_is_taken_apart(folder: Path, tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        (folder / "tokenizer" / name).unlink()
    model = {"vocab": {"a": 0, "ab": 1}, "merges": [["a", "b"], "c d"]}
    write_json(folder / "tokenizer" / "tokenizer.json", {"model": model})

    write_tokenizer(open_checkpoint(str(folder)), tmp_path / "out")

    assert json.loads((tmp_path / "out" / "vocab.json").read_text()) == model["vocab"]
    assert (tmp_path / "out" / "merges.txt").read_text().splitlines() == ["#version: 0.2", "a b", "c d"]


def test_checkpoint_without_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer" / "merges.txt").unlink()

    with pytest.raises(ExportError, match="holds no CLIP tokenizer"):
        write_tokenizer(open_checkpoint(str(folder)), tmp_path / "out")


def test_description_lists_the_layers_that_a_style_can_change(folder: Path) -> None:
    assert description(folder)["layers"] == {"unet": {"conv_in": [2, 4]}, "text_encoder": {}}


def test_description_lists_the_layers_of_the_style_input_in_the_order_of_its_numbers(folder: Path) -> None:
    names = [f"mid_block.attentions.0.transformer_blocks.0.attn1.{name}" for name in ("to_v", "to_q", "to_out.0")]
    weights = {f"{name}.weight": np.ones((4, 2), np.float16) for name in (*names, "mid_block.resnets.0.conv1")}
    save_file(TENSORS["unet"] | weights, folder / "unet" / "diffusion_pytorch_model.safetensors")

    content = description(folder)

    assert content["style"] == {"rank": 8, "layers": sorted(names)}
    assert all(content["layers"]["unet"][name] == [4, 2] for name in names)


def test_description_of_a_unet_without_style_input_says_nothing_of_one(folder: Path) -> None:
    assert "style" not in description(folder)
    assert "style" not in description(folder, style_rank=0)
