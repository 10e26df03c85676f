"""Layers of a UNet and a text encoder that is a few numbers wide, and style files for them as trainers write them."""

import json

import numpy as np
from safetensors.numpy import save
from small_checkpoint import WIDTH, small_checkpoint

from orchestrator.clients.weights import read_weights
from orchestrator.diffusion.lora import read_lora
from orchestrator.diffusion.style_vector import StyleLayout
from orchestrator.imaging.provenance import StyleRecord
from orchestrator.style_ways import AppliedStyle, Style

CHANNELS = 8
_ATTENTION = "attentions.0.transformer_blocks.0"


def _block(prefix: str) -> dict[str, tuple[int, ...]]:
    c = CHANNELS
    return {
        f"{prefix}.resnets.0.conv1": (c, c, 3, 3),
        f"{prefix}.resnets.0.time_emb_proj": (c, 4 * c),
        f"{prefix}.attentions.0.proj_in": (c, c, 1, 1),
        f"{prefix}.{_ATTENTION}.attn1.to_q": (c, c),
        f"{prefix}.{_ATTENTION}.attn1.to_out.0": (c, c),
        f"{prefix}.{_ATTENTION}.attn2.to_k": (c, WIDTH),
        f"{prefix}.{_ATTENTION}.ff.net.0.proj": (2 * c, c),
    }


LAYERS: dict[str, dict[str, tuple[int, ...]]] = {
    "unet": {
        "conv_in": (CHANNELS, 4, 3, 3),
        "time_embedding.linear_1": (4 * CHANNELS, CHANNELS),
        **_block("down_blocks.0"),
        "down_blocks.0.downsamplers.0.conv": (CHANNELS, CHANNELS, 3, 3),
        **_block("mid_block"),
        **_block("up_blocks.0"),
        "up_blocks.0.upsamplers.0.conv": (CHANNELS, CHANNELS, 3, 3),
    },
    "text_encoder": {
        "encoder.layers.0.self_attn.q_proj": (WIDTH, WIDTH),
        "encoder.layers.0.self_attn.out_proj": (WIDTH, WIDTH),
        "encoder.layers.0.mlp.fc1": (4 * WIDTH, WIDTH),
    },
}
ATTENTION = tuple(name for name in LAYERS["unet"] if ".attn" in name)
LAYOUT = StyleLayout(
    rank=8, layers=ATTENTION, shapes=tuple((s[0], s[1]) for s in map(LAYERS["unet"].get, ATTENTION) if s)
)
MODELS = {"unet": "1" * 64, "text_encoder": "2" * 64}
STYLED = small_checkpoint(layers=LAYERS, style_layout=LAYOUT, models=MODELS)
QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
KEY = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
CONV = "down_blocks.0.resnets.0.conv1"


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32) * 0.1


def kohya_style(rank: int = 2, text_width: int = WIDTH, dtype: type = np.float16) -> bytes:
    """A file as sd-scripts writes it: factors and an alpha for two layers of the UNet and one of the text encoder."""
    shapes = {
        f"lora_unet_{QUERY.replace('.', '_')}": (CHANNELS, CHANNELS),
        f"lora_unet_{KEY.replace('.', '_')}": (CHANNELS, text_width),
        "lora_te_text_model_encoder_layers_0_mlp_fc1": (4 * WIDTH, WIDTH),
    }
    tensors = {}
    for i, (name, (out, into)) in enumerate(shapes.items()):
        tensors[f"{name}.lora_down.weight"] = numbers(rank, into, seed=i).astype(dtype)
        tensors[f"{name}.lora_up.weight"] = numbers(out, rank, seed=i).astype(dtype)
        tensors[f"{name}.alpha"] = np.array(4.0, dtype)
    return save(tensors, {"ss_network_module": "networks.lora"})


def peft_config(**changes: object) -> bytes:
    config: dict[str, object] = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "init_lora_weights": True}
    return json.dumps(config | changes).encode()


def peft_style(rank: int = 2, **changes: np.ndarray) -> bytes:
    """The safetensors of a folder that peft saved; :func:`peft_config` goes beside it."""
    tensors = {
        f"base_model.model.{QUERY}.lora_A.weight": numbers(rank, CHANNELS),
        f"base_model.model.{QUERY}.lora_B.weight": numbers(CHANNELS, rank),
    }
    return save(tensors | changes)


def applied_style(rank: int = 2, weight: float = 1.0, sha256: str = "a" * 64) -> AppliedStyle:
    """:func:`kohya_style` as a job that was admitted has it, under a hash of one's own."""
    found = read_weights(kohya_style(rank=rank))
    lora = read_lora(found.tensors, {}, STYLED)
    kept = Style(sha256=sha256, identity=sha256, size_bytes=found.size_bytes, dtypes=found.dtypes, lora=lora)
    record = StyleRecord(name="ink", sha256=sha256, weight=weight)
    return AppliedStyle(style=kept, weight=weight, path="gs://b/ink", record=record)
