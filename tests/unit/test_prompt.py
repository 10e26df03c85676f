"""Weights, BREAK and chunks of a prompt."""

from time import process_time

import numpy as np
import pytest
from small_checkpoint import small_tokenizer

from orchestrator.diffusion.prompt import Fragment, chunk_prompt, pad_to, parse, weigh


def flat(prompt: str) -> list[tuple[str, float]]:
    return [(part.text, pytest.approx(part.weight)) for section in parse(prompt) for part in section]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red boat", [("a red boat", 1.0)]),
        ("a (red) boat", [("a ", 1.0), ("red", 1.1), (" boat", 1.0)]),
        ("a [red] boat", [("a ", 1.0), ("red", 1 / 1.1), (" boat", 1.0)]),
        ("a (red:1.3) boat", [("a ", 1.0), ("red", 1.3), (" boat", 1.0)]),
        ("(red: +.5 )", [("red", 0.5)]),
        ("(red:-1)", [("red", -1.0)]),
        ("((red))", [("red", 1.21)]),
        ("([red])", [("red", 1.0)]),
        ("(a (b:2) c:1.5)", [("a ", 1.5), ("b", 3.0), (" c", 1.5)]),
        (r"a \(red\) \[boat\] \\", [("a (red) [boat] \\", 1.0)]),
        (r"(red\):1.5)", [("red)", 1.5)]),
        ("a house: red", [("a house: red", 1.0)]),
        ("(a house: red)", [("a house: red", 1.1)]),
        ("a ratio of 1:2", [("a ratio of 1:2", 1.0)]),
    ],
)
def test_brackets_weigh_what_they_hold(prompt: str, expected: list[tuple[str, float]]):
    assert flat(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("red) boat]", [("red) boat]", 1.0)]),
        ("red:1.3) boat", [("red:1.3) boat", 1.0)]),
        ("(red", [("red", 1.1)]),
        ("[red", [("red", 1 / 1.1)]),
        ("(red]", [("red]", 1.1)]),
        ("(red:big)", [("red:big", 1.1)]),
        ("(red:1.2.3)", [("red:1.2.3", 1.1)]),
        ("(red:.)", [("red:.", 1.1)]),
        ("(red:nan) (blue:1e9)", [("red:nan", 1.1), (" ", 1.0), ("blue:1e9", 1.1)]),
        ("()", []),
        ("(:1.3)", []),
        ("\\", [("", 1.0)]),
        ("", []),
    ],
)
def test_what_does_not_parse_is_text(prompt: str, expected: list[tuple[str, float]]):
    assert flat(prompt) == expected


def test_break_starts_another_section():
    sections = [[part.text.strip() for part in section] for section in parse("red BREAK boat\nBREAK sea")]
    assert sections == [["red"], ["boat"], ["sea"]]


def test_break_inside_brackets_keeps_their_weight():
    sections = parse("(redBREAK BREAK boat:1.5)")
    assert sections == [[Fragment("redBREAK ", 1.5)], [Fragment(" boat", 1.5)]]


def test_a_short_prompt_is_one_chunk_of_begin_tokens_end_and_padding():
    tokenizer = small_tokenizer(pad_token="!")
    (chunk,) = chunk_prompt("red boat", tokenizer, 77)
    words = [tokenizer.vocab["red</w>"], tokenizer.vocab["boat</w>"]]
    assert chunk.ids == (tokenizer.bos_id, *words, tokenizer.eos_id, *[tokenizer.pad_id] * 73)


def test_an_empty_prompt_is_one_chunk():
    assert [len(chunk.ids) for chunk in chunk_prompt("", small_tokenizer(), 77)] == [77]


@pytest.mark.parametrize(("words", "count"), [(75, 1), (76, 2), (150, 2), (151, 3)])
def test_a_long_prompt_goes_on_in_further_chunks_of_75_tokens(words: int, count: int):
    tokenizer = small_tokenizer()
    chunks = chunk_prompt("red " * words, tokenizer, 77)
    red = tokenizer.vocab["red</w>"]
    assert (len(chunks), sum(chunk.ids.count(red) for chunk in chunks)) == (count, words)


def test_every_chunk_has_its_own_begin_and_end():
    tokenizer = small_tokenizer()
    first, second = chunk_prompt("red " * 76, tokenizer, 77)
    assert (first.ids[0], first.ids[76], second.ids[0], second.ids[2]) == (
        tokenizer.bos_id,
        tokenizer.eos_id,
        tokenizer.bos_id,
        tokenizer.eos_id,
    )


@pytest.mark.parametrize(
    ("prompt", "count"),
    [("red BREAK boat", 2), ("BREAK red", 2), ("red BREAK", 1), ("BREAK", 1), ("a BREAK BREAK b", 3)],
)
def test_break_fills_up_its_chunk(prompt: str, count: int):
    assert len(chunk_prompt(prompt, small_tokenizer(), 77)) == count


def test_weights_stand_beside_the_tokens_they_weigh():
    (chunk,) = chunk_prompt("red (boat:1.5)", small_tokenizer(), 77)
    assert chunk.weights == (1.0, 1.0, 1.5, *[1.0] * 74)


def test_unweighed_embeddings_come_back_untouched():
    hidden = np.random.default_rng(0).normal(size=(77, 8)).astype(np.float32)
    assert weigh(hidden, (1.0,) * 77) is hidden


def test_weighed_embeddings_keep_the_mean_of_the_whole():
    hidden = np.random.default_rng(0).normal(size=(77, 8)).astype(np.float32) + 0.3
    weighed = weigh(hidden, (1.0, 1.5, *[1.0] * 75))
    assert weighed.mean() == pytest.approx(hidden.mean(), rel=1e-5)


def test_a_weight_scales_its_token_against_the_others():
    hidden = np.random.default_rng(0).normal(size=(77, 8)).astype(np.float32) + 0.3
    ratio = weigh(hidden, (1.0, 1.5, *[1.0] * 75)) / hidden
    np.testing.assert_allclose(ratio[1] / ratio[0], 1.5, rtol=1e-5)


def test_a_mean_brought_to_zero_is_left_there():
    assert np.isfinite(weigh(np.ones((2, 3), np.float32), (1.0, -1.0))).all()


def test_the_shorter_prompt_is_filled_up_with_blank_chunks():
    tokenizer = small_tokenizer()
    (red,), (blank,) = chunk_prompt("red", tokenizer, 77), chunk_prompt("", tokenizer, 77)
    assert pad_to((red,), 3, blank) == (red, blank, blank)


def test_a_prompt_of_brackets_alone_costs_no_more_than_its_letters():
    began_s = process_time()
    (sections,) = parse("([a" * 6_600)
    assert sections[0].weight == pytest.approx(1.0)
    assert process_time() - began_s < 0.5, "letter by letter the weights take a second and more"
