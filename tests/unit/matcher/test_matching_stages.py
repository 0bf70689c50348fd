"""How candidates are recalled, which of them are scored, and what their scores are made of."""

from __future__ import annotations

import pytest

from tests.unit.matcher.scripted import ScriptedEncoder, ScriptedIndex, matcher, soon
from textmatch import errors
from textmatch.score_fusion import WEIGHTS_NOTE, ScoreCalibration, Weights, to_mapping
from textmatch.types import DegradedReason, MatchOptions, Recall, Rerank

MODEL = "bi-000000000000"
COSINES = {"a": 0.9, "b": 0.8, "c": -0.2}


async def test_bm25_raises_the_recall_score():
    index = ScriptedIndex(bm25={"b": 24.0})
    options = MatchOptions(rerank=Rerank.NONE)
    result = await matcher(ScriptedEncoder(), index).match("query", options, deadline=soon())
    assert [(one.document.id, round(one.score, 3)) for one in result.matches] == [
        ("a", 0.9),
        ("b", 0.9),
        ("c", 0.0),
    ]
    assert result.recall is Recall.HYBRID
    dense = MatchOptions(rerank=Rerank.NONE, recall=Recall.DENSE)
    result = await matcher(ScriptedEncoder(), index).match("query", dense, deadline=soon())
    assert [round(one.score, 3) for one in result.matches] == [0.9, 0.8, 0.0]
    assert result.recall is Recall.DENSE


async def test_hybrid_recall_needs_a_collection_that_has_bm25():
    for recall in (Recall.HYBRID, Recall.HYBRID_RRF):
        with pytest.raises(errors.LexicalIndexMissing, match=f"{MODEL} has no BM25 index.*reindex"):
            await matcher(ScriptedEncoder()).match("q", MatchOptions(recall=recall), deadline=soon())


@pytest.mark.parametrize(
    "error", [errors.DeadlinePassed("late"), errors.DeadlineTooShort("busy"), errors.Overloaded("full")]
)
async def test_bm25_alone_answers_when_the_query_is_not_embedded_in_time(error: errors.TextMatchError):
    encoder = ScriptedEncoder(encode_error=error)
    index = ScriptedIndex(bm25={"c": 24.0, "b": 12.0})
    result = await matcher(encoder, index).match("query", MatchOptions(), deadline=soon())
    assert [(one.document.id, round(one.score, 4)) for one in result.matches] == [("c", 0.5), ("b", 0.0625)]
    assert (result.degraded, encoder.scored) == (DegradedReason.ENCODE_LATE, [])
    with pytest.raises(type(error)):
        await matcher(encoder, index).match("q", MatchOptions(recall=Recall.DENSE), deadline=soon())


async def test_what_was_scored_before_time_ran_out_counts():
    index = ScriptedIndex(cosines={f"d{number:02}": 0.9 - number / 100 for number in range(12)})
    scores = {f"text d{number:02}": 0.1 for number in range(8)} | {"text d07": 1.0}
    encoder = ScriptedEncoder(scores=scores, score_error=errors.DeadlinePassed("late"), good_chunks=1)
    result = await matcher(encoder, index).match("query", MatchOptions(top_k=12), deadline=soon(1.0))
    assert encoder.scored == [[f"text d{number:02}" for number in range(8)]]
    assert (result.degraded, result.scored_count, result.candidate_count) == (
        DegradedReason.RERANK_LATE,
        8,
        12,
    )
    assert result.matches[0].document.id == "d07"
    by_id = {one.document.id: one for one in result.matches}
    assert by_id["d08"].rerank_score is None
    raised = [by_id[f"d{number:02}"].score - by_id[f"d{number:02}"].recall_score for number in range(8)]
    assert by_id["d08"].score - by_id["d08"].recall_score == pytest.approx(sum(raised) / 8)


async def test_only_the_best_candidates_are_scored_and_returned():
    index = ScriptedIndex(cosines={f"d{number:02}": 0.9 - number / 100 for number in range(30)})
    encoder = ScriptedEncoder()
    result = await matcher(encoder, index, depth=5).match("q", MatchOptions(top_k=2), deadline=soon(10))
    assert (result.scored_count, result.candidate_count, len(result.matches)) == (5, 30, 2)
    await matcher(encoder, index).match("q", MatchOptions(rerank_depth=12), deadline=soon(10))
    await matcher(encoder, index).match("q", MatchOptions(top_k=20, rerank_depth=3), deadline=soon(10))
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


async def test_weights_tuned_for_the_collection_are_used():
    weights = Weights(lexical=0.0, rerank=1.0, calibration=ScoreCalibration(slope=10.0, intercept=-5.0))
    index = ScriptedIndex(notes={WEIGHTS_NOTE: to_mapping(weights)})
    options = MatchOptions(min_score=0.5)
    result = await matcher(ScriptedEncoder(), index).match("query", options, deadline=soon())
    assert [(one.document.id, round(one.score, 3)) for one in result.matches] == [("b", 0.982)]
    explanation = result.matches[0].explanation
    assert explanation.combined_score == pytest.approx(0.9)
    assert (explanation.lexical_weight, explanation.rerank_weight) == (0.0, 1.0)
    assert explanation.calibration == (10.0, -5.0)


async def test_weights_that_make_no_sense_are_not_used():
    index = ScriptedIndex(notes={WEIGHTS_NOTE: {"lexical": 7}})
    result = await matcher(ScriptedEncoder(), index).match("query", MatchOptions(), deadline=soon())
    explanation = result.matches[0].explanation
    assert (explanation.lexical_weight, explanation.rerank_weight) == (0.5, 0.5)
    assert explanation.calibration is None


async def test_equal_scores_are_in_an_order_that_is_always_the_same():
    for order in ("cab", "bca", "abc"):
        index = ScriptedIndex(cosines=dict.fromkeys(order, 0.5))
        encoder = ScriptedEncoder(scores={})
        result = await matcher(encoder, index).match("query", MatchOptions(), deadline=soon())
        assert [one.document.id for one in result.matches] == ["a", "b", "c"]
