"""The pictures beside a page of results, by the real matplotlib."""

from pathlib import Path

from benchmarks.plots import draw
from benchmarks.results import Plot, Series


def test_plots_are_drawn_for_lines_and_for_columns(tmp_path: Path) -> None:
    line = Series("a", [1, 2], [1.0, 2.0], [0.9, 1.9], [1.1, 2.1])
    drawn = draw(
        [Plot("one", "T", "x", "y", [line]), Plot("two", "T", "x", "y", [line], columns=["p", "q"])], tmp_path, "b"
    )
    assert [path.name for path in drawn] == ["b-one.png", "b-two.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
