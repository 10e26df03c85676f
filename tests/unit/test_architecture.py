"""The import rows of docs/architecture.md, read from the code itself."""

import ast
import re
import sys
import tomllib
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Lower rows know nothing of higher ones. A package's files share its row.
ROWS = {
    "errors": 1, "config": 1, "variables": 1, "staging_settings": 1,
    "job": 2, "diffusion": 2, "imaging": 2, "fields": 2, "attempt": 2, "trace": 2, "stages": 2, "metering": 2, "backlog": 2, "progress": 2,
    "schema": 3, "plan": 3, "telemetry": 3, "tracing": 3, "clients": 3, "staging": 3, "staging_telemetry": 3, "checkpoint": 3, "pictures": 3, "ledger": 3, "style_files": 3, "style_plot": 3, "style_ways": 3, "merged_folders": 3,
    "pipeline": 4, "endpoints": 4, "conditioning": 4, "merged_models": 4, "mock": 4, "disabled": 4,
    "runner": 5, "denoising": 5, "finishing": 5, "given_pictures": 5, "styles": 5,
    "worker": 6, "conclusion": 6, "outbox": 6, "api": 6, "generate": 6, "inspect": 6, "style": 6, "dead": 6, "terminal": 6, "orders": 6,
    "app": 7, "__main__": 7, "service": 7, "work": 7, "staging_service": 7, "staging_models": 7, "serve": 7, "evaluate": 7,
}  # fmt: skip
PAGE = ROOT / "docs" / "architecture.md"
SHARED_LIBRARIES = {"numpy", "PIL"}


def sources(package: str) -> list[Path]:
    return sorted(path for path in (ROOT / package).rglob("*.py"))


@cache
def imported(path: Path) -> list[str]:
    """Absolute module names that a file imports, wherever in the file."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively; write the whole name"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def unit(path: Path) -> str:
    """The row's key: the file's stem at the top of the package, or the folder below it."""
    parts = path.relative_to(ROOT / "orchestrator").with_suffix("").parts
    return parts[0]


def module_graph() -> dict[str, set[str]]:
    modules = {str(p.relative_to(ROOT).with_suffix("")).replace("/", "."): p for p in sources("orchestrator")}
    graph: dict[str, set[str]] = defaultdict(set)
    for name, path in modules.items():
        for target in imported(path):
            for candidate in (target, target.rpartition(".")[0]):
                if candidate in modules and candidate != name:
                    graph[name].add(candidate)
    return graph


@pytest.mark.parametrize("path", sources("orchestrator"), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_to_the_same_row_or_a_row_above(path: Path) -> None:
    here = unit(path)
    if here == "__init__":
        return
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "orchestrator" and len(parts) > 1 and parts[1] in ROWS:
            assert ROWS[parts[1]] <= ROWS[here], f"{here} (row {ROWS[here]}) imports {name} (row {ROWS[parts[1]]})"


def test_no_module_takes_part_in_an_import_cycle() -> None:
    graph = module_graph()
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for target in graph[name]:
                visit(target, (*path, name))
            done.add(name)

    for name in list(graph):
        visit(name, ())


def test_each_foreign_library_has_one_importer() -> None:
    importers: dict[str, set[str]] = defaultdict(set)
    for path in sources("orchestrator"):
        for name in imported(path):
            library = name.split(".")[0]
            if library not in sys.stdlib_module_names and library not in SHARED_LIBRARIES | {"orchestrator"}:
                importers[library].add(str(path.relative_to(ROOT)))
    assert {library: files for library, files in importers.items() if len(files) > 1} == {}


@pytest.mark.parametrize("package", ["orchestrator", "export", "local"])
def test_packages_keep_out_of_each_other(package: str) -> None:
    allowed = {"local": {"orchestrator.errors"}}.get(package, set())
    for path in sources(package):
        for name in imported(path):
            for other in {"orchestrator", "export", "local", "demo"} - {package}:
                if name.split(".")[0] == other:
                    assert any(name.startswith(a) for a in allowed), f"{path.relative_to(ROOT)} imports {name}"


def test_only_the_settings_and_the_local_services_read_the_environment() -> None:
    readers = {
        str(path.relative_to(ROOT))
        for path in sources("orchestrator")
        if any(n in path.read_text() for n in ("os.environ", "getenv"))
    }
    assert readers <= {"orchestrator/__main__.py", "orchestrator/app.py"}, "from_environ takes a mapping"


def test_no_orchestrator_module_is_over_350_lines() -> None:
    long = {
        str(p.relative_to(ROOT)): n for p in sources("orchestrator") if (n := len(p.read_text().splitlines())) > 350
    }
    assert long == {}


def test_constraints_lie_inside_the_ranges_of_pyproject() -> None:
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    ranges = {r.name: r.specifier for entry in lists for r in map(Requirement, entry)}
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert {name: pin for name, pin in pins.items() if name in ranges and not ranges[name].contains(pin)} == {}


def test_the_page_shows_every_module_in_its_row() -> None:
    lines = re.findall(r"^\| (\d) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    shown = {name: int(row) for row, names in lines for name in re.findall(r"\w+", names)}
    assert {name: shown.get(name) for name in ROWS} == ROWS
