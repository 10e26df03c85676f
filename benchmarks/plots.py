"""Draws a section's plots as PNG; the only module that imports matplotlib."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.results import Plot, Series

INCHES = (7.6, 4.2)
DPI = 120
COLOURS = ("#1f5fa8", "#d1602b", "#3b8a4d", "#8a5a9e", "#7a6a55", "#c03a5b")
GRID = "#dddddd"


def draw(plots: Sequence[Plot], folder: Path, prefix: str) -> list[Path]:
    """``PREFIX-NAME.png`` for each plot; the files' paths."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_draw(plot, folder / f"{prefix}-{plot.name}.png") for plot in plots]


def _draw(plot: Plot, path: Path) -> Path:
    figure = Figure(figsize=INCHES, dpi=DPI, layout="constrained")
    axes = figure.subplots()
    if plot.columns:
        _columns(axes, plot)
    else:
        _lines(axes, plot.series)
    if plot.log_x:
        axes.set_xscale("log")
    if plot.horizontal_at is not None:
        axes.axhline(plot.horizontal_at, color="#555555", linewidth=1, linestyle=":")
    axes.set_title(plot.title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)
    axes.set_ylim(bottom=0)
    axes.margins(y=0.12)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if len(plot.series) > 1:
        figure.legend(loc="outside lower center", ncols=min(3, len(plot.series)), frameon=False, fontsize=9)
    figure.savefig(path, metadata={"Software": ""})
    return path


def _lines(axes: Axes, series: Sequence[Series]) -> None:
    for colour, each in zip(COLOURS, series, strict=False):
        marker = "o" if len(each.x) <= 16 else ""
        style = "--" if each.dashed else "-"
        axes.plot(each.x, each.y, label=each.label, color=colour, marker=marker, markersize=4, linestyle=style)
        if each.low:
            axes.fill_between(each.x, each.low, each.high, color=colour, alpha=0.15, linewidth=0)
    if all(float(x).is_integer() for each in series for x in each.x) and len(series[0].x) <= 12:
        axes.set_xticks(sorted({x for each in series for x in each.x}))


def _columns(axes: Axes, plot: Plot) -> None:
    """Groups of columns: one group per name in ``plot.columns``, one colour per series."""
    width = 0.8 / len(plot.series)
    for index, (colour, each) in enumerate(zip(COLOURS, plot.series, strict=False)):
        places = [place + (index - (len(plot.series) - 1) / 2) * width for place in range(len(plot.columns))]
        errors = None
        if each.low:
            below = [y - low for y, low in zip(each.y, each.low, strict=True)]
            above = [high - y for y, high in zip(each.y, each.high, strict=True)]
            errors = [below, above]
        drawn = axes.bar(
            places, each.y, width * 0.92, label=each.label, color=colour, yerr=errors, capsize=2, ecolor="#333333"
        )
        axes.bar_label(drawn, fmt="{:.3g}", padding=3, fontsize=8)
    axes.set_xticks(range(len(plot.columns)), plot.columns)
