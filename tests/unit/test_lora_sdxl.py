"""Styles for SDXL: two text encoders, and Stability's names for a UNet of three blocks."""

import pytest

from orchestrator.diffusion.lora_names import Layer, spellings
from orchestrator.diffusion.lora_scales import metadata_of

TEXT = "encoder.layers.0.self_attn.q_proj"
BLOCK = "transformer_blocks.0.attn1.to_q"
UNET = (
    "conv_in",
    "add_embedding.linear_1",
    *(f"down_blocks.{block}.resnets.{i}.conv1" for block in (0, 1, 2) for i in (0, 1)),
    *(f"up_blocks.{block}.resnets.{i}.conv1" for block in (0, 1, 2) for i in (0, 1, 2)),
    f"down_blocks.1.attentions.0.{BLOCK}",
    f"down_blocks.2.attentions.1.{BLOCK}",
    f"mid_block.attentions.0.{BLOCK}",
    f"up_blocks.0.attentions.2.{BLOCK}",
    "up_blocks.0.upsamplers.0.conv",
)
LAYERS = {"unet": UNET, "text_encoder": (TEXT,), "text_encoder_2": (TEXT, "text_projection")}


@pytest.mark.parametrize(
    ("written", "network"),
    [
        (f"text_encoder.text_model.{TEXT}", "text_encoder"),
        (f"text_encoder_2.text_model.{TEXT}", "text_encoder_2"),
        ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", "text_encoder"),
        ("lora_te2_text_model_encoder_layers_0_self_attn_q_proj", "text_encoder_2"),
        ("text_encoder_2.text_model.encoder.layers.0.self_attn.to_q", "text_encoder_2"),
    ],
)
def test_each_text_encoder_has_its_own_names(written: str, network: str):
    assert spellings(LAYERS)[written] == Layer(network, TEXT)


def test_the_second_encoders_projection_lies_outside_its_transformer():
    assert spellings(LAYERS)["lora_te2_text_projection"] == Layer("text_encoder_2", "text_projection")


def test_a_checkpoint_with_one_text_encoder_knows_no_second():
    names = spellings({"unet": UNET, "text_encoder": (TEXT,)})
    assert not any(name.startswith(("lora_te2_", "text_encoder_2.")) for name in names)


@pytest.mark.parametrize(
    ("written", "layer"),
    [
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", f"down_blocks.1.attentions.0.{BLOCK}"),
        ("lora_unet_input_blocks_8_1_transformer_blocks_0_attn1_to_q", f"down_blocks.2.attentions.1.{BLOCK}"),
        ("lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q", f"mid_block.attentions.0.{BLOCK}"),
        ("lora_unet_output_blocks_2_1_transformer_blocks_0_attn1_to_q", f"up_blocks.0.attentions.2.{BLOCK}"),
        ("lora_unet_output_blocks_2_2_conv", "up_blocks.0.upsamplers.0.conv"),
        ("lora_unet_label_emb_0_0", "add_embedding.linear_1"),
    ],
)
def test_stabilitys_block_numbers_are_sdxls(written: str, layer: str):
    assert spellings(LAYERS)[written] == Layer("unet", layer)


def test_metadata_scales_each_text_encoder_by_itself():
    said = '{"unet.r": 4, "unet.lora_alpha": 4, "text_encoder_2.r": 8, "text_encoder_2.lora_alpha": 4}'
    assert set(metadata_of({"lora_adapter_metadata": said})) == {"unet", "text_encoder_2"}
