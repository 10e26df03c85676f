"""What a section found, and the three forms it is kept in: JSON, Markdown and plots."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.timing import Spread, number

Cell = str | int | float | Spread


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under a header; a :class:`~benchmarks.timing.Spread` shows as median (low to high)."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Bar:
    """One promise: ``reached`` is None where this machine cannot tell, and ``note`` says why."""

    promise: str
    direction: Literal["at least", "at most"]
    target: float
    reached: float | None
    unit: str = ""
    note: str = ""

    @property
    def met(self) -> bool | None:
        """None where nothing was measured."""
        if self.reached is None:
            return None
        return self.reached >= self.target if self.direction == "at least" else self.reached <= self.target


@dataclass(frozen=True, slots=True)
class Series:
    """One line or one group of columns; ``low`` and ``high`` draw the spread where given."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Plot:
    """What a plot shows, without a word on how it is drawn. ``columns`` are the groups' names of a column plot."""

    name: str
    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    columns: Sequence[str] = ()
    horizontal_at: float | None = None
    log_x: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """One question's answer. ``figures`` holds every sample, for whoever wants another statistic."""

    name: str
    title: str
    text: str
    tables: Sequence[Table] = ()
    bars: Sequence[Bar] = ()
    plots: Sequence[Plot] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def read(path: Path) -> list[Section]:
    """The sections of an earlier run, none where there was none."""
    if not path.exists():
        return []
    return [_section(document) for document in json.loads(path.read_text("utf-8"))["sections"]]


def _section(document: dict[str, Any]) -> Section:
    tables = [
        Table(each["header"], [[_cell(cell) for cell in row] for row in each["rows"]], each["caption"])
        for each in document["tables"]
    ]
    bars = [Bar(**{key: value for key, value in each.items() if key != "met"}) for each in document["bars"]]
    plots = [Plot(**{**each, "series": [Series(**line) for line in each["series"]]}) for each in document["plots"]]
    return Section(**{**document, "tables": tables, "bars": bars, "plots": plots})


def _cell(cell: Any) -> Cell:
    read_cell: Cell = Spread(**cell) if isinstance(cell, dict) else cell
    return read_cell


def write(folder: Path, name: str, machine: Mapping[str, Any], sections: Sequence[Section]) -> None:
    """``NAME.json`` and ``NAME.md``; the plots that the Markdown shows are :mod:`benchmarks.plots`' to draw."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {"format": 1, "machine": machine, "sections": [_plain(section) for section in sections]}
    text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    (folder / f"{name}.json").write_text(text, "utf-8")
    (folder / f"{name}.md").write_text(markdown(name, machine, sections), "utf-8")


def markdown(name: str, machine: Mapping[str, Any], sections: Sequence[Section]) -> str:
    """The page that people read: the promises first, then each section."""
    lines = [f"# {name}", "", _machine_line(machine), ""]
    bars = [bar for section in sections for bar in section.bars]
    if bars:
        lines += [*_table(("promise", "bar", "reached", ""), [_bar_row(bar) for bar in bars]), ""]
    for section in sections:
        lines += [f"## {section.title}", "", section.text, ""]
        for table in section.tables:
            lines += [table.caption, ""] if table.caption else []
            lines += [*_table(table.header, table.rows), ""]
        lines += [f"![{plot.title}]({name}-{plot.name}.png)" for plot in section.plots]
        lines += [""] if section.plots else []
    return "\n".join(lines)


def _plain(section: Section) -> dict[str, Any]:
    document = asdict(section)
    document["bars"] = [asdict(bar) | {"met": bar.met} for bar in section.bars]
    return document


def _machine_line(machine: Mapping[str, Any]) -> str:
    if not machine:  # a simulation runs on paper
        return ""
    said = "; ".join(f"{key} {value}" for key, value in machine.items() if not isinstance(value, Mapping))
    versions = ", ".join(f"{key} {value}" for key, value in machine.get("versions", {}).items())
    return f"{said}. {versions}.\n\nMedian (quartiles) of interleaved rounds throughout."


def _bar_row(bar: Bar) -> tuple[str, ...]:
    unit = f" {bar.unit}" if bar.unit else ""
    reached = "not measured" if bar.reached is None else f"{number(bar.reached)}{unit}"
    verdict = {True: "met", False: "**missed**", None: "-"}[bar.met]
    return bar.promise, f"{bar.direction} {bar.target:g}{unit}", reached, ": ".join(filter(None, (verdict, bar.note)))


def _table(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return lines + ["| " + " | ".join(_shown(cell) for cell in row) + " |" for row in rows]


def _shown(cell: Cell) -> str:
    return number(cell) if isinstance(cell, float) else str(cell)
