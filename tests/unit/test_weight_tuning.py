"""Fitting score models to judged candidates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from textmatch.ranking_metrics import calibration_error
from textmatch.score_fusion import NEVER, PART_SETS, Fusion, ScoreComponents, ScoreModel, default_fusion
from textmatch.weight_tuning import (
    JudgedCandidates,
    fit,
    pairs_scored,
    ranking_logits,
    scores_and_labels,
    tune,
)

START = default_fusion("any-0")
TRUE = ScoreModel(-6.0, cosine=7.0, lexical=5.0, pair=0.6)
RANDOM = np.random.default_rng(0)


def judged(count: int = 80, model: ScoreModel = TRUE, candidates: int = 40) -> list[JudgedCandidates]:
    """Queries whose candidates are relevant as the model says."""
    queries = []
    for _ in range(count):
        cosine = RANDOM.uniform(0.0, 0.8, candidates)
        lexical, pair = RANDOM.uniform(0, 0.6, candidates), RANDOM.uniform(0.01, 0.99, candidates)
        logits = model.intercept + model.cosine * cosine + model.lexical * lexical
        logits += model.pair * np.log(pair / (1 - pair))
        grades = (RANDOM.uniform(size=candidates) < 1 / (1 + np.exp(-logits))).astype(float)
        queries.append(JudgedCandidates(cosine, lexical, pair, grades))
    return queries


def missing(queries: list[JudgedCandidates], part: str) -> list[JudgedCandidates]:
    return [replace(query, **{part: np.full(len(query.grades), np.nan)}) for query in queries]


def test_the_model_that_made_the_judgements_is_found():
    fitted = fit(judged(500), START).cosine_lexical_pair
    assert fitted.intercept == pytest.approx(TRUE.intercept, rel=0.15)
    assert fitted.cosine == pytest.approx(TRUE.cosine, rel=0.15)
    assert fitted.lexical == pytest.approx(TRUE.lexical, rel=0.15)
    assert fitted.pair == pytest.approx(TRUE.pair, rel=0.15)


def test_every_set_of_parts_is_calibrated_on_held_out_queries():
    queries = judged(200)
    tuning = tune(queries, START, START)
    assert tuning.is_better
    assert tuning.parts == "cosine_lexical_pair"
    assert len(tuning.after) == 5
    for name, quality in tuning.after.items():
        assert quality.calibration_error < 0.02 < tuning.before[name].calibration_error
        scores, labels = scores_and_labels(queries, name, tuning.held_out)
        assert quality.calibration_error == calibration_error(scores, labels)


def test_a_part_that_misleads_gets_no_weight():
    misleading = ScoreModel(-4.0, cosine=7.0, lexical=-6.0)
    assert fit(judged(200, misleading), START).cosine_lexical.lexical == 0.0


def test_few_queries_move_the_models_a_little():
    queries = [replace(query, grades=1.0 - query.grades) for query in judged(400)]
    few, many = (fit(queries[:count], START).cosine.logit(ScoreComponents(0.4)) for count in (1, 400))
    present = START.cosine.logit(ScoreComponents(0.4))
    assert present < few < many
    assert few - present < 0.9 * (many - present)
    assert not tune(queries[:1], START, START).is_better


def test_what_was_learned_is_not_learned_again():
    queries = judged(100)
    tuning = tune(queries, START, START)
    again = tune(queries, tuning.fusion, START)
    assert tuning.is_better
    assert not again.is_better
    assert again.fusion == tuning.fusion
    assert again.log_loss_gains.mean() == pytest.approx(0.0, abs=0.005)


def test_judgements_by_chance_do_not_change_the_order_for_the_better():
    queries = judged(60)
    for query in queries:
        RANDOM.shuffle(query.grades)
    tuning = tune(queries, START, START)
    assert tuning.ndcg_gains.mean() < 0.1


def test_models_of_one_fold_are_measured_on_the_others():
    queries = judged(50)
    tuning = tune(queries, START, START, seed=3)
    fold = np.array_split(np.random.default_rng(3).permutation(50), 5)[0]
    others = [query for number, query in enumerate(queries) if number not in fold]
    found, expected = tuning.held_out[fold[0]], fit(others, START)
    assert all(getattr(found, name) == getattr(expected, name) for name in PART_SETS)


def test_models_of_missing_parts_stay_as_they_are():
    queries = judged(50)
    present = replace(START, cosine_pair=ScoreModel(-1.0, cosine=2.0, pair=3.0))
    without_pair = tune(missing(queries, "pair"), present, START)
    assert without_pair.parts == "cosine_lexical"
    assert without_pair.fusion.cosine_pair == present.cosine_pair
    dense = tune(missing(missing(queries, "pair"), "lexical"), START, START)
    assert list(dense.after) == ["cosine"]
    assert dense.fusion.lexical == START.lexical
    assert dense.fusion.cosine != START.cosine


def test_nothing_is_fitted_without_relevant_documents():
    queries = [replace(query, grades=np.zeros(40)) for query in judged(3)]
    assert tune(queries, START, START).fusion == START


def test_weights_decide_between_queries_that_disagree():
    likely, unlikely = judged(40, ScoreModel(2.0)), judged(40, ScoreModel(-2.0))
    light = [replace(query, weight=1e-3) for query in likely]
    assert fit([*light, *unlikely], START).cosine != fit([*likely, *unlikely], START).cosine
    score = fit([*light, *unlikely], START).cosine.logit(ScoreComponents(0.4))
    assert score == pytest.approx(-2.0, abs=0.3)


def test_pairs_that_a_match_does_not_score_do_not_count():
    query = JudgedCandidates(
        cosine=np.array([0.9, 0.5, 0.1]),
        lexical=np.full(3, np.nan),
        pair=np.array([0.001, 0.001, 0.999]),
        grades=np.array([0.0, 0.0, 1.0]),
    )
    fusion = replace(START, cosine_pair=ScoreModel(0.0, pair=1.0), pair_from=0.0)
    assert ranking_logits(query, "cosine_pair", fusion).argmax() == 2
    recall = ranking_logits(query, "cosine", fusion)
    for frugal in (replace(fusion, pair_depth=2), replace(fusion, pair_from=0.2)):
        assert ranking_logits(query, "cosine_pair", frugal)[2] == recall[2]
        assert pairs_scored(query, frugal).tolist() == [True, True, False]


def lookalikes(count: int, pair_from: float) -> list[JudgedCandidates]:
    """Queries of which pair scores tell the relevant candidate apart, but only from that cosine on."""
    queries = []
    for query in judged(count, ScoreModel(-30.0)):
        query.cosine[:4] = RANDOM.uniform(0.9, 1.0, 4)
        grades = np.zeros(40)
        grades[RANDOM.integers(4)] = 1.0
        is_like = query.cosine >= pair_from
        pair = np.where(is_like, np.where(grades > 0, 0.95, 0.05), query.pair)
        queries.append(replace(query, grades=grades, pair=pair))
    return queries


def test_pairs_are_scored_where_that_improves_the_ranking():
    tuning = tune(lookalikes(80, 0.9), START, START)
    assert 0.8 <= tuning.fusion.pair_from <= 0.9
    assert tuning.fusion.pair_depth == 5
    assert tuning.is_better
    with_pairs, without = (tuning.after[name].ndcg for name in ("cosine_lexical_pair", "cosine_lexical"))
    assert (with_pairs - without).mean() > 0.2


def test_pairs_that_gain_nothing_are_never_scored():
    useless = judged(80, ScoreModel(-6.0, cosine=7.0, lexical=5.0))
    assert tune(useless, replace(START, pair_from=0.5), START).fusion.pair_from == NEVER
    unscored = tune(missing(useless, "pair"), replace(START, pair_from=0.5, pair_depth=7), START).fusion
    assert (unscored.pair_from, unscored.pair_depth) == (0.5, 7)


def test_arrays_and_single_values_give_the_same_scores():
    [query] = judged(1)
    partly = replace(query, pair=np.where(np.arange(40) < 10, query.pair, np.nan))
    logits = ranking_logits(partly, "cosine_lexical_pair", START)
    for position in range(40):
        pair = float(partly.pair[position]) if position < 10 else None
        parts = ScoreComponents(float(query.cosine[position]), float(query.lexical[position]), pair)
        assert logits[position] == pytest.approx(START.logit(parts), abs=1e-5)


def test_a_fusion_has_one_model_for_each_set():
    assert isinstance(fit(judged(5), START), Fusion)
