"""Figures for scores of pairs against their labels: arrays in, numbers out."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ConstantInputWarning, NearConstantInputWarning, pearsonr, rankdata
from sklearn.metrics import precision_recall_curve

from training.evaluation.bootstrap import REPEATS, Indices, Resampled, Values, resample

BINS = 10
# Figures of which less is better.
ERRORS = frozenset({"mse", "ece"})

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class PairSample:
    """Pairs with labels and scores in 0..1, (count,) each.

    `is_positive` says which pairs count as the same for accuracy and AUC, `is_correct` which a threshold
    puts on the right side.
    """

    scores: Values
    labels: Values
    is_positive: Flags
    is_correct: Flags

    def resampled(self, *, repeats: int = REPEATS, seed: int = 0) -> Resampled:
        """All figures, on all pairs and on resamples of them."""
        return resample(self.measure, len(self.scores), repeats=repeats, seed=seed)

    def measure(self, indices: Indices) -> dict[str, Values]:
        """The figures on each row of indices (repeats, count): (repeats,) each; NaN where not defined."""
        scores, labels, is_positive = self.scores[indices], self.labels[indices], self.is_positive[indices]
        ranks = rankdata(scores, axis=1)
        return {
            "spearman": _correlation(ranks, rankdata(labels, axis=1)),
            "pearson": _correlation(scores, labels),
            "mse": ((scores - labels) ** 2).mean(axis=1),
            "accuracy": self.is_correct[indices].mean(axis=1),
            "auc": _auc(ranks, is_positive),
            "ece": _calibration_error(scores, labels),
        }


@dataclass(frozen=True)
class Threshold:
    """The least score at which pairs called the same are so with at least `precision`."""

    precision: float
    score: float
    recall: float


def best_threshold(scores: Values, is_positive: Flags) -> float:
    """The threshold, halfway between two scores, from which on calling pairs the same is right most often."""
    order = np.argsort(-scores, kind="stable")
    falling, positives = scores[order], is_positive[order]
    # [k]: how many are right if the k highest are called the same.
    right = np.cumsum(np.concatenate(([0], np.where(positives, 1, -1)))) + np.count_nonzero(~is_positive)
    splits_a_tie = np.concatenate(([False], falling[1:] == falling[:-1], [False]))
    called_same = int(np.argmax(np.where(splits_a_tie, -1, right)))
    if called_same == 0:
        return float(np.nextafter(falling[0], np.inf))
    if called_same == len(falling):
        return float(falling[-1])
    return float(falling[called_same - 1 : called_same + 1].mean())


def correct_by_threshold(scores: Values, is_positive: Flags, threshold: float) -> Flags:
    """Which pairs (count,) the threshold puts on the right side."""
    right: Flags = (scores >= threshold) == is_positive
    return right


def correct_by_halves(scores: Values, is_positive: Flags, seed: int = 0) -> tuple[Flags, float]:
    """As `correct_by_threshold`, where each half of the pairs is judged by the other half's best threshold.

    Returns:
        Which pairs are right, (count,), and the mean of the two thresholds. A single pair judges itself.
    """
    order = np.random.default_rng(seed).permutation(len(scores))
    halves = np.array_split(order, 2) if len(scores) > 1 else [order, order]
    right = np.zeros(len(scores), dtype=np.bool_)
    thresholds = []
    for own, other in (halves, halves[::-1]):
        thresholds.append(best_threshold(scores[other], is_positive[other]))
        right[own] = correct_by_threshold(scores[own], is_positive[own], thresholds[-1])
    return right, float(np.mean(thresholds))


def threshold_for_precision(scores: Values, is_positive: Flags, precision: float) -> Threshold | None:
    """The lowest threshold that reaches a precision; None if none does."""
    if not is_positive.any():
        return None
    precisions, recalls, thresholds = precision_recall_curve(is_positive, scores)
    reached = np.flatnonzero(precisions[:-1] >= precision)
    if not reached.size:
        return None
    first = reached[0]
    return Threshold(float(precisions[first]), float(thresholds[first]), float(recalls[first]))


def bins_of(scores: Values, bins: int = BINS) -> Indices:
    """Which of so many equally wide bins of 0..1 each score is in, from 0; the last one has 1 in it."""
    return np.minimum((scores * bins).astype(np.int64), bins - 1)


def _correlation(first: Values, second: Values) -> Values:
    """Pearson's r of each row; NaN where one side is constant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        warnings.simplefilter("ignore", NearConstantInputWarning)
        if first.shape[1] < 2:
            return np.full(len(first), np.nan)
        found: Values = pearsonr(first, second, axis=1).statistic
        return found


def _auc(ranks: Values, is_positive: Flags) -> Values:
    """Area under the ROC curve of each row by the rank sum, since scikit-learn's takes one row at a time."""
    positives = is_positive.sum(axis=1)
    negatives = is_positive.shape[1] - positives
    surplus = (ranks * is_positive).sum(axis=1) - positives * (positives + 1) / 2
    undefined = np.full(len(ranks), np.nan)
    area: Values = np.divide(surplus, positives * negatives, out=undefined, where=positives * negatives > 0)
    return area


def _calibration_error(scores: Values, labels: Values) -> Values:
    """Expected calibration error of each row.

    In each bin, the distance between the mean score and the mean label, weighted by the pairs in it.
    """
    repeats, count = scores.shape
    places = bins_of(scores) + BINS * np.arange(repeats)[:, np.newaxis]
    gaps = np.bincount(places.ravel(), weights=(scores - labels).ravel(), minlength=BINS * repeats)
    error: Values = np.abs(gaps).reshape(repeats, BINS).sum(axis=1) / count
    return error
