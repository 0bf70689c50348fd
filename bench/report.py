"""What every benchmark does with its figures: a table for people, flat JSON for programs."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """One table; every column after the first is aligned to the right."""
    table = Table(title=title, title_justify="left")
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def write_figures(figures: Mapping[str, float], path: Path | None) -> None:
    """Print the figures that are compared from run to run, and keep them if a file was asked for."""
    print_table("Figures", ["figure", "value"], [[name, f"{value:.3f}"] for name, value in figures.items()])
    if path is not None:
        path.write_text(json.dumps(dict(figures), indent=2) + "\n")


def machine() -> str:
    """A short description of the machine, to go beside figures."""
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
