"""Commands made of settings: each field of a dataclass becomes an option, and none is written twice."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import typer

Settings = TypeVar("Settings")


def add_command(
    app: typer.Typer, name: str, settings_class: type[Settings], run: Callable[[Settings], None]
) -> None:
    """Add the command `name`, which calls `run` with settings; their fields are its options."""

    def command(**values: Any) -> None:
        run(settings_class(**values))

    hints = get_type_hints(settings_class, include_extras=True)
    parameters = [
        inspect.Parameter(
            one.name, inspect.Parameter.KEYWORD_ONLY, default=_default(one), annotation=hints[one.name]
        )
        for one in fields(settings_class)  # type: ignore[arg-type]
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    app.command(name, help=inspect.getdoc(run))(command)


def command_line(name: str, settings: Any) -> str:
    """The command that gives these settings; files by folder and name: their place differs by machine."""
    words = ["textmatch", "train", name]
    for one in fields(settings):
        value = getattr(settings, one.name)
        if value != _default(one) and one.name != "resume":
            words += _words(one.name.replace("_", "-"), value)
    return shlex.join(words)


def short_name(path: Path) -> str:
    """Folder and name: the place of the folder differs from machine to machine."""
    return f"{path.resolve().parent.name}/{path.name}"


def portable(name: str) -> str:
    """The name of a model; a local directory by folder and name."""
    return short_name(Path(name)) if name and Path(name).is_dir() else name


def _words(option: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    if isinstance(value, list):
        return [word for one in value for word in _words(option, one)]
    if isinstance(value, tuple):
        return [f"--{option}", *(f"{one:g}" for one in value)]
    return [f"--{option}", short_name(value) if isinstance(value, Path) else portable(str(value))]


def _default(one: Field[Any]) -> Any:
    if one.default_factory is not MISSING:
        return one.default_factory()
    return inspect.Parameter.empty if one.default is MISSING else one.default
