"""How samples become figures, and figures a page."""

import json
from pathlib import Path

import pytest

from benchmarks.results import Bar, Section, Table, markdown, read, write
from benchmarks.timing import interleaved, number, percentile, ratios, spread

MACHINE = {"processor": "a CPU", "cores": 2, "versions": {"numpy": "2"}}


def test_contestants_take_turns_and_none_always_begins() -> None:
    heard: list[str] = []
    interleaved({name: (lambda name=name: heard.append(name)) for name in "abc"}, 3)
    assert "".join(heard) == "abcbcacab"


def test_a_percentile_is_one_of_the_samples() -> None:
    samples = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(samples, p) for p in (0, 50, 95, 100)] == [1.0, 3.0, 5.0, 5.0]


def test_ratios_compare_round_by_round() -> None:
    assert spread(ratios([2.0, 30.0, 4.0], [1.0, 10.0, 2.0])).median == 2.0


def test_a_spread_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        spread([])


@pytest.mark.parametrize(("value", "shown"), [(0.012345, "0.0123"), (12.345, "12.3"), (1234.5, "1234"), (0.0, "0")])
def test_numbers_show_three_digits_and_no_exponent(value: float, shown: str) -> None:
    assert number(value) == shown


def test_a_missed_bar_is_called_missed_and_an_unmeasured_one_is_not_met() -> None:
    bars = [
        Bar("fast", "at least", 1.0, 0.9),
        Bar("small", "at most", 2.0, 1.5, "MB"),
        Bar("on a card", "at most", 1.0, None, note="no card here"),
    ]
    page = markdown("bench", MACHINE, [Section("s", "S", "text", bars=bars)])
    assert "| fast | at least 1 | 0.900 | **missed** |" in page
    assert "| small | at most 2 MB | 1.50 MB | met |" in page
    assert "| on a card | at most 1 | not measured | -: no card here |" in page


def test_the_file_holds_every_sample_and_the_page_shows_median_and_quartiles(tmp_path: Path) -> None:
    section = Section(
        "s",
        "S",
        "text",
        tables=[Table(("what", "s"), [("one", spread([1.0, 2.0, 3.0, 9.0]))])],
        figures={"raw": [1, 2]},
    )
    write(tmp_path, "bench", MACHINE, [section])
    assert "| one | 2.50 (1.00 to 3.00) |" in (tmp_path / "bench.md").read_text()
    kept = json.loads((tmp_path / "bench.json").read_text())
    assert kept["sections"][0]["figures"] == {"raw": [1, 2]}
    again = read(tmp_path / "bench.json")
    assert markdown("bench", MACHINE, again) == markdown("bench", MACHINE, [section])
