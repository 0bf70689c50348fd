"""What an evaluation shows: a table for people, flat figures for programs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from textmatch.console import cell
from training.evaluation.bootstrap import Estimate, Resampled

_TITLES = {
    "spearman": "Spearman",
    "pearson": "Pearson",
    "mse": "mean squared error",
    "accuracy": "accuracy",
    "auc": "AUC",
    "ece": "calibration error",
    "ndcg@10": "nDCG@10",
    "mrr@10": "MRR@10",
}


@dataclass(frozen=True)
class Column:
    """One model's figures; `notes` stand below them."""

    name: str
    model_id: str
    figures: Resampled
    notes: Mapping[str, float]


def table(columns: Sequence[Column]) -> Table:
    """Models side by side, and below how far they are from the first one."""
    shown = Table()
    shown.add_column("")
    for column in columns:
        shown.add_column(cell(column.name), justify="right", overflow="fold")
    for name, estimates in _rows([column.figures.estimates() for column in columns]):
        shown.add_row(_TITLES.get(name, name), *map(text, estimates))
    for name in columns[0].notes:
        shown.add_row(name, *(f"{column.notes[name]:.4f}" for column in columns))
    if len(columns) > 1:
        shown.add_section()
        differences = [column.figures.minus(columns[0].figures) for column in columns[1:]]
        for name, estimates in _rows(differences):
            shown.add_row(f"± {_TITLES.get(name, name)}", "", *(text(one, sign="+") for one in estimates))
    return shown


def as_json(columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Each model's figures, and its differences to the first one; null where a figure is not defined."""
    return [
        {
            "name": column.name,
            "model_id": column.model_id,
            **column.notes,
            "metrics": _json_of(column.figures.estimates()),
            "difference": _json_of(column.figures.minus(columns[0].figures)) if number else None,
        }
        for number, column in enumerate(columns)
    ]


def text(estimate: Estimate, sign: str = "") -> str:
    """`0.8828 (0.8701 to 0.8934)`; a dash where it is not defined."""
    if math.isnan(estimate.value):
        return "–"
    value = f"{estimate.value:{sign}.4f}"
    if math.isnan(estimate.low):
        return value
    return f"{value} ({estimate.low:{sign}.4f} to {estimate.high:{sign}.4f})"


def _rows(columns: Sequence[Mapping[str, Estimate]]) -> list[tuple[str, list[Estimate]]]:
    return [(name, [column[name] for column in columns]) for name in columns[0]]


def _json_of(estimates: Mapping[str, Estimate]) -> dict[str, dict[str, float | None]]:
    return {
        name: {"value": _or_null(one.value), "low": _or_null(one.low), "high": _or_null(one.high)}
        for name, one in estimates.items()
    }


def _or_null(value: float) -> float | None:
    return None if math.isnan(value) else value
