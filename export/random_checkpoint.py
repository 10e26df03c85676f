"""Writes a checkpoint of random weights: SD 1.5's or SDXL's published shape, or a tiny one of either for tests.

    python export/random_checkpoint.py --shape sd15 --out /tmp/sd15-random
    python export/random_checkpoint.py --shape sdxl --controlnet depth --controlnet canny --out /tmp/sdxl-random

Such a checkpoint draws noise, but exports, loads and runs exactly as the trained one of the same shape. Each
--controlnet adds a folder ``controlnet_NAME`` beside the checkpoint's own; --inpainting gives the UNet nine channels.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from export.random_shapes import SHAPES, Shape

# What the ControlNet sees goes through these layers to latents' size; the first of the tiny ones is the UNet's own.
_TINY_CONTROL: Final = (8, 16, 16, 16)


def write(
    folder: Path, shape: str, seed: int = 0, controlnets: Sequence[str] = (), *, inpainting: bool = False
) -> None:
    """Writes a folder that diffusers' pipelines load: fp16 safetensors, drawn from ``seed``."""
    import torch

    configs = _inpainting(SHAPES[shape]) if inpainting else SHAPES[shape]
    vocabulary = _vocabulary(configs["text_encoder"]["vocab_size"])
    torch.manual_seed(seed)
    with _half():
        for component, make in _networks(configs, vocabulary, controlnets).items():
            make().save_pretrained(folder / component)
    _write_json(folder / "scheduler" / "scheduler_config.json", configs["scheduler"])
    _write_json(folder / "model_index.json", _index(configs, inpainting))
    _write_tokenizer(folder / "tokenizer", vocabulary, "<|endoftext|>")
    if "text_encoder_2" in configs:
        _write_tokenizer(folder / "tokenizer_2", vocabulary, "!")


def _inpainting(configs: Shape) -> Shape:
    """The same with a UNet that also sees a mask and the four channels of a masked picture."""
    return {**configs, "unet": {**configs["unet"], "in_channels": 9}}


def _networks(
    configs: Shape, vocabulary: Mapping[str, int], controlnets: Sequence[str]
) -> dict[str, Callable[[], Any]]:
    """What makes each network, one at a time: SDXL's UNet alone is 5 GB."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    first, last = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    ends = {"bos_token_id": first, "eos_token_id": last, "pad_token_id": last}
    blocks = len(configs["vae"]["block_out_channels"])
    vae_blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * blocks,
        "up_block_types": ("UpDecoderBlock2D",) * blocks,
        "latent_channels": 4,
    }
    networks: dict[str, Callable[[], Any]] = {
        "text_encoder": lambda: CLIPTextModel(CLIPTextConfig(**{**ends, **configs["text_encoder"]})),
        "unet": lambda: UNet2DConditionModel(**configs["unet"]),
        "vae": lambda: AutoencoderKL(**configs["vae"], **vae_blocks),
    }
    if "text_encoder_2" in configs:
        networks["text_encoder_2"] = lambda: CLIPTextModelWithProjection(
            CLIPTextConfig(**{**ends, **configs["text_encoder_2"]})
        )
    return networks | {f"controlnet_{name}": lambda: _controlnet(configs["unet"]) for name in controlnets}


def _controlnet(unet: Mapping[str, Any]) -> Any:
    """A ControlNet for a UNet of this shape; what training starts from zero is random too, so that it has a say."""
    import torch
    from diffusers import ControlNetModel

    # It sees latents alone, also beside a UNet that inpaints.
    left_out = ("sample_size", "up_block_types", "in_channels")
    said = {key: value for key, value in unet.items() if key not in left_out}
    if unet["block_out_channels"][0] < 64:
        said["conditioning_embedding_out_channels"] = _TINY_CONTROL
    network = ControlNetModel(**said)
    for name, parameter in network.named_parameters():
        if name.startswith(("controlnet_down_blocks", "controlnet_mid_block", "controlnet_cond_embedding.conv_out")):
            torch.nn.init.normal_(parameter, std=0.05)
    return network


@contextmanager
def _half() -> Iterator[None]:
    """Networks are made in fp16 from the start: SDXL's in fp32 first would need three times the memory."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _index(configs: Shape, inpainting: bool) -> dict[str, Any]:
    """``model_index.json``: which class each component is of."""
    kind = "InpaintPipeline" if inpainting else "Pipeline"
    shared = {
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", configs["scheduler"]["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if "text_encoder_2" not in configs:
        safety = {"requires_safety_checker": False, "safety_checker": [None, None]}
        return {"_class_name": f"StableDiffusion{kind}", **shared, **safety}
    return {
        "_class_name": f"StableDiffusionXL{kind}",
        **shared,
        "force_zeros_for_empty_prompt": True,
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
    }


def _vocabulary(size: int) -> dict[str, int]:
    """CLIP's byte alphabet without merges: every text tokenizes, one token a byte; the two ends are the last ids."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    tokens = letters + [f"{letter}</w>" for letter in letters]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return vocabulary | {"<|startoftext|>": size - 2, "<|endoftext|>": size - 1}


def _write_tokenizer(folder: Path, vocabulary: Mapping[str, int], pad_token: str) -> None:
    _write_json(folder / "vocab.json", vocabulary)
    (folder / "merges.txt").write_text("#version: 0.2\n", "utf-8")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": pad_token,
    }
    _write_json(folder / "tokenizer_config.json", config)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="tiny")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--controlnet", action="append", default=[], metavar="NAME", help="for example depth; may repeat"
    )
    parser.add_argument("--inpainting", action="store_true", help="a UNet that sees a mask and a masked picture")
    arguments = parser.parse_args()
    write(arguments.out, arguments.shape, arguments.seed, arguments.controlnet, inpainting=arguments.inpainting)
    print(f"{arguments.out}: {arguments.shape}, seed {arguments.seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
