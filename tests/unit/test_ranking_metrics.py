from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from textmatch.ranking_metrics import (
    average_precision,
    best_first,
    ndcg,
    recall,
    reciprocal_rank,
    retrieval_metrics,
)

GRADES = np.array([[0.0, 3.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0], [2.0, 0.0, 0.0, 0.0]])
IDEAL = np.array([[3.0, 2.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0], [2.0, 0.0, 0.0, 0.0]])
RELEVANT = np.array([3, 1, 1])


def test_ndcg_by_hand() -> None:
    gained = 3 / np.log2(3) + 1 / np.log2(5)
    best = 3 + 2 / np.log2(3) + 1 / 2
    assert ndcg(GRADES, IDEAL, 10) == pytest.approx([gained / best, 0.0, 1.0])
    assert ndcg(GRADES, IDEAL, 1) == pytest.approx([0.0, 0.0, 1.0])


def test_ndcg_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 4, (5, 30)).astype(np.float64)
    scores = random.random((5, 30))
    grades = np.take_along_axis(truth, best_first(scores), axis=1)
    ours = ndcg(grades, -np.sort(-truth, axis=1), 10)
    assert ours.mean() == pytest.approx(ndcg_score(truth, scores, k=10))


def test_average_precision_by_hand() -> None:
    # Ranks 2 and 4 of three relevant documents; the third is not ranked.
    assert average_precision(GRADES, RELEVANT) == pytest.approx([(1 / 2 + 2 / 4) / 3, 0.0, 1.0])


def test_reciprocal_rank_and_recall_by_hand() -> None:
    assert reciprocal_rank(GRADES, 10) == pytest.approx([1 / 2, 0.0, 1.0])
    assert reciprocal_rank(GRADES, 1) == pytest.approx([0.0, 0.0, 1.0])
    assert recall(GRADES, RELEVANT, 2) == pytest.approx([1 / 3, 0.0, 1.0])
    assert recall(GRADES, RELEVANT, 100) == pytest.approx([2 / 3, 0.0, 1.0])


def test_a_query_without_relevant_documents_counts_as_0() -> None:
    none = np.zeros((1, 3))
    figures = retrieval_metrics(none, none, np.array([0]), [2])
    assert {name: values.tolist() for name, values in figures.items()} == {
        "ndcg@10": [0.0],
        "mrr@10": [0.0],
        "recall@2": [0.0],
    }


def test_ties_stay_in_order() -> None:
    assert best_first(np.array([[0.1, 0.9, 0.9, 0.5]])).tolist() == [[1, 2, 3, 0]]
