"""With hardly time for a search: by words meanwhile, and by the embedding if that comes in time."""

from __future__ import annotations

import asyncio
import time

import pytest

from services.matcher.lexical_fallback import Haste
from services.matcher.matching import Matcher
from tests.unit.matcher.scripted import ScriptedEncoder, ScriptedIndex, matcher, soon
from textmatch import errors
from textmatch.types import DegradedReason, MatchOptions, MatchResult, Recall

_SLOW_SECONDS = 0.4
# Hardly enough for a search that takes so long.
_HURRY_SECONDS = 0.45
_BM25 = {"c": 24.0, "b": 12.0}


async def _hurried(encoder: ScriptedEncoder, index: ScriptedIndex) -> Matcher:
    """One that has known slow searches, before they become quick."""
    index.recall_seconds = _SLOW_SECONDS
    gate, encoder.encode_gate = encoder.encode_gate, None
    experienced = matcher(encoder, index)
    await asyncio.gather(
        *(experienced.match(f"query {number}", MatchOptions(), deadline=soon(10)) for number in range(20))
    )
    encoder.encode_gate = gate
    index.recall_seconds = 0.0
    return experienced


def _ids(result: MatchResult) -> list[str]:
    return [match.document.id for match in result.matches]


async def test_words_answer_while_the_embedding_is_on_its_way():
    encoder, index = ScriptedEncoder(encode_gate=asyncio.Event()), ScriptedIndex(bm25=_BM25)
    hurried = await _hurried(encoder, index)
    deadline = soon(_HURRY_SECONDS)
    result = await hurried.match("query", MatchOptions(), deadline=deadline)
    assert time.monotonic() < deadline
    assert (result.degraded, result.bi_encoder_model_id) == (DegradedReason.ENCODE_LATE, index.current)
    assert _ids(result) == ["c", "b"]
    assert len(asyncio.all_tasks()) == 1


async def test_the_embedding_answers_if_it_comes_in_time():
    encoder, index = ScriptedEncoder(), ScriptedIndex(bm25=_BM25)
    hurried = await _hurried(encoder, index)
    result = await hurried.match("query", MatchOptions(top_k=2), deadline=soon(_HURRY_SECONDS))
    assert (result.degraded, result.recall) == (DegradedReason.RECALL_LATE, Recall.DENSE)
    assert _ids(result) == ["a", "b"]
    assert result.matches[0].explanation.bm25 is None
    assert index.words_count == 0


async def test_words_answer_while_the_search_by_embedding_takes_too_long():
    encoder, index = ScriptedEncoder(), ScriptedIndex(bm25=_BM25)
    hurried = await _hurried(encoder, index)
    index.dense_seconds = 1.0
    result = await hurried.match("query", MatchOptions(), deadline=soon(_HURRY_SECONDS))
    assert (result.degraded, _ids(result)) == (DegradedReason.ENCODE_LATE, ["c", "b"])


async def test_where_words_find_nothing_the_embedding_is_waited_for():
    encoder, index = ScriptedEncoder(), ScriptedIndex(bm25={})
    hurried = await _hurried(encoder, index)
    index.dense_seconds = 0.8 * _HURRY_SECONDS
    result = await hurried.match("query", MatchOptions(), deadline=soon(_HURRY_SECONDS))
    assert (result.degraded, _ids(result)) == (DegradedReason.RECALL_LATE, ["a", "b", "c"])


async def test_in_a_hurry_too_dense_recall_needs_the_embedding():
    encoder, index = ScriptedEncoder(), ScriptedIndex(bm25=_BM25)
    hurried = await _hurried(encoder, index)
    dense = MatchOptions(recall=Recall.DENSE)
    index.dense_seconds = 0.8 * _HURRY_SECONDS
    result = await hurried.match("query", dense, deadline=soon(_HURRY_SECONDS))
    assert (result.degraded, _ids(result)) == (DegradedReason.RECALL_LATE, ["a", "b", "c"])
    index.dense_seconds = 1.0
    with pytest.raises(errors.DeadlinePassed, match="the index did not answer"):
        await hurried.match("query", dense, deadline=soon(_HURRY_SECONDS))


async def test_an_embedding_that_is_known_answers_where_there_is_no_time_to_embed():
    encoder, index = ScriptedEncoder(), ScriptedIndex(bm25=_BM25)
    hurried = await _hurried(encoder, index)
    encoded = encoder.encode_count
    no_time = 0.1
    result = await hurried.match("query 19", MatchOptions(), deadline=soon(no_time))
    assert (result.degraded, encoder.encode_count) == (DegradedReason.RECALL_LATE, encoded)
    result = await hurried.match("new query", MatchOptions(), deadline=soon(no_time))
    assert (result.degraded, encoder.encode_count) == (DegradedReason.ENCODE_LATE, encoded)


async def test_in_a_hurry_too_an_encoder_that_is_gone_is_an_error():
    encoder, index = ScriptedEncoder(), ScriptedIndex(bm25=_BM25)
    hurried = await _hurried(encoder, index)
    encoder.encode_error = errors.DependencyUnavailable("gone")
    with pytest.raises(errors.DependencyUnavailable, match="gone"):
        await hurried.match("query", MatchOptions(), deadline=soon(_HURRY_SECONDS))


def test_a_late_answer_makes_haste_and_answers_in_time_take_it_away():
    haste = Haste()
    calm = (haste.answer_reserve_seconds, haste.searches_for_words)
    haste.note(is_late=False)
    assert (haste.answer_reserve_seconds, haste.searches_for_words) == calm
    haste.note(is_late=True)
    assert haste.answer_reserve_seconds > calm[0]
    assert haste.searches_for_words > calm[1]
    for _ in range(201):
        haste.note(is_late=False)
    assert (haste.answer_reserve_seconds, haste.searches_for_words) == calm


def test_haste_has_a_limit_so_that_it_wears_off_after_many_late_answers_too():
    haste = Haste()
    calm = haste.answer_reserve_seconds
    for _ in range(1_000):
        haste.note(is_late=True)
    assert haste.answer_reserve_seconds == pytest.approx(0.007)
    for _ in range(1_001):
        haste.note(is_late=False)
    assert haste.answer_reserve_seconds == calm


async def test_after_late_answers_words_are_searched_sooner():
    encoder, index = ScriptedEncoder(), ScriptedIndex(bm25=_BM25)
    hurried = await _hurried(encoder, index)
    encoder.encode_seconds = 0.02
    await hurried.match("calm", MatchOptions(), deadline=soon(_HURRY_SECONDS))
    assert index.words_count == 0
    for number in range(5):
        # Found, but too late for the way back.
        await hurried.match(f"late {number}", MatchOptions(), deadline=soon(0.001))
    index.words_count = 0
    # Searches have become quicker meanwhile, so that without haste there is time for the embedding first.
    result = await hurried.match("hasty", MatchOptions(), deadline=soon(0.25))
    assert (result.degraded, index.words_count) == (DegradedReason.RECALL_LATE, 1)
