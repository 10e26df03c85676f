"""What came of a curated set: as JSON, and as one page with a slider for each room that needs nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Final

from orchestrator.staging.curated import Entry
from orchestrator.staging.scores.limits import LEAST_SCORE, LIMITS
from orchestrator.staging.scores.verdict import Verdict

_PAGE: Final = Path(__file__).with_name("report.html")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One room: its pictures as paths beside the page, and what was thought of it; ``error`` says why there is none."""

    entry: Entry
    before: str
    after: str | None = None
    verdict: Verdict | None = None
    error: str = ""
    seed: int | None = None
    strength: float | None = None
    duration_ms: int = 0
    warnings: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether it was made and every score is good enough."""
        return self.verdict is not None and self.verdict.passed


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All rooms; ``facts`` are shown as they are, ``least`` is the share of rooms that must pass."""

    title: str
    origin: str
    outcomes: Sequence[Outcome]
    least: float
    facts: Mapping[str, str]

    @property
    def pass_rate(self) -> float:
        """Share of the rooms that passed, 0 to 1."""
        return sum(outcome.passed for outcome in self.outcomes) / len(self.outcomes)

    @property
    def good(self) -> bool:
        """Whether enough rooms passed."""
        return self.pass_rate >= self.least

    def scores(self) -> dict[str, list[float]]:
        """The scores of all rooms by name, in the order of the limits."""
        verdicts = [outcome.verdict for outcome in self.outcomes if outcome.verdict is not None]
        found = {name: [v.scores[name] for v in verdicts if name in v.scores] for name in LIMITS}
        return {name: values for name, values in found.items() if values}

    def document(self) -> dict[str, object]:
        """The report for machines."""
        return {
            "title": self.title,
            "origin": self.origin,
            "passed": sum(outcome.passed for outcome in self.outcomes),
            "rooms": len(self.outcomes),
            "pass_rate": round(self.pass_rate, 4),
            "least": self.least,
            "facts": dict(self.facts),
            "scores": {
                name: {"mean": round(sum(values) / len(values), 4), "lowest": min(values), "low": _low(values)}
                for name, values in self.scores().items()
            },
            "entries": [_entry(outcome) for outcome in self.outcomes],
        }

    def page(self) -> str:
        """The report for people, as HTML."""
        passed = sum(outcome.passed for outcome in self.outcomes)
        unmade = sum(outcome.verdict is None for outcome in self.outcomes)
        mood = "good" if self.good else "bad"
        totals = [
            f'<li><strong class="{mood}">{self.pass_rate:.0%}</strong>of the rooms pass; '
            f"{self.least:.0%} {'are' if self.good else 'were'} expected</li>",
            f"<li><strong>{passed} of {len(self.outcomes)}</strong>rooms pass every score</li>",
            f"<li><strong>{unmade}</strong>could not be staged</li>",
        ]
        return Template(_PAGE.read_text(encoding="utf-8")).substitute(
            title=escape(self.title),
            subtitle=escape(self.origin),
            totals="".join(totals),
            scores="".join(_score_row(name, values) for name, values in self.scores().items()),
            rooms="".join(_room(outcome) for outcome in self.outcomes),
            facts="".join(
                f'<tr><th scope="row">{escape(name)}</th><td>{escape(fact)}</td></tr>'
                for name, fact in self.facts.items()
            ),
        )


def _low(values: Sequence[float]) -> int:
    return sum(value < LEAST_SCORE for value in values)


def _entry(outcome: Outcome) -> dict[str, object]:
    entry, verdict = outcome.entry, outcome.verdict
    return {
        "id": entry.id,
        "room_type": entry.room_type,
        "style": entry.style,
        "seed": outcome.seed,
        "strength": outcome.strength,
        "passed": outcome.passed,
        "scores": {} if verdict is None else dict(verdict.scores),
        "reasons": {} if verdict is None else dict(verdict.reasons),
        "unjudged": [] if verdict is None else list(verdict.unjudged),
        "warnings": list(outcome.warnings),
        "error": outcome.error,
        "duration_ms": outcome.duration_ms,
        "before": outcome.before,
        "after": outcome.after,
    }


def _score_row(name: str, values: Sequence[float]) -> str:
    low = _low(values)
    mood = ' class="number bad"' if low else ' class="number"'
    mean = sum(values) / len(values)
    return (
        f'<tr><th scope="row">{escape(name.replace("_", " "))}</th><td class="number">{mean:.2f}</td>'
        f'<td class="number">{min(values):.2f}</td><td{mood}>{low} of {len(values)}</td></tr>'
    )


def _room(outcome: Outcome) -> str:
    entry = outcome.entry
    what = f"{entry.room_type.replace('_', ' ')}, {entry.style}"
    made = f"seed {outcome.seed}, {outcome.duration_ms / 1000:.1f} s" if outcome.verdict is not None else ""
    badge = '<span class="badge good">passes</span>' if outcome.passed else '<span class="badge bad">fails</span>'
    return (
        f'<article class="room"><header><h3>{escape(entry.id)}</h3>{badge}<span>{escape(what)}</span>'
        f'<span class="pale">{escape(made)}</span></header><div class="body">{_compare(outcome, what)}'
        f'<div class="scores">{_scores(outcome)}{_notes(outcome)}</div></div></article>'
    )


def _compare(outcome: Outcome, what: str) -> str:
    """Both pictures side by side; the page's script lays one over the other."""
    before = _figure("before", outcome.before, f"The empty room {outcome.entry.id}", "before")
    if outcome.after is None:
        return f'<div class="compare">{before}</div>'
    after = _figure("after", outcome.after, f"The same room staged as {what}", "after")
    return f'<div class="compare" data-slider="{escape(outcome.entry.id)}">{before}{after}</div>'


def _figure(kind: str, source: str, alternative: str, caption: str) -> str:
    return (
        f'<figure class="{kind}"><img src="{escape(source)}" alt="{escape(alternative)}" loading="lazy">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _scores(outcome: Outcome) -> str:
    if outcome.verdict is None:
        return ""
    rows = []
    for name, value in outcome.verdict.scores.items():
        low = " low" if value < LEAST_SCORE else ""
        rows.append(
            f'<div class="score{low}"><span>{escape(name.replace("_", " "))}</span>'
            f'<span class="track"><i style="width: {value:.0%}"></i></span><span>{value:.2f}</span></div>'
        )
    return "".join(rows)


def _notes(outcome: Outcome) -> str:
    verdict = outcome.verdict
    bad = [outcome.error] if outcome.error else list(verdict.reasons.values()) if verdict is not None else []
    pale = [*outcome.warnings, *(() if verdict is None else verdict.unjudged)]
    lines = [f'<li class="bad">{escape(line)}</li>' for line in bad]
    lines += [f'<li class="pale">{escape(line)}</li>' for line in pale]
    return f'<ul class="notes">{"".join(lines)}</ul>' if lines else ""
