"""Prompts as AUTOMATIC1111 writes them: weights in brackets, BREAK, and chunks where one context does not suffice.

``(word)`` weighs 1.1, ``[word]`` 1/1.1, ``(word:1.3)`` 1.3; they nest and multiply. ``\\(`` is a bracket of the text.
What does not parse is text: a prompt is never refused for its brackets.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from orchestrator.diffusion.tokenizer import Tokenizer

EMPHASIS = 1.1
_CLOSES = {")": ("(", EMPHASIS), "]": ("[", 1 / EMPHASIS)}
_LEXEME = re.compile(
    r"\\(?P<escaped>[()\[\]\\]?)"
    r"|:\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)"
    r"|(?P<break>\bBREAK\b)"
    r"|[()\[\]]"
    r"|.",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Fragment:
    """A stretch of the prompt under one weight."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Chunk:
    """One context of the text encoder: begin, up to 75 tokens, end and padding, with a weight for each.

    ``padding`` of the ids are padding; text encoders of one checkpoint may differ in what they pad with.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    padding: int

    def padded_with(self, pad_id: int) -> tuple[int, ...]:
        """The ids with another padding."""
        return self.ids[: len(self.ids) - self.padding] + (pad_id,) * self.padding


def parse(prompt: str) -> list[list[Fragment]]:
    """The sections of ``prompt`` between its BREAKs; neighbours of equal weight are one fragment."""
    texts: list[str | None] = []
    # An array, because every bracket multiplies all that it holds and a prompt may be ten thousand brackets deep.
    weights = np.ones(len(prompt))
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(bracket: str, factor: float) -> None:
        with np.errstate(all="ignore"):  # weights without bounds are for the plan to refuse
            weights[opened[bracket].pop() : len(texts)] *= factor

    for lexeme in _LEXEME.finditer(prompt):
        text = lexeme[0]
        bracket, factor = _CLOSES.get(text, ("", 1.0))
        if text in opened:
            opened[text].append(len(texts))
        elif lexeme["weight"] is not None and opened["("]:
            close("(", float(lexeme["weight"]))
        elif bracket and opened[bracket]:
            close(bracket, factor)
        else:
            escaped = lexeme["escaped"]
            texts.append(None if lexeme["break"] else text if escaped is None else escaped)
    for bracket, factor in _CLOSES.values():
        while opened[bracket]:
            close(bracket, factor)
    return _sections(texts, weights[: len(texts)].tolist())


def _sections(texts: Sequence[str | None], weights: Sequence[float]) -> list[list[Fragment]]:
    """Group letters into fragments of one weight; None starts the next section."""
    sections: list[list[Fragment]] = [[]]
    for key, run in groupby(zip(texts, weights, strict=True), key=lambda pair: (pair[0] is None, pair[1])):
        is_break, weight = key
        if is_break:
            sections.extend([] for _ in run)
        else:
            sections[-1].append(Fragment("".join(text for text, _ in run if text is not None), weight))
    return sections


def chunk_prompt(prompt: str, tokenizer: Tokenizer, max_tokens: int) -> tuple[Chunk, ...]:
    """``prompt`` in chunks of ``max_tokens``, at least one; BREAK fills up the chunk it ends."""
    size = max_tokens - 2
    chunks: list[Chunk] = []
    for section in parse(prompt):
        weighed = [(token, part.weight) for part in section for token in tokenizer.encode(part.text)]
        starts = range(0, max(len(weighed), 1), size)
        chunks.extend(_framed(weighed[start : start + size], tokenizer, max_tokens) for start in starts)
    # A BREAK at the very end would only add a chunk that says nothing.
    return tuple(chunks[:-1] if len(chunks) > 1 and not weighed else chunks)


def _framed(weighed: Sequence[tuple[int, float]], tokenizer: Tokenizer, max_tokens: int) -> Chunk:
    padding = max_tokens - len(weighed) - 2
    ids = (tokenizer.bos_id, *(token for token, _ in weighed), tokenizer.eos_id, *[tokenizer.pad_id] * padding)
    return Chunk(ids, (1.0, *(weight for _, weight in weighed), *[1.0] * (padding + 1)), padding)


def weigh(hidden: NDArray[np.float32], weights: Sequence[float]) -> NDArray[np.float32]:
    """``hidden`` [tokens, width] times each token's weight, with the mean of the whole restored as AUTOMATIC1111 does.

    Where every weight is 1 the array itself comes back, so an unweighed prompt is bit for bit the plain encoding.
    """
    if all(weight == 1.0 for weight in weights):
        return hidden
    weighed = hidden * np.asarray(weights, np.float32)[:, None]
    mean = weighed.mean()
    # A mean that the weights bring to zero cannot be restored by a factor.
    return weighed if mean == 0 else weighed * (hidden.mean() / mean)


def pad_to(chunks: tuple[Chunk, ...], count: int, blank: Chunk) -> tuple[Chunk, ...]:
    """``chunks`` followed by as many blank ones as make ``count``: prompt and negative prompt must be of one length."""
    return chunks + (blank,) * (count - len(chunks))
