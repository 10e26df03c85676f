"""What was measured to be best for a repository on one machine, and how it gets into ``config.pbtxt``.

``tuning.json`` lies at the repository's root, survives a rebuild and is applied by it. Where there is none, the values
of ``export/specs.py`` stand.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from export.errors import ExportError

TUNING_FILE: Final = "tuning.json"
FORMAT: Final = 1
ROWS_AIMED_AT: Final = "rows_aimed_at"
"""Parameter in ``config.pbtxt`` that the orchestrator reads: rows by area in latent pixels, ``4096:8,16384:2``."""


@dataclass(frozen=True)
class Tuned:
    """What one model is served with; None leaves what the build chose. ``rows_aimed_at`` is by area."""

    max_queue_delay_us: int | None = None
    runtime: str | None = None
    threads: int | None = None
    rows_aimed_at: Mapping[int, int] = field(default_factory=dict)

    def applied(self, config: str) -> str:
        """``config``, the text of a ``config.pbtxt``, with these values in it."""
        if self.max_queue_delay_us is not None:
            config = re.sub(r"(max_queue_delay_microseconds: )\d+", rf"\g<1>{self.max_queue_delay_us}", config)
        rows = ",".join(f"{area}:{rows}" for area, rows in sorted(self.rows_aimed_at.items()))
        threads = None if self.threads is None else str(self.threads)
        for key, value in (("runtime", self.runtime), ("threads", threads)):
            if value is not None and f'key: "{key}"' in config:
                config = _with_parameter(config, key, value)
        return _with_parameter(config, ROWS_AIMED_AT, rows) if rows else config


def read_tuning(repository: Path) -> dict[str, Tuned]:
    """What ``repository`` was tuned to, by model; empty where it never was."""
    path = repository / TUNING_FILE
    if not path.exists():
        return {}
    try:
        told = json.loads(path.read_text("utf-8"))
        if told["format"] != FORMAT:
            raise ValueError(f"format {told['format']}")
        return {model: _tuned(entry) for model, entry in told["models"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{path} cannot be read ({error}); delete it and tune again") from error


def write_tuning(repository: Path, machine: str, models: Mapping[str, Tuned], curves: list[dict[str, Any]]) -> None:
    """Writes ``tuning.json`` with the curves that led there, and the values into the models' configurations."""
    document = {
        "format": FORMAT,
        "machine": machine,
        "models": {model: asdict(tuned) for model, tuned in models.items()},
        "curves": curves,
    }
    (repository / TUNING_FILE).write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    for model, tuned in models.items():
        path = repository / model / "config.pbtxt"
        path.write_text(tuned.applied(path.read_text("utf-8")), "utf-8")


def _tuned(entry: Mapping[str, Any]) -> Tuned:
    rows = {int(area): int(rows) for area, rows in entry["rows_aimed_at"].items()}
    return Tuned(entry["max_queue_delay_us"], entry["runtime"], entry["threads"], rows)


def _with_parameter(config: str, key: str, value: str) -> str:
    line = f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
    old = re.compile(rf'^parameters \{{ key: "{key}" .*$', re.MULTILINE)
    return old.sub(line, config) if old.search(config) else f"{config}{line}\n"
