"""Helpers of the benchmarks: mixed texts, tables for people, flat JSON for programs, plots."""

from __future__ import annotations

import importlib
import json
import os
import platform
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from standalone.demo.corpus import build_corpus

JsonFile = Annotated[Path | None, typer.Option("--json", help="File to write the figures to.")]

_MEDIAN_WORDS = 14
_LENGTH_SPREAD = 0.8
_MAX_WORDS = 180


def mixed_texts(count: int, seed: int = 0) -> list[str]:
    """English texts of lognormal length: a median of about 20 tokens, 95th percentile about 100.

    The words are from real texts, and the same in every run.
    """
    words = [word for document in build_corpus() for word in document.text.split()]
    generator = random.Random(seed)
    texts = []
    for _ in range(count):
        length = min(_MAX_WORDS, max(1, round(_MEDIAN_WORDS * generator.lognormvariate(0, _LENGTH_SPREAD))))
        start = generator.randrange(len(words) - length)
        texts.append(" ".join(words[start : start + length]))
    return texts


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """One table; every column after the first is aligned to the right."""
    table = Table(title=title, title_justify="left")
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def write_figures(figures: Mapping[str, float], path: Path | None) -> None:
    """Print the figures that are compared from run to run, and write them to the file, if given."""
    print_table("Figures", ["figure", "value"], [[name, f"{value:.3f}"] for name, value in figures.items()])
    if path is not None:
        path.write_text(json.dumps(dict(figures), indent=2) + "\n")


def new_plot(path: Path, rows: int, size: tuple[float, float]) -> tuple[Any, Any] | None:
    """A matplotlib figure with `rows` plots above one another; None, with a message, without matplotlib."""
    try:
        figures = importlib.import_module("matplotlib.figure")
    except ImportError:
        typer.echo(f"{path} was not drawn: matplotlib is not installed", err=True)
        return None
    figure = figures.Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, 1, sharex=True)


def machine() -> str:
    """A short description of the machine for table titles."""
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
