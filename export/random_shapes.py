"""The shapes of checkpoint that ``random_checkpoint`` writes: published ones, and tiny ones for tests."""

from collections.abc import Mapping
from typing import Any, Final

Shape = Mapping[str, Mapping[str, Any]]
"""Config of each component; whatever a network's class assumes by itself is left out."""

_TRAINED: Final[Mapping[str, Any]] = {
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
_SD1_SCHEDULER: Final[Mapping[str, Any]] = {
    "_class_name": "PNDMScheduler",
    **_TRAINED,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
}
_SDXL_SCHEDULER: Final[Mapping[str, Any]] = {
    "_class_name": "EulerDiscreteScheduler",
    **_TRAINED,
    "interpolation_type": "linear",
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
# As published; the pooled output then reads the largest id, which is the end of the text.
_PUBLISHED_ENDS: Final[Mapping[str, Any]] = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
_CLIP_L: Final[Mapping[str, Any]] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 49408,
    **_PUBLISHED_ENDS,
}
_TINY_CLIP: Final[Mapping[str, Any]] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 514,
}
_TINY_VAE: Final[Mapping[str, Any]] = {
    "sample_size": 64,
    "block_out_channels": (16, 16, 32, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
}

SHAPES: Final[Mapping[str, Shape]] = {
    "sd15": {
        "scheduler": _SD1_SCHEDULER,
        "text_encoder": _CLIP_L,
        "unet": {
            "sample_size": 64,
            "block_out_channels": (320, 640, 1280, 1280),
            "layers_per_block": 2,
            "attention_head_dim": 8,
            "cross_attention_dim": 768,
        },
        "vae": {"sample_size": 512, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2},
    },
    "tiny": {
        "scheduler": _SD1_SCHEDULER,
        "text_encoder": _TINY_CLIP,
        "unet": {
            "sample_size": 64,
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "attention_head_dim": 2,
            "cross_attention_dim": 32,
            "norm_num_groups": 8,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        },
        "vae": _TINY_VAE,
    },
    "sdxl": {
        "scheduler": _SDXL_SCHEDULER,
        "text_encoder": {**_CLIP_L, "projection_dim": 768},
        "text_encoder_2": {
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "num_attention_heads": 20,
            "vocab_size": 49408,
            "hidden_act": "gelu",
            "projection_dim": 1280,
            **_PUBLISHED_ENDS,
        },
        "unet": {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "layers_per_block": 2,
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        },
        "vae": {
            "sample_size": 1024,
            "block_out_channels": (128, 256, 512, 512),
            "layers_per_block": 2,
            "scaling_factor": 0.13025,
            "force_upcast": True,
        },
    },
    "tiny-sdxl": {
        "scheduler": _SDXL_SCHEDULER,
        "text_encoder": _TINY_CLIP,
        "text_encoder_2": {**_TINY_CLIP, "hidden_size": 48, "hidden_act": "gelu", "projection_dim": 40},
        "unet": {
            "sample_size": 128,
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "transformer_layers_per_block": (1, 2),
            "attention_head_dim": (2, 4),
            "cross_attention_dim": 80,
            "norm_num_groups": 8,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 88,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        },
        "vae": {**_TINY_VAE, "scaling_factor": 0.13025, "force_upcast": True},
    },
}
