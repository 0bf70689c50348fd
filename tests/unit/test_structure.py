"""The shape of the tree: sizes, importers, names, and the walks that docs/architecture.md shows."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_LINES = 500
MIN_LINES_WITH_ONE_IMPORTER = 80
MAX_FILES = 280
# Small by nature, or the way into a program.
EXEMPT_FROM_MIN = ("__init__.py", "__main__.py", "settings.py", "metrics.py")
GENERATED = re.compile(r"_pb2(_grpc)?\.py$")

# Where the modules of a folder of unit tests live.
TESTED_PACKAGES = {
    "": "textmatch",
    "bench": "bench",
    "demo": "standalone/demo",
    "encoder": "services/encoder",
    "gateway": "services/gateway",
    "matcher": "services/matcher",
    "qdrant_edge": "standalone/qdrant_edge",
    "standalone": "standalone",
    "training": "training",
    "training/evaluation": "training/evaluation",
    "workers": "workers",
}
# Tests of documents, packages and manifests instead of modules.
NOT_OF_A_MODULE = {"test_structure.py", "test_docs.py", "test_dependencies.py"}
WALKS = {"A document, from `IngestDocuments` to its point": 26, "A query, from `Match` to its score": 20}


@cache
def files() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return sorted(name for name in set(listed.stdout.split()) if (ROOT / name).exists())


@cache
def modules() -> list[str]:
    return [name for name in files() if not name.startswith("tests/") and not GENERATED.search(name)]


@cache
def tree_of(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text())


def lines_of(name: str) -> int:
    return len((ROOT / name).read_text().splitlines())


def module_name(name: str) -> str:
    return name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


@cache
def importers() -> dict[str, set[str]]:
    """File -> the files that import it or something of it."""
    known = {module_name(name): name for name in modules()}
    found: dict[str, set[str]] = defaultdict(set)
    for name in modules():
        for node in ast.walk(tree_of(name)):
            for imported in _imported(node):
                if imported in known and known[imported] != name:
                    found[known[imported]].add(name)
    return found


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom) and node.module:
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_there_are_few_files():
    assert len(modules()) <= MAX_FILES


def test_no_module_is_too_long():
    assert {name: lines_of(name) for name in modules() if lines_of(name) > MAX_LINES} == {}


def test_a_small_module_has_more_than_one_importer():
    small = {
        name: importers()[name]
        for name in modules()
        if lines_of(name) < MIN_LINES_WITH_ONE_IMPORTER
        and not name.endswith(EXEMPT_FROM_MIN)
        and len(importers()[name]) == 1
    }
    assert small == {}, "each of these belongs to its only importer"


def test_no_public_class_name_stands_for_two_things():
    places: dict[str, list[str]] = defaultdict(list)
    for name in modules():
        for node in tree_of(name).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(name)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def unit_test_files() -> list[str]:
    return [
        name
        for name in files()
        if name.startswith("tests/unit/")
        and Path(name).name.startswith("test_")
        and not name.startswith("tests/unit/deploy/")
        and Path(name).name not in NOT_OF_A_MODULE
    ]


@pytest.mark.parametrize("name", unit_test_files())
def test_a_unit_test_is_named_for_a_module(name: str):
    folder = str(Path(name).parent.relative_to("tests/unit")).removeprefix(".")
    package = TESTED_PACKAGES.get(folder, f"textmatch/{folder}")
    tested = Path(name).stem.removeprefix("test_")
    known = {Path(module).stem for module in modules() if str(Path(module).parent) == package}
    known.add("main" if f"{package}/__main__.py" in modules() else "")
    assert any(one and (tested == one or tested.startswith(f"{one}_")) for one in known), (
        f"{name} tests no module of {package}: {sorted(known)}"
    )


Step = tuple[str, str, str, str]


def walk_of(title: str) -> list[Step]:
    """The calls under a heading of docs/architecture.md: file and function of caller and callee."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    section = text.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"`([\w/]+\.py):([\w.]+)` → `([\w/]+\.py):([\w.]+)`", section)


def defined_in(name: str) -> set[str]:
    names: set[str] = set()
    for node in tree_of(name).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {
                f"{node.name}.{child.name}"
                for child in node.body
                if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            }
    return names


@pytest.mark.parametrize("title", WALKS)
def test_each_step_of_a_walk_exists(title: str):
    steps = walk_of(title)
    assert len(steps) > 10
    ends = {end for step in steps for end in (step[:2], step[2:])}
    assert {end for end in ends if end[1] not in defined_in(end[0])} == set()


@pytest.mark.parametrize(("title", "limit"), WALKS.items())
def test_a_walk_is_short_and_never_calls_back(title: str, limit: int):
    visited = [walk_of(title)[0][0]]
    calls: set[tuple[str, str]] = set()
    for caller, _, callee, _ in walk_of(title):
        assert caller in visited, f"{caller} was not reached before it called"
        is_new = callee not in visited
        assert is_new or callee == caller or (caller, callee) in calls, f"{caller} calls back into {callee}"
        calls.add((caller, callee))
        if is_new:
            visited.append(callee)
    assert len(visited) <= limit
