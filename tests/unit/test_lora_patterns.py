"""Layer patterns against ``re``, which peft uses; here nothing in a style can make it run for hours."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.diffusion.layer_patterns import layer_pattern
from orchestrator.errors import LoraIncompatible

LAYER = "down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_out.0"


def as_peft(pattern: str, layer: str) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", layer) is not None


@pytest.mark.parametrize(
    "pattern",
    [
        "to_out.0", "to_out", "out.0", "0", LAYER, "attn2.to_out.0", "tn2.to_out.0", ".*", ".*attn2.*", "attn.*",
        "down_blocks.*to_out.0", "^down_blocks.*", "^blocks.*", f"^{LAYER}", f"^{LAYER}$", "^to_out.0", "to_out.0$",
        "^down_blocks.0", "^", "$", "^$", "attn[12].to_out.0", "attn[3-9].*", r"attn\d\.to_out\.\d",
        "(down|up)_blocks.*", "(?:down|mid)_blocks.*attn(1|2).to_out.0$", "attn2.to_q|attn2.to_out.0", "attn2?.to_.*",
        "blocks.*", r"\w+.0", "a*ttn2.to_out.0", "z+attn2.to_out.0", "z?attn2.to_out.0",
    ],
)  # fmt: skip
def test_a_pattern_fits_where_pefts_would(pattern: str) -> None:
    assert layer_pattern(pattern).fits(LAYER) == as_peft(pattern, LAYER)


pieces = st.sampled_from(["a", "b", ".", r"\.", "[ab]", r"\w", ".*", "a*", "b+", "a?", ".+", "[ab]*"])


@given(st.lists(pieces, min_size=1, max_size=7).map("".join), st.text("ab.", min_size=1, max_size=10))
def test_any_simple_pattern_fits_where_pefts_would(pattern: str, layer: str) -> None:
    if not re.fullmatch(r"[\w.]+", pattern):  # the dots of a plain name mean dots
        assert layer_pattern(pattern).fits(layer) == as_peft(pattern, layer)


def test_a_whole_name_costs_no_more_than_a_part_of_one() -> None:
    assert [layer_pattern(pattern).effort for pattern in ("to_out.0", f"^{LAYER}", f"^{LAYER}$")] == [0, 0, 0]


@pytest.mark.parametrize(
    "pattern", ["(a*)*b", "(a+)+b", "(a|a)*b", r"(?=a)", r"(a)\1", "a{1,9}", "[^a]", "a b", "(", "[z-a]"]
)
def test_a_pattern_that_could_take_long_is_refused(pattern: str) -> None:
    with pytest.raises(LoraIncompatible):
        layer_pattern(pattern)


def test_the_worst_pattern_is_matched_in_milliseconds() -> None:
    pattern = layer_pattern(".*a" * 90)
    begun_s = time.process_time()
    assert not pattern.fits("a" * 80 + "." + "a" * 89 + "b")
    assert time.process_time() - begun_s < 0.1
