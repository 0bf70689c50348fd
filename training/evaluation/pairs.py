"""Evaluation on labelled pairs: reading them, scoring them with models, and the metrics of the scores."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ConstantInputWarning, NearConstantInputWarning, pearsonr, rankdata
from sklearn.metrics import precision_recall_curve

from textmatch.io.data_files import DETECTED, FileFormat
from textmatch.models.calibration import Scores
from textmatch.models.fast_tokenizer import Pair
from training.evaluation.bootstrap import REPEATS, BootstrapMetrics, Indices, Values, resample
from training.evaluation.scorers import System
from training.examples import read_scored_pairs
from training.labels import UNIT_RANGE, ScoreRange, parse_classes

Flags = NDArray[np.bool_]

BINS = 10
# A threshold is chosen on all other folds of the pairs that it is judged on.
FOLDS = 5
# The model card and the calibrate command report the thresholds for these precisions.
PRECISIONS = (0.9, 0.95)


@dataclass(frozen=True)
class PairFile:
    """Pairs with labels in 0..1, (count,); `is_positive` says which of them have the same meaning."""

    path: Path
    pairs: Sequence[Pair]
    labels: Values
    is_positive: Flags


@dataclass(frozen=True)
class PairSample:
    """Pairs with labels and scores in 0..1, (count,) each.

    `is_positive` says which pairs have the same meaning, for accuracy and AUC; `is_correct` which of them a
    threshold classifies correctly.
    """

    scores: Values
    labels: Values
    is_positive: Flags
    is_correct: Flags

    def bootstrap(self, *, repeats: int = REPEATS, seed: int = 0) -> BootstrapMetrics:
        """All metrics, on all pairs and on resamples of them."""
        return resample(self.measure, len(self.scores), repeats=repeats, seed=seed)

    def measure(self, indices: Indices) -> dict[str, Values]:
        """The metrics of each row of indices (repeats, count): (repeats,) each; NaN where not defined."""
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
class PrecisionThreshold:
    """The lowest score from which the pairs are positive with this precision, and the recall there."""

    precision: float
    score: float
    recall: float


@dataclass(frozen=True)
class ReliabilityBin:
    """Pairs whose score is `lowest` or more and below the next bin."""

    lowest: float
    pairs: int
    mean_score: float
    mean_label: float


@dataclass(frozen=True)
class MeasuredPairs:
    """Metrics of one scorer on one file. `scores` are (count,); accuracy is that of `threshold`."""

    name: str
    model_id: str
    scores: Values
    threshold: float
    metrics: BootstrapMetrics


def read_pair_file(
    path: Path,
    file_format: FileFormat = DETECTED,
    score_range: ScoreRange = UNIT_RANGE,
    positive_from: float = 0.5,
    classes: str = "",
) -> PairFile:
    """All pairs of a file. Labels of `positive_from` or more, after mapping to 0..1, are positive.

    `classes` gives the scores of labels that are classes, as in `no=0,maybe=0.5,yes=1`.

    Raises:
        InvalidInput: the file cannot be read as pairs with scores; the message names the place.
    """
    found = read_scored_pairs(path, file_format, score_range, parse_classes(classes) if classes else None)
    labels = np.array([pair.score for pair in found])
    return PairFile(path, [(pair.first, pair.second) for pair in found], labels, labels >= positive_from)


def measure_on_pairs(
    system: System, test: PairFile, dev: PairFile | None = None, *, repeats: int = REPEATS, seed: int = 0
) -> list[MeasuredPairs]:
    """Metrics of each scorer of a model; calibrated scorers also appear uncalibrated.

    Args:
        system: the model.
        test: the pairs that the metrics are computed on.
        dev: the pairs that the threshold for the accuracy is chosen on. Without it, the threshold is
            cross-validated on the test pairs.
        repeats: resamples for the intervals.
        seed: of the resamples and the folds.
    """
    dev_scores = scores_by_name(system, dev.pairs) if dev else {}
    measured = []
    for name, scores in scores_by_name(system, test.pairs).items():
        if dev:
            threshold = best_threshold(dev_scores[name], dev.is_positive)
            is_correct = correct_by_threshold(scores, test.is_positive, threshold)
        else:
            is_correct, threshold = correct_by_folds(scores, test.is_positive, seed)
        sample = PairSample(scores, test.labels, test.is_positive, is_correct)
        metrics = sample.bootstrap(repeats=repeats, seed=seed)
        measured.append(MeasuredPairs(name, system.model_id, scores, threshold, metrics))
    return measured


def scores_by_name(system: System, pairs: Sequence[Pair]) -> dict[str, Values]:
    """The scores (count,) of each scorer of a system, calibrated and not, by the name to show."""
    named: dict[str, Scores] = {}
    found = system.score(pairs)
    for scored in found:
        name = system.name if len(found) == 1 else f"{system.name} ({scored.scorer})"
        named[name] = scored.scores
        if scored.uncalibrated is not None:
            named[f"{name}, uncalibrated"] = scored.uncalibrated
    return {name: scores.astype(np.float64) for name, scores in named.items()}


def best_threshold(scores: Values, is_positive: Flags) -> float:
    """The threshold with the best accuracy, halfway between two scores."""
    order = np.argsort(-scores, kind="stable")
    falling, positives = scores[order], is_positive[order]
    # [k]: number of correct pairs if the k highest scores are classified as positive.
    correct = np.cumsum(np.concatenate(([0], np.where(positives, 1, -1)))) + np.count_nonzero(~is_positive)
    splits_a_tie = np.concatenate(([False], falling[1:] == falling[:-1], [False]))
    positive_count = int(np.argmax(np.where(splits_a_tie, -1, correct)))
    if positive_count == 0:
        return float(np.nextafter(falling[0], np.inf))
    if positive_count == len(falling):
        return float(falling[-1])
    return float(falling[positive_count - 1 : positive_count + 1].mean())


def correct_by_threshold(scores: Values, is_positive: Flags, threshold: float) -> Flags:
    """Which pairs the threshold classifies correctly: (count,)."""
    correct: Flags = (scores >= threshold) == is_positive
    return correct


def correct_by_folds(scores: Values, is_positive: Flags, seed: int = 0) -> tuple[Flags, float]:
    """As `correct_by_threshold`, with a threshold from `FOLDS`-fold cross-validation.

    Returns:
        The correct pairs, (count,), and the mean of the folds' thresholds. A single pair chooses its own.
    """
    order = np.random.default_rng(seed).permutation(len(scores))
    correct = np.zeros(len(scores), dtype=np.bool_)
    thresholds = []
    for own in np.array_split(order, min(FOLDS, len(scores))):
        others = np.setdiff1d(order, own) if len(own) < len(scores) else own
        thresholds.append(best_threshold(scores[others], is_positive[others]))
        correct[own] = correct_by_threshold(scores[own], is_positive[own], thresholds[-1])
    return correct, float(np.mean(thresholds))


def threshold_for_precision(
    scores: Values, is_positive: Flags, precision: float
) -> PrecisionThreshold | None:
    """The lowest threshold with at least this precision; None if there is none."""
    if not is_positive.any():
        return None
    precisions, recalls, thresholds = precision_recall_curve(is_positive, scores)
    reached = np.flatnonzero(precisions[:-1] >= precision)
    if not reached.size:
        return None
    first = reached[0]
    return PrecisionThreshold(float(precisions[first]), float(thresholds[first]), float(recalls[first]))


def precision_thresholds(scores: Values, is_positive: Flags) -> dict[float, PrecisionThreshold | None]:
    """The lowest threshold for each of `PRECISIONS`, if there is one."""
    return {precision: threshold_for_precision(scores, is_positive, precision) for precision in PRECISIONS}


def reliability_table(scores: Values, labels: Values) -> list[ReliabilityBin]:
    """Mean score and mean label of each bin that has pairs."""
    bins = bins_of(scores)
    return [
        ReliabilityBin(number / BINS, int(own.sum()), float(scores[own].mean()), float(labels[own].mean()))
        for number in range(BINS)
        if (own := bins == number).any()
    ]


def bins_of(scores: Values) -> Indices:
    """The bin of each score, from 0, of `BINS` equally wide bins of 0..1. The last bin includes 1."""
    return np.minimum((scores * BINS).astype(np.int64), BINS - 1)


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
    """Area under the ROC curve of each row, by rank sums: scikit-learn takes only one row at a time."""
    positives = is_positive.sum(axis=1)
    negatives = is_positive.shape[1] - positives
    surplus = (ranks * is_positive).sum(axis=1) - positives * (positives + 1) / 2
    undefined = np.full(len(ranks), np.nan)
    area: Values = np.divide(surplus, positives * negatives, out=undefined, where=positives * negatives > 0)
    return area


def _calibration_error(scores: Values, labels: Values) -> Values:
    """Expected calibration error of each row.

    The distance between mean score and mean label of each bin, weighted by its number of pairs.
    """
    repeats, count = scores.shape
    places = bins_of(scores) + BINS * np.arange(repeats)[:, np.newaxis]
    gaps = np.bincount(places.ravel(), weights=(scores - labels).ravel(), minlength=BINS * repeats)
    error: Values = np.abs(gaps).reshape(repeats, BINS).sum(axis=1) / count
    return error
