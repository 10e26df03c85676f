"""Teaches the demo's CLIPTextModel to read captions: it predicts what each caption claims.

`python -m demo.train_text_encoder --tokenizer DIR --minutes 5 --out DIR`. Features that a linear head can read are
features that cross-attention can read, so the UNet needs not wait for its text to make sense.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from demo.captions import Claims, captioned
from demo.scenes import COLOURS, GROUNDS, KINDS, LIGHTS, SIDES, TIMES, WEATHERS, training_scene

WIDTH = 128
COUNT_CLASSES = 5
HEADS_FILE = "heads.pt"

HEAD_SIZES = (
    len(TIMES) + 1,
    len(WEATHERS) + 1,
    len(GROUNDS) + 1,
    2,
    len(LIGHTS),
    len(SIDES) + 1,
    2,
    *(COUNT_CLASSES, len(COLOURS) + 1, len(SIDES) + 1) * len(KINDS),
)
"""Classes per head: time, weather, ground, mountains, light, its side, birds; count, colour, side of each kind."""


def new_text_encoder(vocabulary: int) -> CLIPTextModel:
    """An untrained CLIP text model, 128 wide, three layers; the last two ids are start and end of text."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=77,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
    )


def _index(value: str | None, choices: tuple[str, ...]) -> int:
    return 0 if value is None else choices.index(value) + 1


def labels(claims: Claims) -> list[int]:
    """The right class of each head; class 0 says that the caption does not name it."""
    row = [
        _index(claims.time, TIMES),
        _index(claims.weather, WEATHERS),
        _index(claims.ground, GROUNDS),
        int(claims.mountains),
        LIGHTS.index(claims.light or "none"),
        _index(claims.light_side, SIDES),
        int(claims.birds),
    ]
    said = {thing.kind: thing for thing in claims.things}
    for kind in KINDS:
        thing = said.get(kind)
        if thing is None:
            row += [0, 0, 0]
        else:
            count = COUNT_CLASSES - 1 if thing.count == 0 else thing.count or 1
            row += [count, _index(thing.colour, COLOURS), _index(thing.side, SIDES)]
    return row


def batch_of_captions(size: int, rng: random.Random) -> tuple[list[str], Tensor]:
    """Captions and the classes they claim, int64 [size, heads]."""
    pairs = [captioned(training_scene(rng), rng) for _ in range(size)]
    return [text for text, _ in pairs], torch.tensor([labels(claims) for _, claims in pairs])


def reading_loss(logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the heads' cross entropies (mean over rows), and the share of answers right per head."""
    loss, right, begin = logits.new_zeros(()), [], 0
    for head, size in enumerate(HEAD_SIZES):
        piece = logits[:, begin : begin + size]
        loss = loss + functional.cross_entropy(piece, wanted[:, head])
        right.append((piece.argmax(1) == wanted[:, head]).float().mean())
        begin += size
    return loss, torch.stack(right)


def positions(ids: Tensor, end: int) -> Tensor:
    """One position per row at or behind the caption's end: the padding also carries the caption's meaning."""
    first = (ids == end).int().argmax(1)
    spread = torch.rand(len(ids)) * (torch.rand(len(ids)) < 0.6)
    return first + (spread * (ids.shape[1] - first)).long()


def train(model: CLIPTextModel, tokenizer: CLIPTokenizer, args: argparse.Namespace) -> None:
    """Trains for so many minutes on the clock, saving to `args.out` every 100 steps."""
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    minutes, batch, peak_lr = args.minutes, args.batch, args.lr
    heads = nn.Linear(WIDTH, sum(HEAD_SIZES))
    if args.resume and (args.resume / HEADS_FILE).exists():
        heads.load_state_dict(torch.load(args.resume / HEADS_FILE, weights_only=True))
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=peak_lr, weight_decay=0.01, betas=(0.9, 0.98))
    begin, step = time.monotonic(), 0
    while (spent := (time.monotonic() - begin) / (60 * minutes)) < 1:
        rate = peak_lr * min(1, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * spent)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        texts, wanted = batch_of_captions(batch, rng)
        length = 77 if step % 8 == 0 else 28
        rows = slice(0, batch // 4 if length == 77 else batch)
        ids = tokenizer(
            texts[rows], padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).input_ids
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model(input_ids=ids).last_hidden_state.float()
        picked = hidden[torch.arange(len(ids)), positions(ids, len(tokenizer) - 1)]
        loss, right = reading_loss(heads(picked), wanted[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 0:
            worst = right.argmin().item()
            print(
                f"step {step} {time.monotonic() - begin:.0f} s loss {loss.item():.3f} right {right.mean():.4f} "
                f"worst head {worst} {right.min():.3f}",
                flush=True,
            )
        if step % 100 == 0:
            save(model, heads, args.out)
    save(model, heads, args.out)


def save(model: CLIPTextModel, heads: nn.Linear, out: Path) -> None:
    """Writes the encoder, and the heads for a later `--resume`."""
    model.save_pretrained(out)
    torch.save(heads.state_dict(), out / HEADS_FILE)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--resume", type=Path, help="go on from this folder's weights")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(2)
    tokenizer = CLIPTokenizer.from_pretrained(args.tokenizer)
    model = CLIPTextModel.from_pretrained(args.resume) if args.resume else new_text_encoder(len(tokenizer))
    train(model, tokenizer, args)


if __name__ == "__main__":
    main()
