"""What is in the data, told before training: balance, lengths, repeated rows, leaks into dev."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from training.options import short_name
from training.pairs import ClassPair, read_class_pairs
from training.settings import RunSettings

_MOST_CLASSES = 10
_SCORE_GROUPS = 5
_LENGTH_LIMITS = (8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class TrainingRow:
    """The texts of one row, one or more, and its label; "" where there is none."""

    texts: tuple[str, ...]
    label: str = ""


@dataclass(frozen=True)
class Leak:
    """How much of a file to measure on stands in the training data too, in either order."""

    path: Path
    row_count: int
    leaked_row_count: int
    sentence_count: int
    leaked_sentence_count: int


@dataclass(frozen=True)
class DataReport:
    """Of the training rows; `lengths` counts texts by their characters."""

    row_count: int
    labels: tuple[tuple[str, int], ...]
    lengths: tuple[tuple[str, int], ...]
    repeated_count: int
    contradicted_count: int
    leaks: tuple[Leak, ...]

    def lines(self) -> list[tuple[str, str]]:
        """The report for people: what, and how much."""
        lines = [("rows", f"{self.row_count:,}"), ("characters of a text", _shares(self.lengths))]
        if self.labels:
            lines.insert(1, ("labels", _shares(self.labels)))
        lines.append(("repeated rows", f"{self.repeated_count:,}"))
        if self.labels:
            lines.append(("rows that another contradicts", f"{self.contradicted_count:,}"))
        lines += [
            (
                f"of {short_name(leak.path)}, seen in training",
                (
                    f"{leak.leaked_row_count:,} of {leak.row_count:,} rows,"
                    f" {leak.leaked_sentence_count:,} of {leak.sentence_count:,} sentences"
                ),
            )
            for leak in self.leaks
        ]
        return lines


def report_data(settings: RunSettings, rows: Sequence[TrainingRow], console: Console) -> DataReport:
    """Look at the training rows beside the files to measure on, and print what was found.

    Raises:
        InvalidInput: a file to measure on cannot be read.
    """
    measured = [*([settings.dev] if settings.dev else []), *settings.held_out]
    report = describe(rows, {path: read_class_pairs(path, settings.form) for path in measured})
    tell(report, console)
    return report


def tell(report: DataReport, console: Console) -> None:
    """Print the report as a table."""
    table = Table("training data", "", highlight=True)
    for line in report.lines():
        table.add_row(*line)
    console.print(table)


def describe(rows: Sequence[TrainingRow], measured: Mapping[Path, Sequence[ClassPair]]) -> DataReport:
    """Count what a person should know of the training rows and of the files to measure on."""
    labels_of: dict[frozenset[str], set[str]] = {}
    for row in rows:
        labels_of.setdefault(frozenset(row.texts), set()).add(row.label)
    sentences = {text for row in rows for text in row.texts}
    return DataReport(
        row_count=len(rows),
        labels=_label_groups(Counter(row.label for row in rows if row.label)),
        lengths=_length_groups([len(text) for row in rows for text in row.texts]),
        repeated_count=len(rows) - len(labels_of),
        contradicted_count=sum(len(labels_of[frozenset(row.texts)]) > 1 for row in rows),
        leaks=tuple(_leak(path, pairs, labels_of.keys(), sentences) for path, pairs in measured.items()),
    )


def _leak(
    path: Path,
    pairs: Sequence[ClassPair],
    seen_rows: AbstractSet[frozenset[str]],
    seen_sentences: AbstractSet[str],
) -> Leak:
    sentences = {sentence for pair in pairs for sentence in (pair.first, pair.second)}
    return Leak(
        path=path,
        row_count=len(pairs),
        leaked_row_count=sum(frozenset((pair.first, pair.second)) in seen_rows for pair in pairs),
        sentence_count=len(sentences),
        leaked_sentence_count=len(sentences & seen_sentences),
    )


def _label_groups(counts: Counter[str]) -> tuple[tuple[str, int], ...]:
    """Each class by itself; scores, of which there are many, in groups of equal width."""
    if len(counts) <= _MOST_CLASSES:
        return tuple(sorted(counts.items()))
    scores = np.array([float(label) for label in counts.elements()])
    sizes, limits = np.histogram(scores, bins=_SCORE_GROUPS)
    return tuple(
        (f"{low:.2g} to {high:.2g}", int(size))
        for low, high, size in zip(limits, limits[1:], sizes, strict=False)
    )


def _length_groups(lengths: Sequence[int]) -> tuple[tuple[str, int], ...]:
    edges = [0, *_LENGTH_LIMITS, np.inf]
    sizes, _ = np.histogram(lengths, bins=edges)
    names = [f"{low} to {high - 1}" for low, high in pairwise((0, *_LENGTH_LIMITS))]
    names.append(f"{_LENGTH_LIMITS[-1]} or more")
    return tuple((name, int(size)) for name, size in zip(names, sizes, strict=True) if size)


def _shares(groups: Sequence[tuple[str, int]]) -> str:
    total = sum(size for _, size in groups)
    return ", ".join(f"{name}: {size:,} ({size / total:.0%})" for name, size in groups)
