"""Plots of an evaluation as PNG files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import average_precision_score, precision_recall_curve

from training.evaluation.bootstrap import Values
from training.evaluation.pairs import BINS, Flags, bins_of
from training.model_files import HISTORY

_DEV_METRICS = frozenset({"eval_loss", "eval_spearman", "eval_accuracy"})
_HISTOGRAM_BINS = 40
_DOTS_PER_INCH = 120


def plot_histogram(scores: Values, is_positive: Flags, title: str, path: Path) -> None:
    """The distribution of the scores of positive and of other pairs."""

    def draw(axes: Axes) -> None:
        edges = np.linspace(0, 1, _HISTOGRAM_BINS + 1)
        for selected, label in ((~is_positive, "different"), (is_positive, "same")):
            axes.hist(scores[selected], bins=edges.tolist(), alpha=0.6, label=f"{label} ({selected.sum()})")
        axes.set(xlabel="score", ylabel="pairs", title=title)
        axes.legend()

    _save(draw, path)


def plot_reliability(scores: Values, labels: Values, title: str, path: Path) -> None:
    """Mean label against mean score of each bin; the diagonal is perfect calibration."""
    bins = bins_of(scores)
    counts = np.bincount(bins, minlength=BINS)
    filled = counts > 0
    mean_scores = np.bincount(bins, weights=scores, minlength=BINS)[filled] / counts[filled]
    mean_labels = np.bincount(bins, weights=labels, minlength=BINS)[filled] / counts[filled]

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], linestyle="--", color="grey")
        axes.plot(mean_scores, mean_labels, marker="o")
        for x, y, count in zip(mean_scores, mean_labels, counts[filled], strict=True):
            axes.annotate(str(count), (x, y), textcoords="offset points", xytext=(6, -10), fontsize=7)
        axes.set(xlabel="mean score", ylabel="mean label", title=title, xlim=(0, 1), ylim=(0, 1))

    _save(draw, path)


def plot_precision_recall(scores: Values, is_positive: Flags, title: str, path: Path) -> None:
    """Precision against recall over all thresholds. No plot if no pair is positive."""
    if not is_positive.any():
        return
    precisions, recalls, _ = precision_recall_curve(is_positive, scores)
    average = average_precision_score(is_positive, scores)

    def draw(axes: Axes) -> None:
        axes.plot(recalls, precisions)
        axes.set(
            xlabel="recall", ylabel="precision", title=f"{title}\naverage precision {average:.3f}",
            xlim=(0, 1), ylim=(0, 1.02),
        )  # fmt: skip

    _save(draw, path)


def plot_loss(model_directory: Path, title: str, path: Path) -> None:
    """Training loss and dev metric by step. No plot if the model has no training history."""
    file = model_directory / HISTORY
    if not file.is_file():
        return
    history = json.loads(file.read_text(encoding="utf-8"))
    losses = _series(history, "loss")
    measured = sorted({key for entry in history for key in entry} & _DEV_METRICS)

    def draw(axes: Axes) -> None:
        axes.plot(*losses, label="loss")
        axes.set(xlabel="step", ylabel="loss", title=title)
        if measured:
            other = axes.twinx()
            for name in measured:
                other.plot(*_series(history, name), marker="o", color="tab:orange", label=name[5:])
            other.set_ylabel("dev")
            other.legend(loc="upper center")
        axes.legend(loc="upper right")

    _save(draw, path)


def _series(history: list[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    entries = [entry for entry in history if name in entry and "step" in entry]
    return [entry["step"] for entry in entries], [float(entry[name]) for entry in entries]


def _save(draw: Callable[[Axes], None], path: Path) -> None:
    # A figure without pyplot needs no display and keeps no global state.
    with mpl.rc_context({"font.sans-serif": ["DejaVu Sans"]}):
        figure = Figure(figsize=(6, 4.5), layout="constrained")
        draw(figure.add_subplot())
        figure.savefig(path, dpi=_DOTS_PER_INCH, format="png")
