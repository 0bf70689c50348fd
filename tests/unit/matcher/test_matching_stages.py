"""How candidates are recalled, which of them are scored, and what their scores are made of."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tests.unit.matcher.scripted import FUSION, ScriptedEncoder, ScriptedIndex, matcher, soon
from textmatch import errors
from textmatch.score_fusion import FUSION_NOTE, ScoreModel, default_fusion, probability, to_mapping
from textmatch.types import DegradedReason, MatchOptions, MatchResult, Recall, Rerank

MODEL = "bi-000000000000"
COSINES = {"a": 0.9, "b": 0.8, "c": -0.2}


def scores(result: MatchResult) -> list[tuple[str, float]]:
    return [(one.document.id, round(one.score, 3)) for one in result.matches]


def expected(**logits: float) -> list[tuple[str, float]]:
    return [(key, round(probability(logit), 3)) for key, logit in logits.items()]


async def test_shared_terms_raise_the_recall_score():
    index = ScriptedIndex(lexical={"b": 0.5})
    options = MatchOptions(rerank=Rerank.NONE)
    result = await matcher(ScriptedEncoder(), index).match("query", options, deadline=soon())
    assert scores(result) == expected(b=1.3, a=0.9, c=-0.2)
    assert result.recall is Recall.HYBRID
    dense = MatchOptions(rerank=Rerank.NONE, recall=Recall.DENSE)
    result = await matcher(ScriptedEncoder(), index).match("query", dense, deadline=soon())
    assert scores(result) == expected(a=0.9, b=0.8, c=-0.2)
    assert result.recall is Recall.DENSE


async def test_a_query_without_terms_is_scored_by_its_embedding():
    index = ScriptedIndex(lexical={"b": 0.5})
    options = MatchOptions(rerank=Rerank.NONE)
    result = await matcher(ScriptedEncoder(), index).match("🔥", options, deadline=soon())
    assert scores(result) == expected(a=0.9, b=0.8, c=-0.2)
    assert result.matches[0].explanation.lexical is None


async def test_hybrid_recall_needs_a_collection_that_has_bm25():
    options = MatchOptions(recall=Recall.HYBRID)
    with pytest.raises(errors.LexicalIndexMissing, match="without a BM25 index; use dense recall"):
        await matcher(ScriptedEncoder()).match("q", options, deadline=soon())


@pytest.mark.parametrize(
    "error", [errors.DeadlinePassed("late"), errors.DeadlineTooShort("busy"), errors.Overloaded("full")]
)
async def test_bm25_alone_answers_when_the_query_is_not_embedded_in_time(error: errors.TextMatchError):
    encoder = ScriptedEncoder(encode_error=error)
    index = ScriptedIndex(lexical={"c": 0.5, "b": 0.25})
    result = await matcher(encoder, index).match("query", MatchOptions(), deadline=soon())
    assert scores(result) == expected(c=-0.5, b=-0.75)
    assert result.matches[0].explanation.cosine is None
    assert (result.degraded, encoder.scored) == (DegradedReason.ENCODE_LATE, [])
    with pytest.raises(type(error)):
        await matcher(encoder, index).match("q", MatchOptions(recall=Recall.DENSE), deadline=soon())


async def test_what_was_scored_before_time_ran_out_counts():
    index = ScriptedIndex(cosines={f"d{number:02}": 0.9 - number / 100 for number in range(12)})
    pair_scores = {f"text d{number:02}": 0.1 for number in range(8)} | {"text d07": 1.0}
    encoder = ScriptedEncoder(scores=pair_scores, score_error=errors.DeadlinePassed("late"), good_chunks=1)
    result = await matcher(encoder, index).match(
        "query", MatchOptions(top_k=12, rerank=Rerank.CROSS_ENCODER), deadline=soon(1.0)
    )
    assert encoder.scored == [[f"text d{number:02}" for number in range(8)]]
    assert (result.degraded, result.scored_count, result.candidate_count) == (
        DegradedReason.RERANK_LATE,
        8,
        12,
    )
    assert result.matches[0].document.id == "d07"
    by_id = {one.document.id: one for one in result.matches}
    assert by_id["d08"].rerank_score is None
    # Its score is the probability by the parts that it has.
    assert by_id["d08"].score == by_id["d08"].recall_score == pytest.approx(probability(0.82))
    assert by_id["d00"].score == pytest.approx(probability(0.9 - math.log(3)), abs=1e-5)


async def test_only_the_best_candidates_are_scored_and_returned():
    index = ScriptedIndex(cosines={f"d{number:02}": 0.9 - number / 100 for number in range(30)})
    encoder = ScriptedEncoder()
    result = await matcher(encoder, index, depth=5).match(
        "q", MatchOptions(top_k=2, rerank=Rerank.CROSS_ENCODER), deadline=soon(10)
    )
    assert (result.scored_count, result.candidate_count, len(result.matches)) == (5, 30, 2)
    await matcher(encoder, index).match(
        "q", MatchOptions(rerank_depth=12, rerank=Rerank.CROSS_ENCODER), deadline=soon(10)
    )
    await matcher(encoder, index).match(
        "q", MatchOptions(top_k=20, rerank_depth=3, rerank=Rerank.CROSS_ENCODER), deadline=soon(10)
    )
    assert [len(chunk) for chunk in encoder.scored] == [5, 12, 20]


async def test_in_a_cascade_the_pair_classifier_chooses_what_is_scored():
    encoder = ScriptedEncoder()
    options = MatchOptions(top_k=1, rerank=Rerank.CASCADE, rerank_depth=2)
    result = await matcher(encoder).match("query", options, deadline=soon())
    assert encoder.scored == [["text b", "text c"]]
    assert result.matches[0].explanation.pair_classifier_score == 0.9


async def test_a_late_classifier_leaves_the_order_of_recall():
    encoder = ScriptedEncoder(score_error=errors.DeadlinePassed("late"))
    options = MatchOptions(top_k=2, rerank=Rerank.CASCADE, rerank_depth=2)
    result = await matcher(encoder).match("query", options, deadline=soon())
    assert [one.document.id for one in result.matches] == ["a", "b"]
    assert result.degraded is DegradedReason.RERANK_LATE


async def test_a_bi_encoder_without_classifier_is_the_callers_mistake():
    encoder = ScriptedEncoder(score_error=errors.InvalidInput.of_field("scorer", "has no classifier"))
    options = MatchOptions(top_k=1, rerank=Rerank.CASCADE, rerank_depth=1)
    with pytest.raises(errors.InvalidInput, match="has no classifier"):
        await matcher(encoder).match("query", options, deadline=soon())


@pytest.mark.parametrize("rerank", [Rerank.CROSS_ENCODER, Rerank.CASCADE, Rerank.NONE])
async def test_what_is_deleted_between_recall_and_scoring_is_left_out(rerank: Rerank):
    index = ScriptedIndex(deleted=("b",))
    encoder = ScriptedEncoder(classes=[0.5, 0.5])
    result = await matcher(encoder, index).match("query", MatchOptions(rerank=rerank), deadline=soon())
    assert sorted(one.document.id for one in result.matches) == ["a", "c"]
    assert result.degraded is None


async def test_models_tuned_for_the_collection_are_used():
    tuned = replace(FUSION, cosine_pair=ScoreModel(-1.0, cosine=0.0, pair=2.0))
    index = ScriptedIndex(notes={FUSION_NOTE: to_mapping(tuned)})
    options = MatchOptions(min_score=0.5, rerank=Rerank.CROSS_ENCODER)
    result = await matcher(ScriptedEncoder(), index).match("query", options, deadline=soon())
    assert scores(result) == expected(b=-1.0 + 2.0 * math.log(9))
    assert result.matches[0].explanation.weights == tuned.cosine_pair


async def test_models_that_make_no_sense_are_not_used():
    index = ScriptedIndex(notes={FUSION_NOTE: {"cosine": 7}})
    result = await matcher(ScriptedEncoder(), index).match(
        "query", MatchOptions(rerank=Rerank.CROSS_ENCODER), deadline=soon()
    )
    assert result.matches[0].explanation.weights == default_fusion(MODEL).cosine_pair


async def test_equal_scores_are_in_an_order_that_is_always_the_same():
    for order in ("cab", "bca", "abc"):
        index = ScriptedIndex(cosines=dict.fromkeys(order, 0.5))
        encoder = ScriptedEncoder(scores={})
        result = await matcher(encoder, index).match(
            "query", MatchOptions(rerank=Rerank.CROSS_ENCODER), deadline=soon()
        )
        assert [one.document.id for one in result.matches] == ["a", "b", "c"]


@pytest.mark.parametrize("rerank", [Rerank.NONE, Rerank.CROSS_ENCODER])
async def test_of_equal_scores_the_one_that_shares_more_terms_is_first_then_the_identical_text(
    rerank: Rerank,
):
    flat = replace(
        FUSION,
        cosine_lexical=replace(FUSION.cosine_lexical, lexical=0.0),
        cosine_lexical_pair=replace(FUSION.cosine_lexical_pair, lexical=0.0),
    )
    index = ScriptedIndex(
        cosines={"a": 1.0, "b": 0.9999999, "c": 0.9999998, "d": 1.0},
        lexical={"a": 0.25, "b": 0.5, "c": 0.5, "d": 0.5},
        texts={"a": "Query", "c": "query"},
        notes={FUSION_NOTE: to_mapping(flat)},
    )
    result = await matcher(ScriptedEncoder(scores={}), index).match(
        "query", MatchOptions(rerank=rerank), deadline=soon()
    )
    assert [one.document.id for one in result.matches] == ["c", "b", "d", "a"]
    assert len({one.score for one in result.matches}) == 1
