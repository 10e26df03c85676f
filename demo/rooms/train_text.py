"""Learns to read room captions: `python -m demo.rooms.train_text --minutes 3 --out DIR`.

Writes `tokenizer`, `text_encoder` and `text_encoder_2` in SDXL's form. Both encoders learn to say which room, which
style and whether it is empty, from the states that SDXL's UNet reads: those before the last layer, of the second one
the pooled text too. What a linear layer can read, cross-attention can.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from demo.rooms.captions import empty_caption, furnished_caption, unwanted
from demo.rooms.rooms import ROOM_TYPES, STYLES, room_of
from demo.train_tokenizer import learn_merges, write_tokenizer

WIDTHS = 64, 96
POOLED = 64
MERGES = 500
ROOMS = 20_000
"""Captions are made of rooms up to this number."""
CLASSES = len(ROOM_TYPES) + 1, len(STYLES) + 1, 2
"""Room, style, empty; class 0 says that the caption does not name it."""


def new_encoders(vocabulary: int) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Two untrained CLIP text models of three layers."""
    shared = {
        "vocab_size": vocabulary,
        "num_hidden_layers": 3,
        "max_position_embeddings": 77,
        "projection_dim": POOLED,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }
    first, second = (
        CLIPTextConfig(hidden_size=width, intermediate_size=3 * width, num_attention_heads=width // 32, **shared)
        for width in WIDTHS
    )
    return CLIPTextModel(first), CLIPTextModelWithProjection(second)


def captioned(rng: random.Random) -> tuple[str, tuple[int, int, int]]:
    """A caption and the class of each of its claims."""
    room = room_of(rng.randrange(ROOMS))
    kind = rng.random()
    if kind < 0.12:
        return unwanted(rng), (0, 0, 0)
    if kind < 0.24:
        text = empty_caption(room, rng)
        named = room.room_type.replace("_", " ") in text
        return text, (ROOM_TYPES.index(room.room_type) + 1 if named else 0, 0, 1)
    return furnished_caption(room, rng), (ROOM_TYPES.index(room.room_type) + 1, STYLES.index(room.style) + 1, 0)


def words(rng: random.Random) -> Counter[str]:
    """How often each word occurs in a few thousand captions."""
    found: Counter[str] = Counter()
    for _ in range(4000):
        found.update(captioned(rng)[0].lower().replace(",", " , ").replace(".", " . ").split())
    return found


def reading_loss(features: Tensor, heads: nn.ModuleList, wanted: Tensor) -> tuple[Tensor, float]:
    """Cross-entropy over all heads, and the share of captions read right in every one."""
    said = [head(features) for head in heads]
    losses = [functional.cross_entropy(logits, wanted[:, i]) for i, logits in enumerate(said)]
    right = torch.stack([logits.argmax(1) == wanted[:, i] for i, logits in enumerate(said)]).all(0)
    return torch.stack(losses).sum(), float(right.float().mean())


def train(tokenizer: CLIPTokenizer, minutes: float, rng: random.Random, out: Path) -> None:
    """Trains for so many minutes on the clock and writes both encoders."""
    encoders = new_encoders(len(tokenizer))
    heads = nn.ModuleList(
        nn.ModuleList(nn.Linear(width, classes) for classes in CLASSES) for width in (*WIDTHS, POOLED)
    )
    parameters = [*encoders[0].parameters(), *encoders[1].parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01, betas=(0.9, 0.98))
    begin, step = time.monotonic(), 0
    while (spent := (time.monotonic() - begin) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 50) * max(0.02, 1 - spent)
        pairs = [captioned(rng) for _ in range(32)]
        wanted = torch.tensor([classes for _, classes in pairs])
        texts = [text for text, _ in pairs]
        ids = tokenizer(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
        ends = (ids == len(tokenizer) - 1).int().argmax(1)
        made = [encoder(input_ids=ids, output_hidden_states=True) for encoder in encoders]
        rows = torch.arange(len(ids))
        features = [one.hidden_states[-2][rows, ends] for one in made] + [made[1].text_embeds]
        scores = [reading_loss(read, one, wanted) for read, one in zip(features, heads, strict=True)]  # type: ignore[arg-type]
        loss = torch.stack([score for score, _ in scores]).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 0:
            right = " ".join(f"{share:.3f}" for _, share in scores)
            print(f"step {step} {time.monotonic() - begin:.0f} s loss {loss.item():.3f} right {right}", flush=True)
    encoders[0].save_pretrained(out / "text_encoder")
    encoders[1].save_pretrained(out / "text_encoder_2")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--seed", type=int, default=21)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    write_tokenizer(learn_merges(words(rng), MERGES), args.out / "tokenizer")
    train(CLIPTokenizer.from_pretrained(args.out / "tokenizer"), args.minutes, rng, args.out)


if __name__ == "__main__":
    main()
