"""What goes to stdout and stderr: tables and bars for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

# Nobody folds lines where no person looks.
_WIDTH_OF_FILES = 200
_MAX_CELL_CHARACTERS = 400


def print_json(value: Any) -> None:
    """One JSON document on one line of stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")


def print_line(line: str) -> None:
    """One line on stdout."""
    sys.stdout.write(line + "\n")


def warn(line: str) -> None:
    """One line on stderr."""
    sys.stderr.write(line + "\n")


def print_table(table: Table) -> None:
    """A table on stdout."""
    console = Console(highlight=False)
    Console(highlight=False, width=None if console.is_terminal else _WIDTH_OF_FILES).print(table)


def cell(value: str) -> Text:
    """A text from outside as a table's cell: on one line, not too long, and without control characters."""
    return Text(one_line(value))


def one_line(value: str) -> str:
    """A text from outside that cannot disturb the terminal."""
    printable = "".join(character if character.isprintable() else " " for character in value)
    if len(printable) <= _MAX_CELL_CHARACTERS:
        return printable
    return f"{printable[: _MAX_CELL_CHARACTERS - 1]}…"
