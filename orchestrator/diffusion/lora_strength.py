"""How much a style changes each block of the networks: the Frobenius norm of all its deltas there."""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from orchestrator.diffusion.lora import Lora

KINDS: Final = ("self-attention", "cross-attention", "feed-forward", "convolution and other")
TEXT_ENCODER: Final = "text encoder"
_ENDS: Final[Mapping[str, str]] = {"conv_in": "input", "time_embedding": "input", "conv_out": "output"}


@dataclass(frozen=True, slots=True)
class BlockStrength:
    """One block: the norm of each kind of layer; squares add up to the square of the block's."""

    name: str
    by_kind: Mapping[str, float]

    @property
    def norm(self) -> float:
        return math.sqrt(sum(norm**2 for norm in self.by_kind.values()))


def strengths(lora: Lora) -> tuple[BlockStrength, ...]:
    """The blocks that the style changes, in the order the data takes through them."""
    squares: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for name, delta in (*lora.text_encoder.items(), *lora.text_encoder_2.items()):
        squares[TEXT_ENCODER][_kind(name)] += delta.norm() ** 2
    for name, delta in lora.unet.items():
        squares[_block(name)][_kind(name)] += delta.norm() ** 2
    return tuple(
        BlockStrength(name, {kind: math.sqrt(kinds[kind]) for kind in KINDS if kind in kinds})
        for name, kinds in sorted(squares.items(), key=lambda item: _place(item[0]))
    )


def _block(layer: str) -> str:
    found = re.match(r"(down|up)_blocks\.(\d+)\.", layer)
    if found is not None:
        return f"{found[1]} {found[2]}"
    return "middle" if layer.startswith("mid_block.") else _ENDS.get(layer.partition(".")[0], "other")


def _kind(layer: str) -> str:
    if ".attn2." in layer:
        return "cross-attention"
    if ".attn1." in layer or ".self_attn." in layer:
        return "self-attention"
    return "feed-forward" if ".ff." in layer or ".mlp." in layer else "convolution and other"


def _place(block: str) -> tuple[int, str]:
    order = (TEXT_ENCODER, "input", "down", "middle", "up", "output", "other")
    name = block if block in order else block.split()[0]
    return order.index(name), block
