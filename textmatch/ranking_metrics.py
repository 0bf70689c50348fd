"""Metrics of ranked documents: one number per query, from arrays of grades.

`grades` (queries, depth) has the grade of the document at each rank, best rank first. Documents that are not
relevant or not judged have grade 0. `ideal` has the same for the best possible ranking.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Ranks = NDArray[np.int64]


def ndcg(grades: Values, ideal: Values, depth: int) -> Values:
    """Normalised discounted cumulative gain of the first `depth`, with the grade as the gain: (queries,).

    0 for a query without relevant documents.
    """
    gained, best = _discounted(grades, depth), _discounted(ideal, depth)
    return np.divide(gained, best, out=np.zeros_like(gained), where=best > 0)


def reciprocal_rank(grades: Values, depth: int) -> Values:
    """1 / the rank of the first relevant document, 0 if it is not among the first `depth`: (queries,)."""
    is_relevant = grades[:, :depth] > 0
    return np.where(is_relevant.any(axis=1), 1.0 / (1 + is_relevant.argmax(axis=1)), 0.0)


def average_precision(grades: Values, relevant: Ranks) -> Values:
    """The mean over the `relevant` (queries,) documents of the precision at the rank of each: (queries,).

    Relevant documents that are not ranked count 0.
    """
    is_relevant = grades > 0
    precisions = np.cumsum(is_relevant, axis=1) / np.arange(1, grades.shape[1] + 1)
    gained = (precisions * is_relevant).sum(axis=1)
    mean: Values = np.divide(gained, relevant, out=np.zeros_like(gained), where=relevant > 0)
    return mean


def recall(grades: Values, relevant: Ranks, depth: int) -> Values:
    """The share of the `relevant` (queries,) documents that is in the first `depth`: (queries,)."""
    found = (grades[:, :depth] > 0).sum(axis=1).astype(np.float64)
    share: Values = np.divide(found, relevant, out=np.zeros_like(found), where=relevant > 0)
    return share


def retrieval_metrics(
    grades: Values, ideal: Values, relevant: Ranks, recall_depths: Sequence[int]
) -> dict[str, Values]:
    """nDCG@10, MRR@10 and recall at each depth, by name: (queries,) each."""
    recalls = {f"recall@{depth}": recall(grades, relevant, depth) for depth in recall_depths}
    return {"ndcg@10": ndcg(grades, ideal, 10), "mrr@10": reciprocal_rank(grades, 10), **recalls}


def best_first(scores: NDArray[np.floating[Any]]) -> Ranks:
    """Positions of scores (..., depth) from the highest score to the lowest; ties keep their order."""
    return np.argsort(-scores, axis=-1, kind="stable")


@dataclass(frozen=True)
class ReliabilityBins:
    """Probabilities and outcomes in bins of ascending probability, (bins,) each. Empty bins are left out."""

    counts: Ranks
    mean_scores: Values
    mean_labels: Values

    @property
    def calibration_error(self) -> float:
        """The expected calibration error: the mean gap of score and label, weighted by the counts."""
        gaps = np.abs(self.mean_scores - self.mean_labels)
        return float(np.average(gaps, weights=self.counts)) if len(gaps) else 0.0


def reliability_bins(scores: Values, labels: Values, bins: int = 10) -> ReliabilityBins:
    """The points of a reliability diagram, from scores and labels 0..1 (count,): bins of equal count."""
    chunks = [one for one in np.array_split(np.argsort(scores, kind="stable"), bins) if len(one)]
    return ReliabilityBins(
        counts=np.array([len(one) for one in chunks], dtype=np.int64),
        mean_scores=np.array([scores[one].mean() for one in chunks]),
        mean_labels=np.array([labels[one].mean() for one in chunks]),
    )


def calibration_error(scores: Values, labels: Values, bins: int = 10) -> float:
    """The expected calibration error of scores (count,), in bins of equal count."""
    return reliability_bins(scores, labels, bins).calibration_error


def _discounted(grades: Values, depth: int) -> Values:
    first = grades[:, :depth]
    gained: Values = first @ (1.0 / np.log2(np.arange(first.shape[1]) + 2))
    return gained
