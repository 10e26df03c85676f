"""Step times by rows in a batch: measured ones, and ones derived from arithmetic where no card was at hand."""

import json
from bisect import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("curves.json")
TFLOP_PER_ROW = 0.803
"""SD 1.5's UNet at 512x512, one row."""
TFLOP_PER_DECODE = 2.51


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCurve:
    """What one node needs: ``rows`` and ``step_s`` in step; ``extra_s`` is text and decoding of one job.

    ``source`` is "measured" or "derived", and ``basis`` says by what, on what or from what. ``price_per_hour`` is in
    US dollars and an example: every contract differs.
    """

    name: str
    source: str
    basis: str
    rows: tuple[float, ...]
    step_s: tuple[float, ...]
    extra_s: float
    cold_start_s: float
    price_per_hour: float
    at_once: int = 10

    def __call__(self, rows: float) -> float:
        """Seconds of a step with ``rows``: straight lines between the points, the last slope beyond them."""
        if len(self.rows) == 1:
            return self.step_s[0] * rows / self.rows[0]
        right = min(max(bisect(self.rows, rows), 1), len(self.rows) - 1)
        (x0, x1), (y0, y1) = self.rows[right - 1 : right + 1], self.step_s[right - 1 : right + 1]
        return max(y0 + (y1 - y0) * (rows - x0) / (x1 - x0), self.step_s[0] * min(1.0, rows / self.rows[0]))

    def capacity_per_s(self, steps: float, weight: float = 1.0) -> float:
        """Jobs a second with every place taken; ``weight`` is a job's mean."""
        turn_s = self(2.0 * self.at_once * weight)
        return self.at_once / (steps * turn_s + self.at_once * self.extra_s)


def read_curves(path: Path = FILE) -> dict[str, StepCurve]:
    """The curves of a file such as ``curves.json``, by name."""
    document = json.loads(path.read_text("utf-8"))
    return {name: curve_from(name, entry) for name, entry in document["curves"].items()}


def curve_from(name: str, entry: Mapping[str, Any]) -> StepCurve:
    """One entry: points as they were measured, or a rate from which they follow."""
    shared = {
        key: entry[key] for key in ("source", "basis", "cold_start_s", "price_per_hour", "at_once") if key in entry
    }
    if "step_ms" in entry:
        points = tuple(value / 1000 for value in entry["step_ms"])
        return StepCurve(
            name=name, rows=tuple(entry["rows"]), step_s=points, extra_s=entry["extra_ms"] / 1000, **shared
        )
    rate, fixed_s = entry["tflops"] * entry["share_reached"], entry["fixed_ms"] / 1000
    rows = (1.0, 32.0)
    return StepCurve(
        name=name,
        rows=rows,
        step_s=tuple(fixed_s + count * TFLOP_PER_ROW / rate for count in rows),
        extra_s=TFLOP_PER_DECODE / rate,
        **shared,
    )


def curve_from_bench(path: Path) -> StepCurve:
    """The batch curve that ``make bench`` measured on this machine's CPU."""
    document = json.loads(path.read_text("utf-8"))
    sections = {section["name"]: section["figures"] for section in document["sections"]}
    rates = {
        int(name.removeprefix("engine ")): sorted(samples)[len(samples) // 2]
        for name, samples in sections["batching"]["rows_per_s"].items()
        if name.startswith("engine ")
    }
    rows = tuple(sorted(rates))
    return StepCurve(
        name="bench",
        source="measured",
        basis=f"make bench on {document['machine']['processor']}, {document['machine']['cores']} cores",
        rows=tuple(float(count) for count in rows),
        step_s=tuple(count / rates[count] for count in rows),
        extra_s=sections["startup"]["text_and_decode_s"],
        cold_start_s=sections["startup"]["cold_start_s"],
        price_per_hour=0.1,
    )
