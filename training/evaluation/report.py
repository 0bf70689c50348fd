"""Output of an evaluation: a table, or flat JSON values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from textmatch.console import cell
from training.evaluation.bootstrap import BootstrapMetrics, Estimate
from training.evaluation.pairs import ReliabilityBin

_TITLES = {
    "spearman": "Spearman",
    "pearson": "Pearson",
    "mse": "mean squared error",
    "accuracy": "accuracy",
    "auc": "AUC",
    "ece": "calibration error",
    "ndcg@10": "nDCG@10",
    "mrr@10": "MRR@10",
    "map": "MAP",
    "accept_ap": "average precision, accept decisions",
    "pair_ap": "average precision, labelled pairs",
}


@dataclass(frozen=True)
class EvaluatedModel:
    """The metrics of one model; `notes` are further values below them, `reliability` its bins of scores."""

    name: str
    model_id: str
    metrics: BootstrapMetrics
    notes: Mapping[str, float]
    reliability: Sequence[ReliabilityBin] = ()


def table(models: Sequence[EvaluatedModel]) -> Table:
    """Models side by side, and below their differences to the first one."""
    shown = Table()
    shown.add_column("")
    for model in models:
        shown.add_column(cell(model.name), justify="right", overflow="fold")
    for name, estimates in _rows([model.metrics.estimates() for model in models]):
        shown.add_row(_TITLES.get(name, name), *map(format_estimate, estimates))
    for name in models[0].notes:
        shown.add_row(name, *(f"{model.notes[name]:.4f}" for model in models))
    if len(models) > 1:
        shown.add_section()
        differences = [model.metrics.minus(models[0].metrics) for model in models[1:]]
        for name, estimates in _rows(differences):
            values = (format_estimate(one, sign="+") for one in estimates)
            shown.add_row(f"± {_TITLES.get(name, name)}", "", *values)
    return shown


def as_json(models: Sequence[EvaluatedModel]) -> list[dict[str, Any]]:
    """The metrics of each model, and its differences to the first one; null where a metric is not defined."""
    return [
        {
            "name": model.name,
            "model_id": model.model_id,
            **{name.replace(" ", "_"): value for name, value in model.notes.items()},
            "metrics": _json_of(model.metrics.estimates()),
            "difference": _json_of(model.metrics.minus(models[0].metrics)) if number else None,
            **({"reliability": [asdict(one) for one in model.reliability]} if model.reliability else {}),
        }
        for number, model in enumerate(models)
    ]


def reliability_as_table(model: EvaluatedModel) -> Table:
    """Pairs, mean score and mean label of each bin of scores."""
    shown = Table("scores from", "pairs", "mean score", "mean label", title=cell(model.name))
    for one in model.reliability:
        shown.add_row(f"{one.lowest:.1f}", str(one.pairs), f"{one.mean_score:.4f}", f"{one.mean_label:.4f}")
    return shown


def lost_to_recall(
    pair_scorers: Sequence[EvaluatedModel], recalls: Sequence[EvaluatedModel], metric: str
) -> list[str]:
    """A warning for each pair scorer whose metric is below that of the best recall."""
    if not recalls:
        return []
    best = max(recalls, key=lambda model: model.metrics.values[metric])
    return [
        f"{model.name} costs more than {best.name} and is worse: {_TITLES.get(metric, metric)} "
        f"{model.metrics.values[metric]:.4f} against {best.metrics.values[metric]:.4f}"
        for model in pair_scorers
        if model.metrics.values[metric] < best.metrics.values[metric]
    ]


def format_estimate(estimate: Estimate, sign: str = "") -> str:
    """`0.8828 (0.8701 to 0.8934)`; a dash if it is not defined."""
    if math.isnan(estimate.value):
        return "–"
    value = f"{estimate.value:{sign}.4f}"
    if math.isnan(estimate.low):
        return value
    return f"{value} ({estimate.low:{sign}.4f} to {estimate.high:{sign}.4f})"


def _rows(models: Sequence[Mapping[str, Estimate]]) -> list[tuple[str, list[Estimate]]]:
    return [(name, [estimates[name] for estimates in models]) for name in models[0]]


def _json_of(estimates: Mapping[str, Estimate]) -> dict[str, dict[str, float | None]]:
    return {
        name: {"value": _or_null(one.value), "low": _or_null(one.low), "high": _or_null(one.high)}
        for name, one in estimates.items()
    }


def _or_null(value: float) -> float | None:
    return None if math.isnan(value) else value
