"""Learns the demo's byte-level BPE, in the files and the form of CLIP's: `python -m demo.train_tokenizer --out DIR`."""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

from demo.captions import captioned
from demo.scenes import training_scene

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
MAX_TOKENS = 77


def byte_letters() -> list[str]:
    """The 256 printable stand-ins for bytes, in the order of GPT-2's and CLIP's vocabularies."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [value for value in range(256) if value not in printable]
    return [chr(value) for value in printable] + [chr(256 + index) for index in range(len(rest))]


def count_words(captions: int, seed: int) -> Counter[str]:
    """How often each word occurs in so many captions."""
    rng = random.Random(seed)
    words: Counter[str] = Counter()
    for _ in range(captions):
        text = captioned(training_scene(rng), rng)[0].lower()
        words.update(text.replace(",", " , ").replace(".", " . ").split())
    return words


def learn_merges(words: Counter[str], count: int) -> list[tuple[str, str]]:
    """The most frequent pairs of symbols, one after another, as BPE learns them (Sennrich et al., 2016)."""
    split = {word: [*word[:-1], word[-1] + WORD_END] for word in words if words[word] > 3}
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, symbols in split.items():
            for pair in pairwise(symbols):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        for symbols in split.values():
            _merge(symbols, best)
    return merges


def _merge(symbols: list[str], pair: tuple[str, str]) -> None:
    index = 0
    while index < len(symbols) - 1:
        if (symbols[index], symbols[index + 1]) == pair:
            symbols[index : index + 2] = [pair[0] + pair[1]]
        index += 1


def write_tokenizer(merges: list[tuple[str, str]], out: Path) -> int:
    """Writes vocab.json, merges.txt and the two configuration files; returns the size of the vocabulary."""
    letters = byte_letters()
    tokens = letters + [letter + WORD_END for letter in letters] + [a + b for a, b in merges] + [START, END]
    out.mkdir(parents=True, exist_ok=True)
    vocab = {token: index for index, token in enumerate(tokens)}
    (out / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (out / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    (out / "special_tokens_map.json").write_text(json.dumps(special, indent=2))
    config = {**special, "do_lower_case": True, "model_max_length": MAX_TOKENS, "tokenizer_class": "CLIPTokenizer"}
    (out / "tokenizer_config.json").write_text(
        json.dumps({**config, "add_prefix_space": False, "errors": "replace"}, indent=2)
    )
    return len(vocab)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", type=int, default=20000)
    parser.add_argument("--merges", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    size = write_tokenizer(learn_merges(count_words(args.captions, args.seed), args.merges), args.out)
    print(f"{size} tokens written to {args.out}")


if __name__ == "__main__":
    main()
