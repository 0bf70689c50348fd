"""The commands of `textmatch`, each imported only when it is invoked: `textmatch --help` imports none.

Other packages add commands by an entry point in the group "textmatch.commands". Its name is the command. Its
object is a function that typer accepts, or a `typer.Typer` with subcommands:

    [project.entry-points."textmatch.commands"]
    up = "standalone.commands:up"

`textmatch --help` shows the first line of the docstring of the function, or else of the module. It reads the
source for that.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

ENTRY_POINT_GROUP = "textmatch.commands"

_BUILT_IN = {
    "ingest": "textmatch.cli.ingest:ingest",
    "match": "textmatch.cli.match:match",
    "duplicates": "textmatch.cli.duplicates:duplicates",
    "encode": "textmatch.cli.encode:encode",
    "score": "textmatch.cli.score:score",
    "status": "textmatch.cli.status:status",
    "delete": "textmatch.cli.delete:delete",
    "list": "textmatch.cli.documents:list_documents",
    "get": "textmatch.cli.documents:get",
    "count": "textmatch.cli.documents:count",
    "export": "textmatch.cli.documents:export",
    "collections": "textmatch.cli.collections:app",
    "reindex": "textmatch.cli.reindex:reindex [matcher]",
    "tune": "textmatch.cli.tune:tune [matcher]",
    "mcp": "textmatch.cli.mcp:mcp [mcp]",
    "dead-letters": "textmatch.cli.dead_letters:app",
}


class CommandGroup(TyperGroup):
    """The group of all commands, built-in and installed."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = LazyCommands()  # type: ignore[assignment]


class LazyCommands(Mapping[str, TyperCommand]):
    """Command name -> command. Entry points are read only for names that are not built in."""

    def __getitem__(self, name: str) -> TyperCommand:
        if name in _BUILT_IN:
            return LazyCommand(EntryPoint(name, _BUILT_IN[name], ENTRY_POINT_GROUP))
        return LazyCommand(_installed()[name])

    def __iter__(self) -> Iterator[str]:
        yield from _BUILT_IN
        yield from _installed()

    def __len__(self) -> int:
        return len(_BUILT_IN) + len(_installed())


class LazyCommand(TyperCommand):
    """A command that is imported when it is invoked."""

    def __init__(self, entry_point: EntryPoint) -> None:
        super().__init__(entry_point.name, help=_help(entry_point))
        self._entry_point = entry_point

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the real command, which takes over."""
        return _load(self._entry_point).make_context(info_name, args, parent, **extra)


class MissingExtra(typer.TyperException):
    """A command needs packages that are not installed."""

    def __init__(self, entry_point: EntryPoint, missing: str | None) -> None:
        extra = next(iter(entry_point.extras), entry_point.module.partition(".")[0])
        super().__init__(
            f"textmatch {entry_point.name} needs the package {missing}, which is not installed;"
            f" install it with: pip install 'textmatch[{extra}]'"
        )


@cache
def _installed() -> dict[str, EntryPoint]:
    found = entry_points(group=ENTRY_POINT_GROUP)
    return {entry_point.name: entry_point for entry_point in found if entry_point.name not in _BUILT_IN}


def _load(entry_point: EntryPoint) -> Any:
    try:
        loaded = entry_point.load()
    except ModuleNotFoundError as error:
        raise MissingExtra(entry_point, error.name) from error
    if isinstance(loaded, typer.Typer):
        return typer.main.get_command(loaded)
    app = typer.Typer(add_completion=False)
    app.command(entry_point.name, help=_unwrapped(loaded.__doc__ or ""))(loaded)
    return typer.main.get_command(app)


def _unwrapped(docstring: str) -> str:
    """Each paragraph on one line, which typer wraps to the width of the terminal."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in docstring.split("\n\n"))


def _help(entry_point: EntryPoint) -> str:
    try:
        spec = find_spec(entry_point.module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        return f"Not installed: {entry_point.module}."
    module = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    functions = [
        node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == entry_point.attr
    ]
    docstring = ast.get_docstring(functions[0] if functions else module) or ""
    return docstring.partition("\n")[0]
