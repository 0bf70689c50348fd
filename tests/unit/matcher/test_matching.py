"""A Match with a scripted encoder and index: the order of the stages, and what happens when one fails."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass

import pytest

from tests.unit.matcher.scripted import ScriptedEncoder, ScriptedIndex, matcher, soon
from textmatch import errors
from textmatch.collection_config import CollectionConfig
from textmatch.filters import FieldExists, Filter
from textmatch.score_fusion import probability
from textmatch.types import DegradedReason, MatchOptions, Rerank

MODEL = "bi-000000000000"
SCORED = MatchOptions(rerank=Rerank.CROSS_ENCODER)
COSINES = {"a": 0.9, "b": 0.8, "c": -0.2}


async def test_both_scores_are_combined_and_the_best_comes_first():
    result = await matcher(ScriptedEncoder()).match("query", SCORED, deadline=soon())
    assert [(one.document.id, round(one.score, 3)) for one in result.matches] == [
        ("b", round(probability(0.8 + math.log(3)), 3)),
        ("a", round(probability(0.9 - math.log(3)), 3)),
        ("c", round(probability(-0.2 + 0.5 * math.log(0.3 / 0.7)), 3)),
    ]
    assert result.matches[2].recall_score == pytest.approx(probability(-0.2))
    assert result.degraded is None
    assert (result.bi_encoder_model_id, result.cross_encoder_model_id) == (MODEL, "cross-000000000000")


async def test_top_k_and_min_score_cut_after_scoring():
    options = MatchOptions(top_k=2, min_score=0.6, rerank=Rerank.CROSS_ENCODER)
    result = await matcher(ScriptedEncoder()).match("query", options, deadline=soon())
    assert [one.document.id for one in result.matches] == ["b"]


async def test_without_rerank_the_recall_score_is_the_score():
    encoder = ScriptedEncoder()
    result = await matcher(encoder).match("query", MatchOptions(rerank=Rerank.NONE), deadline=soon())
    assert [one.document.id for one in result.matches] == ["a", "b", "c"]
    assert result.matches[0].rerank_score is None
    assert encoder.score_timeouts == []
    assert (result.degraded, result.cross_encoder_model_id) == (None, None)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (errors.DeadlinePassed("late"), DegradedReason.RERANK_LATE),
        (errors.Overloaded("full"), DegradedReason.RERANK_REFUSED),
        (errors.DeadlineTooShort("full"), DegradedReason.RERANK_REFUSED),
        (errors.DependencyUnavailable("gone"), DegradedReason.RERANK_UNAVAILABLE),
        (errors.NotReady("loading"), DegradedReason.RERANK_UNAVAILABLE),
        (errors.ModelNotFound("no cross-encoder"), DegradedReason.RERANK_UNAVAILABLE),
        (errors.InternalError("bug"), DegradedReason.RERANK_UNAVAILABLE),
    ],
)
async def test_when_scoring_fails_the_answer_is_degraded_to_recall_order(
    error: Exception, reason: DegradedReason
):
    result = await matcher(ScriptedEncoder(score_error=error)).match("query", SCORED, deadline=soon())
    assert [one.document.id for one in result.matches] == ["a", "b", "c"]
    assert result.degraded is reason


async def test_scoring_leaves_time_for_the_answer():
    encoder = ScriptedEncoder()
    await matcher(encoder).match("query", SCORED, deadline=soon(1.0))
    assert 0.5 < encoder.score_timeouts[0] <= 0.95


async def test_with_little_time_left_few_candidates_are_found_and_none_is_scored():
    encoder, index = ScriptedEncoder(), ScriptedIndex(cosines={f"d{number:03}": 0.5 for number in range(200)})
    result = await matcher(encoder, index).match("query", MatchOptions(), deadline=soon(0.02))
    assert (result.degraded, result.candidate_count, len(result.matches)) == (
        DegradedReason.RECALL_LATE,
        10,
        10,
    )
    assert (encoder.score_timeouts, index.read_count) == ([], 0)
    wide = MatchOptions(top_k=30)
    result = await matcher(encoder, index).match("query", wide, deadline=soon(0.02))
    assert (result.candidate_count, len(result.matches)) == (30, 30)


async def test_what_is_too_little_time_for_a_full_search_depends_on_how_long_searches_take():
    index = ScriptedIndex(search_seconds=0.04)
    matcher_ = matcher(ScriptedEncoder(), index)

    async def reason(seconds: float) -> DegradedReason | None:
        return (await matcher_.match("query", MatchOptions(), deadline=soon(seconds))).degraded

    assert await reason(0.1) is None
    for _ in range(20):
        await reason(1.0)
    assert await reason(0.1) is DegradedReason.RECALL_LATE
    index.search_seconds = 0.001
    for _ in range(30):
        await reason(0.1)
    assert await reason(0.1) is None


@pytest.mark.parametrize("error", [errors.DependencyUnavailable("gone"), errors.Overloaded("full")])
async def test_a_query_that_cannot_be_embedded_fails(error: errors.TextMatchError):
    with pytest.raises(type(error)):
        await matcher(ScriptedEncoder(encode_error=error)).match("query", MatchOptions(), deadline=soon())


async def test_an_index_of_another_model_is_a_mismatch():
    with pytest.raises(errors.ModelMismatch, match="other-1.*bi-0"):
        await matcher(ScriptedEncoder(), ScriptedIndex("other-1")).match("q", MatchOptions(), deadline=soon())


async def test_an_empty_index_has_no_matches():
    result = await matcher(ScriptedEncoder(), ScriptedIndex("")).match("q", MatchOptions(), deadline=soon())
    assert (result.matches, result.degraded) == ((), None)


async def test_a_collection_is_asked_about_by_its_own_models():
    config = CollectionConfig("faq", bi_encoder="other-000000000000", cross_encoder="own-pairs")
    encoder = ScriptedEncoder(served=(MODEL, "other-000000000000"))
    empty = await matcher(encoder, ScriptedIndex(""), config=config).match("q", SCORED, deadline=soon())
    assert empty.bi_encoder_model_id == "other-000000000000"
    # What is stored keeps the model that embedded it.
    result = await matcher(encoder, config=config).match("q", SCORED, deadline=soon())
    assert result.bi_encoder_model_id == MODEL
    assert set(encoder.scored_by) == {"own-pairs"}


async def test_the_query_is_embedded_by_the_model_that_built_the_index():
    encoder = ScriptedEncoder(served=("other-000000000000", MODEL))
    result = await matcher(encoder).match("query", MatchOptions(), deadline=soon())
    assert result.bi_encoder_model_id == MODEL
    assert len(result.matches) == 3


@pytest.mark.parametrize(
    ("encoder", "index"),
    [
        (ScriptedEncoder(), ScriptedIndex(cached="old-000000000000")),
        (
            ScriptedEncoder(served=("old-000000000000", MODEL)),
            ScriptedIndex(cached="old-000000000000", dropped=("old-000000000000",)),
        ),
    ],
    ids=["the old model is not served any more", "the old collection is dropped"],
)
async def test_a_switch_of_the_alias_between_two_readings_is_followed(
    encoder: ScriptedEncoder, index: ScriptedIndex
):
    result = await matcher(encoder, index).match("query", MatchOptions(), deadline=soon())
    assert result.bi_encoder_model_id == MODEL
    assert len(result.matches) == 3


async def test_identical_queries_at_one_time_are_answered_once():
    encoder = ScriptedEncoder(encode_gate=asyncio.Event())
    shared = matcher(encoder)
    deadline = soon(5)
    calls = [
        asyncio.create_task(shared.match("query", MatchOptions(), deadline=deadline + number / 1e3))
        for number in range(4)
    ]
    other = asyncio.create_task(shared.match("query", MatchOptions(top_k=1), deadline=deadline))
    await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    calls[0].cancel()
    await asyncio.sleep(0)
    encoder.encode_gate.set()
    results = await asyncio.gather(*calls[1:], other)
    assert [len(result.matches) for result in results] == [3, 3, 3, 1]
    assert calls[0].cancelled()
    assert encoder.encode_count == 2


async def test_a_query_that_everybody_left_is_given_up():
    encoder = ScriptedEncoder(encode_gate=asyncio.Event())
    shared = matcher(encoder)
    call = asyncio.create_task(shared.match("query", MatchOptions(), deadline=soon()))
    await asyncio.sleep(0.01)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await asyncio.sleep(0.01)
    encoder.encode_gate.set()
    await asyncio.sleep(0.01)
    assert encoder.scored == []
    await shared.match("query", MatchOptions(), deadline=soon())
    assert encoder.encode_count == 2


async def test_a_caller_with_less_time_does_not_wait_for_one_with_more():
    encoder = ScriptedEncoder(encode_gate=asyncio.Event())
    shared = matcher(encoder)
    calls = [
        asyncio.create_task(shared.match("query", MatchOptions(), deadline=soon(seconds)))
        for seconds in (10.0, 1.0, 30.0)
    ]
    await asyncio.sleep(0.01)
    encoder.encode_gate.set()
    await asyncio.gather(*calls)
    assert encoder.encode_count == 3


async def test_the_collection_is_read_once_for_a_query():
    index = ScriptedIndex(lexical={"b": 1.0})
    await matcher(ScriptedEncoder(), index).match("query", MatchOptions(), deadline=soon())
    assert index.plan_reads == ["collection", "info", "term statistics"]
    encoder = ScriptedEncoder(encode_error=errors.DeadlinePassed("late"))
    result = await matcher(encoder, index).match("query", MatchOptions(), deadline=soon())
    assert result.degraded is DegradedReason.ENCODE_LATE
    assert index.plan_reads == ["collection", "info", "term statistics"] * 2


async def test_a_query_asked_again_is_not_embedded_again():
    encoder = ScriptedEncoder()
    same = matcher(encoder)
    for top_k in (1, 2, 3):
        result = await same.match("query", MatchOptions(top_k=top_k), deadline=soon())
        assert result.bi_encoder_model_id == MODEL
    await same.match("another query", MatchOptions(), deadline=soon())
    assert encoder.encode_count == 2


@dataclass
class RefusingEncoder(ScriptedEncoder):
    """Is full for the first calls."""

    refusals: int = 2

    async def score(self, query, texts, *, is_bulk, timeout_seconds, model):
        if self.refusals:
            self.refusals -= 1
            raise errors.Overloaded("full", retry_delay_seconds=0.01)
        return await super().score(
            query, texts, is_bulk=is_bulk, timeout_seconds=timeout_seconds, model=model
        )


async def test_bulk_work_comes_back_when_the_encoder_asks_it_to():
    busy = matcher(RefusingEncoder())
    result = await busy.match("query", SCORED, deadline=soon(5), is_bulk=True)
    assert (result.degraded, result.scored_count) == (None, 3)
    result = await matcher(RefusingEncoder()).match("query", SCORED, deadline=soon(5))
    assert (result.degraded, result.scored_count) == (DegradedReason.RERANK_REFUSED, 0)


FILTERED = MatchOptions(where=Filter(must=(FieldExists("yaer"),)))


async def test_a_filter_that_matches_nothing_comes_with_warnings_read_once():
    index = ScriptedIndex(cosines={}, warnings=('"yaer" does not occur',))
    answering = matcher(ScriptedEncoder(), index)
    for query in ("query", "another query"):
        result = await answering.match(query, FILTERED, deadline=soon())
        assert result.filter_warnings == ('"yaer" does not occur',)
    assert index.warning_count == 1


@pytest.mark.parametrize(
    ("options", "cosines"), [(FILTERED, COSINES), (MatchOptions(), {})], ids=["matches", "no filter"]
)
async def test_without_a_filter_that_matches_nothing_no_warnings_are_read(
    options: MatchOptions, cosines: dict[str, float]
):
    index = ScriptedIndex(cosines=cosines, warnings=("never asked for",))
    result = await matcher(ScriptedEncoder(), index).match("query", options, deadline=soon())
    assert (result.filter_warnings, index.warning_count) == ((), 0)


@pytest.mark.parametrize(
    ("error", "search_seconds"),
    [(errors.DependencyUnavailable("gone"), 0.0), (None, 0.3)],
    ids=["error", "late"],
)
async def test_warnings_neither_fail_nor_delay_an_answer(error: Exception | None, search_seconds: float):
    index = ScriptedIndex(cosines={}, warning_error=error, search_seconds=search_seconds)
    deadline = soon(0.5)
    result = await matcher(ScriptedEncoder(), index).match("query", FILTERED, deadline=deadline)
    assert (result.matches, result.filter_warnings) == ((), ())
    assert time.monotonic() < deadline
