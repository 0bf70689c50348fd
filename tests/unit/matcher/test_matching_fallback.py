"""Close to the deadline: the nearest embeddings if the query is embedded in time, else BM25."""

from __future__ import annotations

import asyncio
import time

import pytest

from services.matcher.matching import Matcher
from tests.unit.matcher.scripted import ScriptedEncoder, ScriptedIndex, matcher, soon
from textmatch import errors
from textmatch.types import DegradedReason, MatchOptions, MatchResult, Recall

# Long enough for the embedding, too short for a full search by a matcher that has seen slow searches.
_TIGHT_SECONDS = 0.3
_LEXICAL = {"c": 0.5, "b": 0.25}


async def _used_to_slow_searches(encoder: ScriptedEncoder, index: ScriptedIndex) -> Matcher:
    """A matcher that has measured searches of 0.1 s. Searches are fast again afterwards."""
    gate, encoder.encode_gate = encoder.encode_gate, None
    index.search_seconds = 0.1
    experienced = matcher(encoder, index)
    await asyncio.gather(
        *(experienced.match(f"query {number}", MatchOptions(), deadline=soon(10)) for number in range(20))
    )
    encoder.encode_gate = gate
    index.search_seconds = 0.0
    return experienced


def _ids(result: MatchResult) -> list[str]:
    return [match.document.id for match in result.matches]


@pytest.mark.parametrize("seconds", [0.05, 0.1, 0.3, 1.0])
async def test_bm25_answers_before_the_deadline_if_the_embedding_is_late(seconds: float):
    encoder, index = ScriptedEncoder(encode_gate=asyncio.Event()), ScriptedIndex(lexical=_LEXICAL)
    deadline = soon(seconds)
    result = await matcher(encoder, index).match("query", MatchOptions(), deadline=deadline)
    assert time.monotonic() < deadline
    assert (result.degraded, result.bi_encoder_model_id) == (DegradedReason.ENCODE_LATE, index.current)
    assert (_ids(result), index.lexical_search_count) == (["c", "b"], 1)
    assert len(asyncio.all_tasks()) == 1


async def test_the_embedding_answers_if_it_comes_in_time():
    encoder, index = ScriptedEncoder(encode_seconds=0.01), ScriptedIndex(lexical=_LEXICAL)
    experienced = await _used_to_slow_searches(encoder, index)
    result = await experienced.match("query", MatchOptions(top_k=2), deadline=soon(_TIGHT_SECONDS))
    assert (result.degraded, result.recall) == (DegradedReason.RECALL_LATE, Recall.DENSE)
    assert _ids(result) == ["a", "b"]
    assert result.matches[0].explanation.lexical is None
    assert index.lexical_search_count == 0


async def test_slow_searches_leave_less_time_for_the_embedding():
    encoder, index = ScriptedEncoder(), ScriptedIndex(lexical=_LEXICAL)
    experienced = await _used_to_slow_searches(encoder, index)
    encoder.encode_gate = asyncio.Event()
    started = time.monotonic()
    await experienced.match("query", MatchOptions(), deadline=started + _TIGHT_SECONDS)
    took_seconds = time.monotonic() - started
    started = time.monotonic()
    await matcher(encoder, index).match("query", MatchOptions(), deadline=started + _TIGHT_SECONDS)
    assert took_seconds < time.monotonic() - started - 0.05


async def test_without_time_to_embed_bm25_answers_unless_the_embedding_is_cached():
    encoder, index = ScriptedEncoder(), ScriptedIndex(lexical=_LEXICAL)
    experienced = await _used_to_slow_searches(encoder, index)
    encoded = encoder.encode_count
    no_time = 0.1
    result = await experienced.match("query 19", MatchOptions(), deadline=soon(no_time))
    assert (result.degraded, encoder.encode_count) == (DegradedReason.RECALL_LATE, encoded)
    result = await experienced.match("new query", MatchOptions(), deadline=soon(no_time))
    assert (result.degraded, encoder.encode_count) == (DegradedReason.ENCODE_LATE, encoded)


@pytest.mark.parametrize(
    ("options", "lexical"),
    [(MatchOptions(recall=Recall.DENSE), _LEXICAL), (MatchOptions(), None)],
    ids=["dense recall", "no BM25 index"],
)
async def test_without_bm25_the_embedding_may_use_all_the_time(options: MatchOptions, lexical):
    encoder, index = ScriptedEncoder(), ScriptedIndex(lexical=lexical)
    experienced = await _used_to_slow_searches(encoder, index)
    encoder.encode_seconds = 0.8 * _TIGHT_SECONDS
    result = await experienced.match("query", options, deadline=soon(_TIGHT_SECONDS))
    assert (result.degraded, _ids(result)) == (DegradedReason.RECALL_LATE, ["a", "b", "c"])
    encoder.encode_seconds = 2 * _TIGHT_SECONDS
    with pytest.raises(errors.DeadlinePassed, match="the encoder did not answer in time"):
        await experienced.match("another query", options, deadline=soon(_TIGHT_SECONDS))
    index.search_seconds = 2 * _TIGHT_SECONDS
    with pytest.raises(errors.DeadlinePassed, match="the index did not answer"):
        await experienced.match("query", options, deadline=soon(_TIGHT_SECONDS))


@pytest.mark.parametrize("seconds", [_TIGHT_SECONDS, 1.0])
async def test_an_encoder_that_is_gone_is_an_error(seconds: float):
    encoder, index = ScriptedEncoder(), ScriptedIndex(lexical=_LEXICAL)
    experienced = await _used_to_slow_searches(encoder, index)
    encoder.encode_error = errors.DependencyUnavailable("gone")
    with pytest.raises(errors.DependencyUnavailable, match="gone"):
        await experienced.match("query", MatchOptions(), deadline=soon(seconds))
