"""Which cosines are worth a pair score, and which scores are enough."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.matcher.duplicates import DuplicateRule
from textmatch.documents import Document
from textmatch.score_fusion import ScoreComponents, ScoreModel, default_fusion, probability
from textmatch.types import DuplicateOptions

MULTILINGUAL = default_fusion("textmatch-bi-encoder-0123456789ab")
ENGLISH = default_fusion("textmatch-bi-encoder-en-0123456789ab")
ONE, OTHER = Document("a", "text a", {"n": 1}, 3), Document("b", "text b", {"n": 2}, 4)


@pytest.mark.parametrize("min_score", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("fusion", [MULTILINGUAL, ENGLISH])
def test_no_pair_below_the_lowest_cosine_has_enough_by_embeddings_alone(fusion, min_score):
    rule = DuplicateRule.of(DuplicateOptions(min_score=min_score, rerank=False), fusion)
    below, above = (ScoreComponents(rule.min_cosine + step) for step in (-1e-3, 1e-3))
    assert rule.pair(below, ONE, OTHER) is None
    if rule.min_cosine < 0.99:
        pair = rule.pair(above, ONE, OTHER)
        assert pair is not None
        assert pair.score == pair.recall_score == probability(fusion.logit(above)) >= min_score
        assert (pair.first, pair.second) == (Document("a", "text a", {}, 3), Document("b", "text b", {}, 4))


@pytest.mark.parametrize("min_score", [0.1, 0.5, 0.9, 0.99])
def test_a_candidate_can_reach_the_score_and_is_not_one_of_many(min_score):
    rule = DuplicateRule.of(DuplicateOptions(min_score=min_score), MULTILINGUAL)
    assert rule.is_reranked
    below = ScoreComponents(rule.min_cosine - 1e-3)
    is_hopeless = probability(MULTILINGUAL.logit(replace(below, pair=1.0))) < min_score
    assert is_hopeless or probability(MULTILINGUAL.logit(below)) < 0.05
    above = ScoreComponents(rule.min_cosine + 1e-3)
    assert probability(MULTILINGUAL.logit(replace(above, pair=1.0))) >= min_score
    assert probability(MULTILINGUAL.logit(above)) >= 0.05


def test_without_a_weight_no_pair_is_scored():
    assert not DuplicateRule.of(DuplicateOptions(), ENGLISH).is_reranked
    assert not DuplicateRule.of(DuplicateOptions(rerank=False), MULTILINGUAL).is_reranked


def test_a_model_that_ignores_the_cosine_excludes_nothing():
    fusion = replace(MULTILINGUAL, cosine=ScoreModel(0.0))
    assert DuplicateRule.of(DuplicateOptions(rerank=False), fusion).min_cosine == -1.0
