"""CLIP's byte-pair tokenizer on a vocabulary small enough to read."""

import json
import random
import time
from itertools import product
from pathlib import Path
from string import ascii_lowercase

import pytest
from small_checkpoint import small_tokenizer, write_repository

from orchestrator.diffusion.tokenizer import BOS_TOKEN, EOS_TOKEN, Tokenizer, clean, read_tokenizer, words
from orchestrator.errors import ConfigError


def pieces(text: str) -> list[str]:
    tokenizer = small_tokenizer()
    by_id = {identifier: token for token, identifier in tokenizer.vocab.items()}
    return [by_id[identifier] for identifier in tokenizer.encode(text)]


def test_words_are_joined_in_the_order_of_the_merges():
    assert pieces("red boat") == ["red</w>", "boat</w>"]


def test_a_word_without_merges_is_its_letters_and_an_end():
    assert pieces("sky") == ["s", "k", "y</w>"]


def test_upper_case_and_blanks_do_not_matter():
    assert small_tokenizer().encode("  RED\n\tBoat ") == small_tokenizer().encode("red boat")


def test_an_empty_text_has_no_ids():
    assert small_tokenizer().encode("") == []


def test_a_letter_beyond_ascii_is_the_symbols_of_its_bytes():
    assert pieces("é") == ["Ã", "©</w>"]


def test_special_tokens_in_the_text_are_single_ids():
    tokenizer = small_tokenizer()
    assert tokenizer.encode(f"{BOS_TOKEN}red{EOS_TOKEN}") == [
        tokenizer.bos_id,
        tokenizer.vocab["red</w>"],
        tokenizer.eos_id,
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the artist's", ["the", "artist", "'s"]),
        ("we'll've", ["we", "'ll", "'ve"]),
        ("a.b,,c", ["a", ".", "b", ",,", "c"]),
        ("2024 x2", ["2", "0", "2", "4", "x", "2"]),
        ("노을, 유화", ["노을", ",", "유화"]),
        ("'''s", ["'''", "s"]),
        ("½a", ["½", "a"]),
    ],
)
def test_text_is_cut_into_words_digits_and_runs_of_the_rest(text: str, expected: list[str]):
    assert list(words(text)) == expected


def test_accents_are_composed_before_letters_are_counted():
    assert clean("e\u0301") == "é"


def test_a_final_capital_sigma_becomes_the_plain_small_one():
    assert clean("ΟΔΟΣ") == "οδοσ"


def test_information_separators_are_no_white_space():
    assert clean("a\x1cb\u3000c") == "a\x1cb c"


def test_a_word_of_ten_thousand_letters_takes_under_a_second():
    begin = time.process_time()  # of this process: others may have the machine meanwhile
    small_tokenizer().encode("reboat" * 1700)
    assert time.process_time() - begin < 1.0


def test_a_saved_tokenizer_reads_back_equal(tmp_path: Path):
    folder = write_repository(tmp_path) / "text_encoder" / "tokenizer"
    assert read_tokenizer(folder) == small_tokenizer()


@pytest.mark.parametrize("named", ["!", {"content": "!"}])
def test_the_padding_is_the_one_the_config_names(tmp_path: Path, named: object):
    folder = write_repository(tmp_path) / "text_encoder" / "tokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": named}))
    assert read_tokenizer(folder).pad_id == small_tokenizer().vocab["!"]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("vocab.json", "[]", "is not CLIP's"),
        ("vocab.json", "{", "cannot be read"),
        ("vocab.json", '{"a": 0}', "has no <|startoftext|>"),
        ("merges.txt", "#version\na b c\n", "is not CLIP's"),
        ("merges.txt", None, "cannot be read"),
    ],
)
def test_a_broken_tokenizer_names_its_folder_and_fault(tmp_path: Path, name: str, content: str | None, told: str):
    folder = write_repository(tmp_path) / "text_encoder" / "tokenizer"
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(ConfigError, match=told) as raised:
        read_tokenizer(folder)
    assert str(folder) in str(raised.value)


def test_a_word_as_long_as_a_prompt_may_be_costs_no_more_than_its_letters():
    pairs = {(a, b): rank for rank, (a, b) in enumerate(product(ascii_lowercase, repeat=2))}
    joined = Tokenizer({a + b: rank for (a, b), rank in pairs.items()} | {EOS_TOKEN: 1000}, pairs)
    began_s = time.process_time()
    assert len(joined.encode("".join(random.Random(0).choices(ascii_lowercase, k=20_000)))) >= 10_000
    assert time.process_time() - began_s < 1.0, "searched anew for each of 676 merges it takes several seconds"
