"""Console output: JSON and plain lines for programs, tables and progress bars for people.

Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

# Tables are wrapped to the width of a terminal only.
_FILE_WIDTH = 200
_MAX_CELL_CHARACTERS = 400
_SECONDS_PER_FRAME = 0.1


def json_line(value: Any) -> str:
    """A JSON document on one line, with the end of the line."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


def print_json(value: Any) -> None:
    """One JSON document on one line of stdout."""
    sys.stdout.write(json_line(value))


def print_line(line: str) -> None:
    """One line on stdout."""
    sys.stdout.write(line + "\n")


def print_result(value: Any, line: str, *, as_json: bool) -> None:
    """One line on stdout: the value as JSON, or the line for people."""
    if as_json:
        print_json(value)
    else:
        print_line(line)


def warn(line: str) -> None:
    """One line on stderr."""
    sys.stderr.write(line + "\n")


def print_table(table: Table) -> None:
    """A table on stdout."""
    console = Console(highlight=False)
    Console(highlight=False, width=None if console.is_terminal else _FILE_WIDTH).print(table)


def cell(value: str) -> Text:
    """A text for a table cell: as in `one_line`, and without markup."""
    return Text(one_line(value))


def one_line(value: str) -> str:
    """The text on one line, shortened, and without characters that control the terminal."""
    printable = "".join(character if character.isprintable() else " " for character in value)
    if len(printable) <= _MAX_CELL_CHARACTERS:
        return printable
    return f"{printable[: _MAX_CELL_CHARACTERS - 1]}…"


class ProgressBars:
    """One bar for each stage of a command, with counts and rates; drawn only if stderr is a terminal."""

    def __init__(self, *, is_shown: bool = True) -> None:
        console = Console(stderr=True, highlight=False)
        self._is_drawn = is_shown and console.is_terminal
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not self._is_drawn,
        )

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, error_type: type[BaseException] | None, *error: object) -> None:
        if self._bars.tasks:
            self._draw(is_finished=error_type is None)
        self._bars.stop()

    def stage(self, name: str, total: int | None = None, *, done: int = 0, unit: str = "") -> None:
        """Start a bar; the previous one is complete.

        Args:
            total: length of the bar; None: not known.
            done: how much of the bar an earlier run has done.
            unit: of the items that are counted after the bar, such as "documents".
        """
        if self._bars.tasks:
            self._draw(is_finished=True)
        self._bars.add_task(name, total=total, completed=done, figures="")
        self._done, self._unit, self._note = done, unit, ""
        self._item_count = 0
        self._started = self._drawn_at = time.monotonic()

    def advance(self, count: int = 1, *, size: int | None = None, note: str = "") -> None:
        """`count` more items are done.

        Args:
            size: how far the bar moves; None: by `count`.
            note: shown after the figures.
        """
        self._item_count += count
        self._done += count if size is None else size
        self._note = note
        if self._is_drawn and time.monotonic() >= self._drawn_at + _SECONDS_PER_FRAME:
            self._draw()

    def _draw(self, *, is_finished: bool = False) -> None:
        self._drawn_at = time.monotonic()
        # The ingest queue may grow while it is drained.
        items = max(0, self._item_count)
        counted = f"{items:,} {self._unit}".rstrip()
        rate = f"{items / max(self._drawn_at - self._started, 0.001):,.0f}/s"
        bar = self._bars.tasks[-1]
        self._bars.update(
            bar.id,
            total=self._done if is_finished else bar.total,
            completed=self._done,
            figures=", ".join(filter(None, [counted, rate, self._note])),
        )
