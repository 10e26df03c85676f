"""What diffusers and transformers assume where a network's config is silent.

SD 1.5 as first published says a third of what the same checkpoint says after today's ``save_pretrained``; filled in,
the two are equal and share their graphs. A test compares this table with the libraries.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

_TEXT_ENCODER: Final[Mapping[str, Any]] = {
    "hidden_act": "quick_gelu",
    "hidden_size": 512,
    "intermediate_size": 2048,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "num_attention_heads": 8,
    "num_hidden_layers": 12,
    "vocab_size": 49408,
    "eos_token_id": 49407,
}
DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "text_encoder": _TEXT_ENCODER,
    "text_encoder_2": {**_TEXT_ENCODER, "projection_dim": 512},
    "unet": {
        "act_fn": "silu",
        "addition_embed_type_num_heads": 64,
        "attention_head_dim": 8,
        "attention_type": "default",
        "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": False,
        "class_embeddings_concat": False,
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
        "cross_attention_dim": 1280,
        "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
        "downsample_padding": 1,
        "dropout": 0.0,
        "dual_cross_attention": False,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "only_cross_attention": False,
        "out_channels": 4,
        "resnet_out_scale_factor": 1.0,
        "resnet_skip_time_act": False,
        "resnet_time_scale_shift": "default",
        "time_embedding_type": "positional",
        "transformer_layers_per_block": 1,
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
        "upcast_attention": False,
        "use_linear_projection": False,
    },
    "vae": {
        "act_fn": "silu",
        "block_out_channels": [64],
        "down_block_types": ["DownEncoderBlock2D"],
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 1,
        "mid_block_add_attention": True,
        "norm_num_groups": 32,
        "out_channels": 3,
        "scaling_factor": 0.18215,
        "up_block_types": ["UpDecoderBlock2D"],
        "use_post_quant_conv": True,
        "use_quant_conv": True,
    },
}
# What says who wrote a config, or steers a pipeline and not the network.
_TRIVIA: Final = frozenset({"dtype", "torch_dtype", "sample_size", "force_upcast"})


def _kind(component: str) -> str:
    """ControlNets have names of their own and are of one kind, whose configs say everything."""
    return component.partition("_")[0] if component.startswith("controlnet_") else component


def complete(component: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """A component's config with every silent default said."""
    return {**DEFAULTS.get(_kind(component), {}), **config}


def shape_key(component: str, config: Mapping[str, Any]) -> str:
    """What a component's traced graph depends on, as canonical JSON: equal for checkpoints that share a graph."""
    known = DEFAULTS.get(_kind(component), {})
    said = complete(component, config)
    # Of a text encoder's config only this table shapes the network; a UNet or VAE may set keys that the table lacks.
    kept = {
        key: value
        for key, value in said.items()
        if key in known
        or not (component.startswith("text_encoder") or value is None or key.startswith("_") or key in _TRIVIA)
    }
    return json.dumps(kept, sort_keys=True)
