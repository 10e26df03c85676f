"""Training by several processes of one thread each, which on two busy cores beats one process with two threads.

The processes average their weights every few steps (local SGD, Stich, arXiv 1805.09767). How much of the learning rate
is left follows from the time that is spent, so that a training ends when it was to, however busy the machine is.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as ranks
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

SYNC_STEPS = 4
"""The processes average their weights every so many steps."""
AVERAGING = 0.998
"""Decay per step of the weights' running mean, which is what is kept."""
SAVE_EVERY_S = 180.0
SAY_EVERY = 48


@dataclass(frozen=True)
class Lesson:
    """What one step learns from: a loss, and how many pictures of which latent rows and columns it saw."""

    loss: Tensor
    size: tuple[int, int]
    pictures: int


class Teacher:
    """Draws lessons for one process; ``shared`` says the same in all of them, ``own`` something else in each."""

    def __init__(self, seed: int) -> None:
        rank = ranks.get_rank()
        torch.manual_seed(seed + 1000 * rank)
        self.own, self.shared = random.Random(seed + 1000 * rank), random.Random(seed)

    def refresh(self) -> None:
        """Takes in what was painted since; called every hundred steps."""

    def lesson(self, spent: float) -> Lesson:
        """The next step, when this share of the time is spent."""
        raise NotImplementedError


def parser_of(description: str | None, *, minutes: float, seed: int) -> argparse.ArgumentParser:
    """The options that all such trainings have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--minutes", type=float, default=minutes, help="on the clock")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=seed)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--resume", type=Path, help="go on from this folder's weights")
    parser.add_argument("--spent", type=float, default=0.0, help="with --resume: share of the schedule already behind")
    parser.add_argument("--out", type=Path, required=True)
    return parser


def start(run: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Calls ``run`` in so many processes that can average weights."""
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "meeting").unlink(missing_ok=True)
    spawn(_process, (run, args), nprocs=args.processes)  # type: ignore[no-untyped-call]


def _process(rank: int, run: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    ranks.init_process_group("gloo", init_method=f"file://{args.out}/meeting", rank=rank, world_size=args.processes)
    run(args)
    ranks.destroy_process_group()


def learning_rate(spent: float, step: int, peak: float) -> float:
    """Warm-up over 40 steps, level until 65 % of the time, then half a cosine."""
    fall = max(0.0, (spent - 0.65) / 0.35)
    return peak * min(1, (step + 1) / 40) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * fall)))


def share_weights(network: nn.Module, spent: float) -> float:
    """Averages the weights, and the share of time spent, over all processes; returns that share."""
    with torch.no_grad():
        flat = torch.cat([weights.flatten() for weights in network.parameters()] + [torch.tensor([spent])])
        ranks.all_reduce(flat)
        flat /= ranks.get_world_size()
        begin = 0
        for weights in network.parameters():
            weights.copy_(flat[begin : begin + weights.numel()].view_as(weights))
            begin += weights.numel()
    return float(flat[-1])


def train(
    network: nn.Module,
    average: nn.Module,
    teacher: Teacher,
    save: Callable[[nn.Module, Path], None],
    args: argparse.Namespace,
) -> None:
    """Trains for `args.minutes`; ``average``, a network of the same shape, becomes what is saved now and then."""
    share_weights(network, 0.0)
    average.load_state_dict(network.state_dict())
    rank, learned = ranks.get_rank(), [weights for weights in network.parameters() if weights.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=args.lr, weight_decay=0.01, betas=(0.9, 0.99), fused=True)
    begin = saved = time.monotonic()
    step, recent, spent, seen = 0, 0.0, args.spent, Counter[str]()
    while spent < 1:
        if step % 100 == 0:
            teacher.refresh()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(spent, step, args.lr)
        lesson = teacher.lesson(spent)
        optimizer.zero_grad(set_to_none=True)
        lesson.loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        step += 1
        seen["{}x{}".format(*lesson.size)] += lesson.pictures * ranks.get_world_size()
        recent = 0.98 * recent + 0.02 * lesson.loss.item() if step > 1 else lesson.loss.item()
        if step % SYNC_STEPS == 0:
            spent = args.spent + (1 - args.spent) * (time.monotonic() - begin) / (60 * args.minutes)
            spent = share_weights(network, spent)
            _follow(average, network, min(AVERAGING, step / (step + 30)) ** SYNC_STEPS)
        if rank == 0 and step % SAY_EVERY == 0:
            print(f"step {step} {time.monotonic() - begin:.0f} s loss {recent:.4f} {dict(seen)}", flush=True)
        if rank == 0 and time.monotonic() - saved > SAVE_EVERY_S:
            save(average, args.out)
            saved = time.monotonic()
    if rank == 0:
        save(average, args.out)
        record = {"steps": step, "pictures": seen, "minutes": args.minutes, "seed": args.seed, "loss": recent}
        (args.out / "training.json").write_text(json.dumps(record))


@torch.no_grad()
def _follow(average: Any, network: nn.Module, decay: float) -> None:
    for kept, now in zip(average.parameters(), network.parameters(), strict=True):
        kept.lerp_(now, 1 - decay)
