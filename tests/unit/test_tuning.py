"""Learning weights from judged candidates."""

from __future__ import annotations

import numpy as np
import pytest

from textmatch.combination import Parts, Weights, combined_score, recall_score
from textmatch.tuning import JudgedCandidates, calibrate, combined_scores, ndcg_of, tune

RANDOM = np.random.default_rng(0)


def judged(relevant_by: str, count: int = 40) -> list[JudgedCandidates]:
    """Queries whose relevant documents stand out in one part only; the others are noise."""
    queries = []
    for _ in range(count):
        grades = (np.arange(30) < 3).astype(float)
        noise = {
            "cosine": RANDOM.uniform(0.2, 0.6, 30),
            "bm25": RANDOM.uniform(0, 15, 30),
            "cross_encoder": RANDOM.uniform(0, 0.5, 30),
        }
        noise[relevant_by] = (
            noise[relevant_by] + grades * {"cosine": 0.3, "bm25": 12, "cross_encoder": 0.4}[relevant_by]
        )
        queries.append(JudgedCandidates(**noise, grades=grades))
    return queries


@pytest.mark.parametrize(
    ("part", "lowest", "highest"),
    [
        ("cross_encoder", Weights(0.0, 0.5), Weights(1.0, 1.0)),
        ("bm25", Weights(0.6, 0.0), Weights(1.0, 0.4)),
        ("cosine", Weights(0.0, 0.0), Weights(0.4, 0.4)),
    ],
)
def test_the_part_that_tells_relevant_documents_apart_gets_the_weight(
    part: str, lowest: Weights, highest: Weights
):
    queries = judged(part)
    tuned = tune(queries, Weights())
    assert lowest.lexical <= tuned.lexical <= highest.lexical
    assert lowest.rerank <= tuned.rerank <= highest.rerank
    assert ndcg_of(queries, tuned).mean() > ndcg_of(queries, Weights()).mean()


def test_few_judgements_change_nothing_but_the_calibration():
    queries = judged("cosine", count=1)
    tuned = tune(queries, Weights())
    assert (tuned.lexical, tuned.rerank) == (Weights().lexical, Weights().rerank)


def test_a_calibrated_score_is_how_likely_the_document_is_relevant():
    cosine = RANDOM.uniform(0, 1, 20_000)
    likely = 1 / (1 + np.exp(-(20 * cosine - 12)))
    grades = (RANDOM.uniform(0, 1, 20_000) < likely).astype(float)
    unscored = np.full_like(cosine, np.nan)
    calibration = calibrate([JudgedCandidates(cosine, np.zeros_like(cosine), unscored, grades)], Weights())
    assert calibration is not None
    assert calibration.slope == pytest.approx(20, rel=0.1)
    assert calibration.intercept == pytest.approx(-12, rel=0.1)


def test_arrays_and_single_values_give_the_same_scores():
    [query] = judged("bm25", count=1)
    unscored = np.where(np.arange(30) < 10, query.cross_encoder, np.nan)
    weights = Weights(0.7, 0.3)
    scores = combined_scores(JudgedCandidates(query.cosine, query.bm25, unscored, query.grades), weights)
    for position in range(10):
        recall = recall_score(Parts(float(query.cosine[position]), float(query.bm25[position])), weights)
        assert scores[position] == pytest.approx(combined_score(recall, float(unscored[position]), weights))
    assert not np.isnan(scores).any()


def test_nothing_can_be_calibrated_without_relevant_documents():
    [query] = judged("cosine", count=1)
    nothing = JudgedCandidates(query.cosine, query.bm25, query.cross_encoder, np.zeros(30))
    assert tune([nothing, nothing], Weights()) == Weights()
