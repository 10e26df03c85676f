"""Which way a job's styles take, and what is refused."""

from dataclasses import replace

import pytest
from small_checkpoint import small_checkpoint
from small_styles import CHANNELS, CONV, LAYERS, QUERY, STYLED, applied_style, numbers

from orchestrator.diffusion.deltas import LowRank, StoredTensor
from orchestrator.diffusion.lora import Lora
from orchestrator.errors import LoraIncompatible
from orchestrator.style_ways import AppliedStyle, StyleMode, Ways, ways_of


def changing(unet: dict[str, int], text: bool = False) -> AppliedStyle:
    """A style of these ranks in these layers of the UNet, with or without a part for the text encoder."""
    deltas = {
        name: LowRank(
            shape=LAYERS["unet"][name],
            down=StoredTensor(numbers(rank, *LAYERS["unet"][name][1:])),
            up=StoredTensor(numbers(CHANNELS, rank, *[1] * (len(LAYERS["unet"][name]) - 2))),
        )
        for name, rank in unet.items()
    }
    whole = applied_style()
    assert whole.style.lora is not None
    lora = Lora(family="kohya", unet=deltas, text_encoder=whole.style.lora.text_encoder if text else {})
    return replace(whole, style=replace(whole.style, lora=lora))


@pytest.mark.parametrize(
    ("styles", "mode", "unet", "text_encoder"),
    [
        ([], "auto", "none", "none"),
        ([], "merged", "none", "none"),
        ([changing({QUERY: 8})], "auto", "mixed", "none"),
        ([changing({QUERY: 8})], "mixed", "mixed", "none"),
        ([changing({QUERY: 8})], "merged", "merged", "none"),
        ([changing({QUERY: 9})], "auto", "merged", "none"),
        ([changing({QUERY: 4}), changing({QUERY: 5})], "auto", "merged", "none"),
        ([changing({QUERY: 4, CONV: 1})], "auto", "merged", "none"),
        ([changing({QUERY: 4}, text=True)], "auto", "mixed", "merged"),
        ([changing({}, text=True)], "auto", "none", "merged"),
        ([changing({}, text=True), changing({QUERY: 1})], "merged", "merged", "merged"),
    ],
)
def test_each_network_gets_its_way(styles: list[AppliedStyle], mode: StyleMode, unet: str, text_encoder: str) -> None:
    ways = ways_of(styles, STYLED, mode)
    assert (ways.unet, ways.text_encoder) == (unet, text_encoder)


def test_a_unet_without_the_input_gets_styles_merged() -> None:
    ways = ways_of([changing({QUERY: 1})], small_checkpoint(layers=LAYERS), "auto")
    assert ways == Ways(unet="merged", unmixed="the UNet was built without an input for styles")


@pytest.mark.parametrize(
    ("style", "told"),
    [
        (
            changing({QUERY: 9}),
            f"its rank at {QUERY} is 9, and the input for styles takes up to 8; STYLE_MODE is mixed",
        ),
        (changing({CONV: 1}), f"it changes {CONV}"),
        (changing({QUERY: 1}, text=True), "it changes the text encoder, which takes styles merged only"),
    ],
)
def test_where_nothing_is_merged_what_does_not_mix_is_refused(style: AppliedStyle, told: str) -> None:
    with pytest.raises(LoraIncompatible, match=f"style gs://b/ink cannot be applied: {told}"):
        ways_of([style], STYLED, "mixed")


def test_a_mock_applies_nothing() -> None:
    style = applied_style()
    assert ways_of([replace(style, style=replace(style.style, lora=None))], STYLED, "auto") == Ways()
