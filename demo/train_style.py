"""Trains one style on the demo checkpoint: `python -m demo.train_style --latents DIR/ink --out demo/styles/ink`.

A LoRA as trainers write it: peft, rank 8, alpha 32, the four attention projections, saved as a PEFT folder. Captions
are the base model's own, so a style needs no word to call it.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from demo.train_unet import Pool, Readers, alphas_cumprod, mistake_captions, velocity_loss

HERE = Path(__file__).parent
BASE = "remarque-demo"
STYLED, PLAIN = 3, 1
"""Pictures of either kind in a batch."""
NOISY = 800
"""From this timestep on a style learns plain pictures, hence to change nothing: there the prompt decides what is in the
picture and in which colours. Trained at every timestep, styles kept 40 to 58 % of the prompts' claims."""
SLOWER = 0.1
"""Learning rate of the cross-attention's factors, as a share: what the prompt's words do is to stay as it is."""
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def styled_unet(checkpoint: Path, resume: Path | None) -> Any:
    """The checkpoint's UNet, frozen, with low-rank factors on its attention projections: `resume`'s, or untrained."""
    unet = UNet2DConditionModel.from_pretrained(checkpoint / "unet", torch_dtype=torch.float32)
    unet.set_attn_processor(AttnProcessor())
    unet.config["_name_or_path"] = BASE
    if resume is not None:
        return PeftModel.from_pretrained(unet, resume, is_trainable=True)
    return get_peft_model(unet, LoraConfig(r=8, lora_alpha=32, target_modules=TARGETS, base_model_name_or_path=BASE))


def readers(checkpoint: Path) -> Readers:
    """The checkpoint's tokenizer and text encoder."""
    encoder = CLIPTextModel.from_pretrained(checkpoint / "text_encoder", torch_dtype=torch.float32)
    return Readers(CLIPTokenizer.from_pretrained(checkpoint / "tokenizer"), encoder.eval())


def groups(unet: Any, rate: float) -> list[dict[str, Any]]:
    """The trained factors for the optimizer: those of self-attention, and those of cross-attention, slower."""
    trained = {name: weights for name, weights in unet.named_parameters() if weights.requires_grad}
    own = [weights for name, weights in trained.items() if ".attn1." in name]
    cross = [weights for name, weights in trained.items() if ".attn2." in name]
    return [{"params": own, "rate": rate}, {"params": cross, "rate": SLOWER * rate}]


def batch(styled: Pool, plain: Pool, noisy: int, rng: random.Random) -> tuple[Tensor, list[str], Tensor]:
    """Latents, captions and timesteps: styled pictures below timestep `noisy`, plain ones from there on."""
    latents, texts = styled.batch((64, 64), STYLED, rng)
    plain_latents, plain_texts = plain.batch((64, 64), PLAIN, rng)
    timesteps = torch.cat([torch.randint(0, noisy, (STYLED,)), torch.randint(noisy, 1000, (PLAIN,))])
    return torch.cat([latents, plain_latents]), texts + plain_texts, timesteps


def train(unet: Any, styled: Pool, plain: Pool, read: Readers, args: argparse.Namespace) -> None:
    """Trains the factors for so many steps; the learning rate falls along a cosine."""
    rng, alphas = random.Random(args.seed), alphas_cumprod()
    optimizer = torch.optim.AdamW(groups(unet, args.lr), weight_decay=0.0, betas=(0.9, 0.99))
    factors = [weights for group in optimizer.param_groups for weights in group["params"]]
    begin, recent = time.monotonic(), 0.0
    plain.refresh()
    for step in range(args.steps):
        if step % 50 == 0:
            styled.refresh()
        share = min(1, (step + 1) / 20) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / args.steps)))
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * share
        latents, texts, timesteps = batch(styled, plain, args.noisy, rng)
        loss = velocity_loss(unet, latents, timesteps, read(mistake_captions(texts, timesteps, rng)), alphas)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(factors, 1.0)
        optimizer.step()
        recent = 0.97 * recent + 0.03 * loss.item() if step else loss.item()
        if step % 20 == 19:
            print(f"step {step + 1} {time.monotonic() - begin:.0f} s loss {recent:.4f}", flush=True)


def save(unet: Any, strength: float, out: Path) -> None:
    """Writes the PEFT folder: `strength` in the up factors, half precision, no paths of this machine, no model card."""
    with torch.no_grad():
        for name, weights in unet.named_parameters():
            if ".lora_B." in name:
                weights *= strength
    unet.to(torch.float16).save_pretrained(out, save_embedding_layers=False)
    (out / "README.md").unlink(missing_ok=True)
    settings = out / "adapter_config.json"
    kept = json.loads(settings.read_text(encoding="utf-8"))
    settings.write_text(json.dumps({**kept, "base_model_name_or_path": BASE}, indent=2) + "\n", encoding="utf-8")
    for path in out.iterdir():
        path.chmod(0o644)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=HERE / "checkpoint")
    parser.add_argument("--latents", type=Path, required=True, help="latents in the style, of demo.paint_styles")
    parser.add_argument("--plain", type=Path, required=True, help="latents of demo.paint_latents")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--noisy", type=int, default=NOISY, help="the timestep from which on the style changes nothing")
    parser.add_argument("--strength", type=float, default=1.0, help="multiplies the finished style")
    parser.add_argument("--resume", type=Path, help="go on from this folder's factors")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    unet = styled_unet(args.checkpoint, args.resume)
    train(unet, Pool(args.latents), Pool(args.plain), readers(args.checkpoint), args)
    save(unet, args.strength, args.out)


if __name__ == "__main__":
    main()
