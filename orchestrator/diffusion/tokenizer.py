"""CLIP's byte-pair tokenizer: text to the ids that the checkpoint's text encoder was trained with."""

import functools
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import groupby, pairwise
from pathlib import Path

from orchestrator.errors import ConfigError

WORD_END = "</w>"
BOS_TOKEN = "<|startoftext|>"
EOS_TOKEN = "<|endoftext|>"
CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")

# Unicode's White_Space property: str.isspace() counts U+001C to U+001F too, which CLIP's \s does not.
WHITE_SPACE = frozenset("\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000") | {
    chr(c) for c in range(0x2000, 0x200B)
}
WORD_CACHE_SIZE = 16_384


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """Ids of a text under one vocabulary; equal to ``transformers.CLIPTokenizer`` without its begin, end and padding.

    ``merges`` maps a pair of neighbouring symbols to its rank, the lowest of which is joined first.
    """

    vocab: Mapping[str, int]
    merges: Mapping[tuple[str, str], int]
    pad_token: str = EOS_TOKEN

    @property
    def bos_id(self) -> int:
        return self.vocab[BOS_TOKEN]

    @property
    def eos_id(self) -> int:
        return self.vocab[EOS_TOKEN]

    @property
    def pad_id(self) -> int:
        return self.vocab[self.pad_token]

    def encode(self, text: str) -> list[int]:
        """The ids of ``text``, which must be valid Unicode (no lone surrogates)."""
        ids: list[int] = []
        # The two special tokens are found before the text is cleaned: written in capitals they are ordinary text.
        for part in re.split(f"({re.escape(BOS_TOKEN)}|{re.escape(EOS_TOKEN)})", text):
            if part in (BOS_TOKEN, EOS_TOKEN):
                ids.append(self.vocab[part])
                continue
            for word in words(clean(part)):
                symbols = "".join(BYTE_SYMBOLS[byte] for byte in word.encode())
                ids.extend(self.vocab.get(piece, self.eos_id) for piece in self._merge(symbols))
        return ids

    def _merge(self, word: str) -> list[str]:
        """``word``, already in byte symbols, joined pair by pair in the order of the merges."""
        pieces = [*word[:-1], word[-1] + WORD_END]
        before, after = list(range(-1, len(pieces) - 1)), list(range(1, len(pieces) + 1))
        # A heap of (rank, place), where searching anew for each merge would cost a long word its length squared.
        waiting = [(self.merges[pair], at) for at, pair in enumerate(pairwise(pieces)) if pair in self.merges]
        heapify(waiting)
        while waiting:
            rank, at = heappop(waiting)
            joined = after[at]
            if joined == len(pieces) or self.merges.get((pieces[at], pieces[joined])) != rank:
                continue  # one of the two was joined to another since
            pieces[at], pieces[joined] = pieces[at] + pieces[joined], ""
            after[at] = after[joined]
            if after[at] < len(pieces):
                before[after[at]] = at
            for left, right in ((before[at], at), (at, after[at])):
                if left >= 0 and right < len(pieces) and (pieces[left], pieces[right]) in self.merges:
                    heappush(waiting, (self.merges[pieces[left], pieces[right]], left))
        return [piece for piece in pieces if piece]


def clean(text: str) -> str:
    """``text`` composed (NFC), every run of white space one blank, each letter lower-cased on its own."""
    composed = unicodedata.normalize("NFC", text)
    blanks = "".join(
        " " if is_space else "".join(run) for is_space, run in groupby(composed, key=WHITE_SPACE.__contains__)
    )
    # Letter by letter: str.lower() on a whole word turns a final capital sigma into the final small one, CLIP does not.
    return "".join(map(str.lower, blanks))


def words(text: str) -> Iterator[str]:
    """Cut cleaned text into contractions, runs of letters, single digits and runs of everything else."""
    start = 0
    while start < len(text):
        kind = _kind(text[start])
        contraction = next((c for c in CONTRACTIONS if text.startswith(c, start)), None)
        end = start + 1
        if contraction is not None:
            end = start + len(contraction)
        elif kind != "N":
            while end < len(text) and _kind(text[end]) == kind:
                end += 1
        if kind != "Z":
            yield text[start:end]
        start = end


@functools.lru_cache(maxsize=WORD_CACHE_SIZE)
def _kind(letter: str) -> str:
    """``L`` for a letter, ``N`` for a number, ``Z`` for white space, ``P`` for the rest."""
    if letter in WHITE_SPACE:
        return "Z"
    category = unicodedata.category(letter)[0]
    return category if category in "LN" else "P"


def _byte_symbols() -> tuple[str, ...]:
    """One printable character per byte: itself where it prints, else the next from U+0100 on (GPT-2's table)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in printable else next(others)) for byte in range(256))


BYTE_SYMBOLS = _byte_symbols()


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in ``folder``: ``vocab.json``, ``merges.txt``, and ``tokenizer_config.json`` for the padding."""
    try:
        vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        pad_token = _pad_token(folder / "tokenizer_config.json")
    except (OSError, ValueError) as error:
        raise ConfigError(f"tokenizer {folder} cannot be read ({error}); it needs vocab.json and merges.txt") from error
    pairs = [tuple(line.split()) for line in lines if line.strip() and not line.startswith("#version")]
    if not isinstance(vocab, dict) or any(len(pair) != 2 for pair in pairs):
        raise ConfigError(f"tokenizer {folder} is not CLIP's: vocab.json is an object, merges.txt two symbols a line")
    missing = [token for token in (BOS_TOKEN, EOS_TOKEN, pad_token) if token not in vocab]
    if missing:
        raise ConfigError(f"tokenizer {folder} has no {missing[0]} in vocab.json; a CLIP vocabulary is served")
    return Tokenizer(vocab, {(a, b): rank for rank, (a, b) in enumerate(pairs)}, pad_token)


def _pad_token(path: Path) -> str:
    if not path.is_file():
        return EOS_TOKEN
    named = json.loads(path.read_text(encoding="utf-8")).get("pad_token", EOS_TOKEN)
    return str(named["content"] if isinstance(named, dict) else named)
