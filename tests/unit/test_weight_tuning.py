"""Learning weights from judged candidates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from textmatch.score_fusion import ScoreComponents, Weights, combined_score, recall_score
from textmatch.weight_tuning import JudgedCandidates, calibrate, combined_scores, ndcg_of, tune

# Bad enough for each part that something better can be found.
START = Weights(0.6, 0.1)
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
    tuning = tune(queries, START)
    assert lowest.lexical <= tuning.weights.lexical <= highest.lexical
    assert lowest.rerank <= tuning.weights.rerank <= highest.rerank
    assert ndcg_of(queries, tuning.weights).mean() > ndcg_of(queries, START).mean()
    assert tuning.before.mean() == pytest.approx(ndcg_of(queries, START).mean())


def test_a_gain_that_does_not_hold_for_other_queries_is_none():
    queries = judged("cosine", count=60)
    for query in queries:
        RANDOM.shuffle(query.grades)
    tuning = tune(queries, START)
    assert not tuning.is_better
    assert tuning.gain == pytest.approx(0, abs=0.05)


def test_weights_learned_from_some_queries_are_measured_on_others():
    queries = judged("bm25", count=50)
    tuning = tune(queries, Weights(0.0, 0.0), seed=3)
    assert tuning.gain == pytest.approx((tuning.after - tuning.before).mean())
    assert tuning.is_better
    fold = np.array_split(np.random.default_rng(3).permutation(50), 5)[0]
    others = [query for number, query in enumerate(queries) if number not in fold]
    learned = tune(others, Weights(0.0, 0.0)).weights
    assert tuning.after[fold] == pytest.approx(ndcg_of([queries[one] for one in fold], learned))


def test_without_bm25_the_weight_of_words_stays():
    queries = [replace(query, bm25=np.zeros(30)) for query in judged("cross_encoder")]
    assert tune(queries, Weights(0.6, 0.1)).weights.lexical == 0.6


def test_what_recall_leaves_out_is_neither_found_nor_forgotten():
    query = JudgedCandidates(
        cosine=np.array([0.9, 0.5, 0.1]),
        bm25=np.zeros(3),
        cross_encoder=np.array([0.0, 0.0, 1.0]),
        grades=np.array([0.0, 0.0, 1.0]),
    )
    weights = Weights(rerank=1.0)
    assert ndcg_of([query], weights).tolist() == [1.0]
    assert ndcg_of([replace(query, depth=2)], weights).tolist() == [0.0]
    assert ndcg_of([replace(query, depth=3, missed_grades=np.ones(9))], weights)[0] < 0.5


def test_few_judgements_change_nothing_but_the_calibration():
    queries = judged("cosine", count=1)
    tuning = tune(queries, START)
    assert (tuning.weights.lexical, tuning.weights.rerank) == (START.lexical, START.rerank)
    assert not tuning.is_better


def test_a_calibrated_score_is_how_likely_the_document_is_relevant():
    cosine = RANDOM.uniform(0, 1, 20_000)
    likely = 1 / (1 + np.exp(-(20 * cosine - 12)))
    grades = (RANDOM.uniform(0, 1, 20_000) < likely).astype(float)
    unscored = np.full_like(cosine, np.nan)
    calibration = calibrate([JudgedCandidates(cosine, np.zeros_like(cosine), unscored, grades)], START)
    assert calibration is not None
    assert calibration.slope == pytest.approx(20, rel=0.1)
    assert calibration.intercept == pytest.approx(-12, rel=0.1)


def test_arrays_and_single_values_give_the_same_scores():
    [query] = judged("bm25", count=1)
    unscored = np.where(np.arange(30) < 10, query.cross_encoder, np.nan)
    weights = Weights(0.7, 0.3)
    scores = combined_scores(JudgedCandidates(query.cosine, query.bm25, unscored, query.grades), weights)
    for position in range(10):
        recall = recall_score(
            ScoreComponents(float(query.cosine[position]), float(query.bm25[position])), weights
        )
        assert scores[position] == pytest.approx(combined_score(recall, float(unscored[position]), weights))
    assert not np.isnan(scores).any()


def test_nothing_can_be_calibrated_without_relevant_documents():
    [query] = judged("cosine", count=1)
    nothing = JudgedCandidates(query.cosine, query.bm25, query.cross_encoder, np.zeros(30))
    assert tune([nothing, nothing], START).weights == START
