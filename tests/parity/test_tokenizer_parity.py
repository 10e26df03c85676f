"""Our ids against those of transformers' CLIPTokenizer, for a vocabulary trained here and for the demo's own."""

import json
import random
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from export.checkpoint import open_checkpoint
from export.description import EOS_TOKEN as END
from export.description import describe
from export.specs import graphs_of
from orchestrator.diffusion.tokenizer import Tokenizer, read_tokenizer

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

DEMO_TOKENIZER = Path(__file__).parents[2] / "demo" / "checkpoint" / "tokenizer"

HARD_TEXTS = [
    "",
    " ",
    "a",
    "a red boat at dusk, two suns, calm sea",
    "  A   Red\tBOAT\n\nat\r\ndusk  ",
    "the artist's boat isn't, we'll, they've, I'm, you're, he'd; DON'T SHE'S",
    "'s't're've'm'll'd ''s '''s 's's",
    "!!! ??? ... ,,,, -- --- a--b a.b.c (a) [b] {c} <d> /e\\f",
    "12345 3.14159 1,000,000 2nd x2 2x 0 007 ½ ² Ⅷ ٣ 四 ①",
    "초상화, 노을, 유화",
    "초상화 portrait 노을 in 2 colours!! 유화🎨",
    "한글",
    "🎨🖌️ 👩‍🎨 👨‍👩‍👧‍👦 🇰🇷 ❤️‍🔥",
    "café CAFÉ naïve Ångström ÅNGSTRÖM œuvre Straße ẞ",
    "ΣΊΣΥΦΟΣ ΟΔΥΣΣΕΥΣ ﬁne ﬀ İstanbul ıI",
    "中文提示词,日本語のプロンプト。ภาษาไทย हिन्दी العربية עברית",
    "zero\u200bwidth\u200djoin\u00a0nbsp\u2003em\u3000ideographic\u0085nel\x1cfs\x1fus",
    "control\x00\x01\x07\x7f",
    "<|startoftext|> a <|endoftext|> b <|STARTOFTEXT|><|endoftext|>",
    "<|start <|endoftext | > |endoftext|>",
    "a\u0301 e\u0308 n\u0303 combining \u0338 alone",
    "supercalifragilisticexpialidocious" * 4,
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa abababababababab",
    "portrait, sunset, oil paint, " * 30,
    "&amp; &lt;b&gt; html",
    "\u2028line\u2029para\ufeffbom\u00adsoft",
]


@pytest.fixture(scope="module")
def trained_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary of 900 entries trained on sentences of this file, saved as CLIP's two files."""
    folder = tmp_path_factory.mktemp("tokenizer")
    bytes_alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=900,
        initial_alphabet=bytes_alphabet,
        end_of_word_suffix="</w>",
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        show_progress=False,
    )
    trained = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.train_from_iterator([text.lower() for text in HARD_TEXTS] * 3, trainer)
    model = json.loads(trained.to_str())["model"]
    vocab = model["vocab"]
    for symbol in bytes_alphabet:
        vocab.setdefault(symbol, len(vocab))
        vocab.setdefault(symbol + "</w>", len(vocab))
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module", params=["trained", "without half of its bytes", "demo"])
def pair(
    request: pytest.FixtureRequest, trained_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, "transformers.CLIPTokenizer"]:
    """Our tokenizer and theirs on the same two files."""
    folder = trained_folder
    if request.param == "demo":
        folder = DEMO_TOKENIZER
        if not (folder / "vocab.json").is_file():
            pytest.skip("demo/checkpoint has not been trained in this checkout")
    elif request.param == "without half of its bytes":
        folder = _without_single_bytes(trained_folder, tmp_path_factory.mktemp("holes"))
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    theirs = transformers.CLIPTokenizer(vocab, [tuple(line.split()) for line in lines if line.strip()])
    return read_tokenizer(folder), theirs


def _without_single_bytes(source: Path, folder: Path) -> Path:
    """A vocabulary with holes, whose missing symbols become the unknown token."""
    vocab = json.loads((source / "vocab.json").read_text(encoding="utf-8"))
    lines = (source / "merges.txt").read_text(encoding="utf-8").splitlines()
    used = {symbol for line in lines[1:] for symbol in line.split()}
    lost = [token for token in sorted(vocab) if len(token.removesuffix("</w>")) == 1 and token not in used][::2]
    kept = {token: identifier for token, identifier in vocab.items() if token not in lost}
    assert len(kept) < len(vocab)
    (folder / "vocab.json").write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("text", HARD_TEXTS, ids=range(len(HARD_TEXTS)))
def test_ids_of_hard_texts_equal_those_of_transformers(
    pair: tuple[Tokenizer, "transformers.CLIPTokenizer"], text: str
) -> None:
    ours, theirs = pair
    assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]


def test_ids_of_random_unicode_equal_those_of_transformers(
    pair: tuple[Tokenizer, "transformers.CLIPTokenizer"],
) -> None:
    ours, theirs = pair
    rng = random.Random(0)
    ranges = [(0x20, 0x7F), (0xA0, 0x250), (0x370, 0x400), (0x1100, 0x11FF), (0xAC00, 0xD7A3), (0x1F300, 0x1F650)]
    for _ in range(500):
        letters = [chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randint(1, 40))]
        text = "".join(letter for letter in letters if unicodedata.category(letter) != "Cn")
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"], ascii(text)


def test_every_ascii_pair_gives_the_ids_of_transformers(
    pair: tuple[Tokenizer, "transformers.CLIPTokenizer"],
) -> None:
    ours, theirs = pair
    texts = [chr(a) + chr(b) for a in range(128) for b in range(128)]
    expected = theirs(texts, add_special_tokens=False)["input_ids"]
    assert [ours.encode(text) for text in texts] == expected


def test_special_ids_and_padding_equal_those_of_transformers(
    pair: tuple[Tokenizer, "transformers.CLIPTokenizer"],
) -> None:
    ours, theirs = pair
    expected = (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id)
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == expected


@pytest.mark.parametrize(
    ("config", "special"),
    [
        ("!", "!"),
        (END, "!"),
        ("!", END),
        (None, "!"),
        ("!", None),
        (END, {"content": "!", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}),
        (None, None),
    ],
)
def test_checkpoint_is_padded_with_what_transformers_pads_it_with(
    tmp_path: Path, config: str | None, special: Any
) -> None:
    for part in DEMO_TOKENIZER.parent.iterdir():
        (tmp_path / part.name).symlink_to(part)
    (tmp_path / "tokenizer").unlink()
    shutil.copytree(DEMO_TOKENIZER, tmp_path / "tokenizer")
    for name, token in (("tokenizer_config.json", config), ("special_tokens_map.json", special)):
        path = tmp_path / "tokenizer" / name
        said = {key: value for key, value in json.loads(path.read_text()).items() if key != "pad_token"}
        path.write_text(json.dumps(said | ({} if token is None else {"pad_token": token})))
    checkpoint = open_checkpoint(str(tmp_path))
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")

    told = describe(checkpoint, graphs_of(checkpoint.architecture), "demo", _grey)

    padding = told.get("pad_ids", {}).get("text_encoder", read_tokenizer(DEMO_TOKENIZER).eos_id)
    assert theirs("a boat", padding="max_length", max_length=77)["input_ids"][4:] == [padding] * 73


def _grey(latents: NDArray[np.float32]) -> NDArray[np.uint8]:
    rows, _, height, width = latents.shape
    return np.full((rows, 8 * height, 8 * width, 3), 128, np.uint8)
