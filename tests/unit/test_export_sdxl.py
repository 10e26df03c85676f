"""Checkpoints of SDXL's layout, and ControlNets beside a checkpoint, without torch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_checkpoints import CONFIGS, TENSORS, WEIGHT_FILES, change_config, write_checkpoint, write_json
from safetensors.numpy import save_file

from export.checkpoint import Checkpoint, open_checkpoint
from export.description import describe
from export.errors import ExportError
from export.graph_cache import file_name
from export.profiles import profiles_of
from export.specs import Axis, Device, Graph, Precision, graphs_of, precision_of

UNET = {"cross_attention_dim": 80, "addition_embed_type": "text_time", "block_out_channels": [32, 64, 64]}
SECOND = {"architectures": ["CLIPTextModelWithProjection"], "hidden_size": 48, "projection_dim": 40, "vocab_size": 514}
CONTROLNET = {**UNET, "_class_name": "ControlNetModel", "conditioning_channels": 3}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_sdxl(tmp_path / "checkpoint")


def write_sdxl(folder: Path) -> Path:
    write_checkpoint(folder)
    write_json(folder / "model_index.json", {"_class_name": "StableDiffusionXLPipeline"})
    change_config(folder, "unet", **UNET)
    write_json(folder / "text_encoder_2" / "config.json", SECOND)
    tensors = {"text_model.embeddings.x": np.ones(2, np.float16), "text_projection.weight": np.ones((2, 3), np.float16)}
    save_file(tensors, folder / "text_encoder_2" / "model.safetensors")
    for name in ("tokenizer", "tokenizer_2"):
        write_json(folder / name / "vocab.json", {"!": 0, "<|startoftext|>": 1, "<|endoftext|>": 2})
        (folder / name / "merges.txt").write_text("#version: 0.2\n")
    write_json(folder / "tokenizer_2" / "tokenizer_config.json", {"pad_token": "!"})
    return folder


def write_controlnet(folder: Path, **changes: Any) -> Path:
    write_json(folder / "config.json", {**CONTROLNET, **changes})
    save_file({"conv_in.weight": np.full((2, 4), 3, np.float16)}, folder / WEIGHT_FILES["unet"])
    return folder


def with_controls(folder: Path, tmp_path: Path, *names: str) -> Checkpoint:
    return open_checkpoint(str(folder), {name: write_controlnet(tmp_path / name) for name in names})


def graph_of(checkpoint: Checkpoint, name: str, style_rank: int = 0) -> Graph:
    return next(graph for graph in graphs_of(checkpoint.architecture, style_rank) if graph.name == name)


def decode(latents: np.ndarray) -> np.ndarray:
    return np.zeros((len(latents), latents.shape[2] * 8, latents.shape[3] * 8, 3), np.uint8)


def test_sdxl_has_five_models_in_the_order_they_are_built(folder: Path) -> None:
    names = [graph.name for graph in graphs_of(open_checkpoint(str(folder)).architecture)]
    assert names == ["text_encoder", "text_encoder_2", "unet", "vae_decoder", "vae_encoder"]


def test_its_unet_takes_pooled_text_and_sizes_besides(folder: Path) -> None:
    unet = graph_of(open_checkpoint(str(folder)), "unet")
    assert [tensor.name for tensor in unet.inputs][3:] == ["text_embeds", "time_ids"]
    assert (unet.inputs[2].dims[1], unet.inputs[3].dims, unet.inputs[4].dims) == (80, (40,), (6,))


def test_its_vae_stays_fp32_whatever_the_rest_computes_in(folder: Path) -> None:
    checkpoint = open_checkpoint(str(folder))
    precisions = {graph.name: precision_of(graph, Precision.FP16) for graph in graphs_of(checkpoint.architecture)}
    assert precisions["vae_decoder"] is precisions["vae_encoder"] is Precision.FP32
    assert precisions["unet"] is precisions["text_encoder_2"] is Precision.FP16


def test_its_sizes_go_beyond_sd1s_in_steps_of_32_px(folder: Path) -> None:
    encoder = graph_of(open_checkpoint(str(folder)), "vae_encoder")
    height = encoder.inputs[0].dims[0]
    assert isinstance(height, Axis)
    assert (height.minimum, height.maximum, height.multiple) == (256, 1536, 32)


def test_a_text_encoder_that_is_read_before_its_last_layer_has_a_graph_of_its_own(folder: Path, tmp_path: Path) -> None:
    sdxl, sd1 = open_checkpoint(str(folder)), open_checkpoint(str(write_checkpoint(tmp_path / "sd1")))
    assert sdxl.shape_key("text_encoder") == sd1.shape_key("text_encoder")
    names = [file_name(graph_of(one, "text_encoder"), one, Precision.FP32) for one in (sdxl, sd1)]
    assert names[0] != names[1]


def test_description_says_what_the_orchestrator_must_do_otherwise(folder: Path) -> None:
    checkpoint = open_checkpoint(str(folder))
    told = describe(checkpoint, graphs_of(checkpoint.architecture), "small", decode)
    assert (told["family"], told["cross_attention_dim"], told["size_step_px"]) == ("sdxl", 80, 32)
    assert (told["pad_ids"], told["zeros_for_no_negative"]) == ({"text_encoder_2": 0}, True)
    assert (told["min_size_px"], told["max_size_px"]) == (256, 1536)
    assert set(told["layers"]) == {"unet", "text_encoder", "text_encoder_2"}
    assert "controls" not in told


def test_tokenizers_of_different_vocabularies_are_refused(folder: Path) -> None:
    write_json(folder / "tokenizer_2" / "vocab.json", {"!": 1})
    checkpoint = open_checkpoint(str(folder))
    with pytest.raises(ExportError, match="two tokenizers of different vocabularies"):
        describe(checkpoint, graphs_of(checkpoint.architecture), "small", decode)


@pytest.mark.parametrize(
    ("component", "changes", "sentence"),
    [
        ("text_encoder_2", {"architectures": ["CLIPTextModel"]}, "is a CLIPTextModel; CLIPTextModelWithProjection"),
        ("text_encoder_2", {"hidden_size": 32}, r"text encoder of width 32 \+ 32 with a UNet that expects 80"),
        ("unet", {"addition_embed_type": None}, "sets addition_embed_type to None; SDXL's base UNet is served"),
        ("unet", {"in_channels": 8}, "takes 8 channels"),
    ],
)
def test_networks_that_are_not_sdxls_are_refused(
    folder: Path, component: str, changes: dict[str, Any], sentence: str
) -> None:
    change_config(folder, component, **changes)
    with pytest.raises(ExportError, match=sentence):
        open_checkpoint(str(folder))


def test_a_unet_of_nine_channels_takes_the_mask_and_the_masked_picture_apart(folder: Path) -> None:
    change_config(folder, "unet", in_channels=9)
    write_json(folder / "model_index.json", {"_class_name": "StableDiffusionXLInpaintPipeline"})
    checkpoint = open_checkpoint(str(folder))
    unet = graph_of(checkpoint, "unet")
    assert [tensor.name for tensor in unet.inputs][3:] == ["text_embeds", "time_ids", "masked"]
    assert (unet.inputs[0].dims[0], unet.inputs[-1].dims[0]) == (4, 5)
    assert unet.inputs[0].dims[1:] == unet.inputs[-1].dims[1:]
    told = describe(checkpoint, graphs_of(checkpoint.architecture), "small", decode)
    assert (told["inpainting"], told["latent_channels"]) == (True, 4)


def test_a_controlnet_beside_a_unet_of_nine_channels_is_fused_with_it(folder: Path, tmp_path: Path) -> None:
    change_config(folder, "unet", in_channels=9)
    fused = graph_of(with_controls(folder, tmp_path, "depth"), "unet_controlnet")
    assert [tensor.name for tensor in fused.inputs][-3:] == ["masked", "control_depth", "control_scales"]


def test_controlnets_are_fused_with_the_unet_in_one_more_model(folder: Path, tmp_path: Path) -> None:
    checkpoint = with_controls(folder, tmp_path, "depth", "canny")
    fused = graph_of(checkpoint, "unet_controlnet")
    assert [tensor.name for tensor in fused.inputs][3:] == [
        *("text_embeds", "time_ids", "control_depth", "control_canny", "control_scales")
    ]
    assert fused.components == ("unet", "controlnet_depth", "controlnet_canny")
    assert fused.inputs[-1].dims == (2,)
    assert "unet" in {graph.name for graph in graphs_of(checkpoint.architecture)}


def test_what_a_controlnet_sees_is_as_large_as_the_picture(folder: Path, tmp_path: Path) -> None:
    fused = graph_of(with_controls(folder, tmp_path, "depth"), "unet_controlnet")
    for profile in profiles_of(fused, fused.batching[Device.GPU]):
        for latents, seen in zip(profile.shapes["sample"], profile.shapes["control_depth"], strict=True):
            assert (latents[0], 8 * latents[2], 8 * latents[3]) == seen[:3]


def test_fused_weights_are_both_networks(folder: Path, tmp_path: Path) -> None:
    checkpoint = with_controls(folder, tmp_path, "depth")
    weights = checkpoint.weights_of(graph_of(checkpoint, "unet_controlnet"))
    assert set(weights) == {*TENSORS["unet"], "controlnet_depth.conv_in.weight"}
    assert len(weights) == 4 and weights["controlnet_depth.conv_in.weight"][0, 0] == 3


def test_a_controlnet_is_part_of_the_weights_name_and_of_no_other_models(folder: Path, tmp_path: Path) -> None:
    plain, fused = open_checkpoint(str(folder)), with_controls(folder, tmp_path, "depth")
    told = [describe(one, graphs_of(one.architecture), "small", decode) for one in (plain, fused)]
    assert told[0]["weights_sha256"] != told[1]["weights_sha256"]
    assert told[0]["models"]["unet"] == told[1]["models"]["unet"] != told[1]["models"]["unet_controlnet"]
    assert told[1]["controls"] == ["depth"]


def test_the_fused_graph_depends_on_the_controlnets_shape(folder: Path, tmp_path: Path) -> None:
    one = with_controls(folder, tmp_path, "depth")
    wide = write_controlnet(tmp_path / "wide", conditioning_embedding_out_channels=[8, 8])
    other = open_checkpoint(str(folder), {"depth": wide})
    names = [file_name(graph_of(each, "unet_controlnet"), each, Precision.FP32) for each in (one, other)]
    assert names[0] != names[1]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"_class_name": "T2IAdapter"}, "is a T2IAdapter; ControlNetModel is served"),
        ({"cross_attention_dim": 768}, "has cross_attention_dim 768, which the UNet of checkpoint has not"),
        ({"conditioning_channels": 4}, "three channels"),
    ],
)
def test_controlnets_that_do_not_belong_to_the_checkpoint_are_refused(
    folder: Path, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ExportError, match=sentence):
        open_checkpoint(str(folder), {"depth": write_controlnet(tmp_path / "other", **changes)})


def test_names_of_controlnets_are_names_of_tensors(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"--controlnet is De pth="):
        open_checkpoint(str(folder), {"De pth": write_controlnet(tmp_path / "other")})


def test_sd1_takes_controlnets_too(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "sd1")
    config = {**CONFIGS["unet"], "addition_embed_type": None}
    controlnet = write_controlnet(tmp_path / "depth", **(config | {"_class_name": "ControlNetModel"}))
    fused = graph_of(open_checkpoint(str(folder), {"depth": controlnet}), "unet_controlnet")
    assert [tensor.name for tensor in fused.inputs][3:] == ["control_depth", "control_scales"]
    assert fused.batching[Device.GPU].max_rows == 20
