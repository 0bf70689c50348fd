"""Scores of degraded answers are probabilities too: one model for each set of parts."""

from __future__ import annotations

import asyncio

import pytest

from tests.integration.matcher.parts import EncoderProcess, RunningMatcher, stopped
from tests.support.qdrant import QdrantServer
from textmatch.score_fusion import ScoreComponents, default_fusion, probability
from textmatch.v1 import matcher_service_pb2 as pb

KNOWN = "the cat number 7 sits"
PAUSES = 5
PAUSE_SECONDS = 0.7


@pytest.fixture
async def experienced(matcher: RunningMatcher, own_qdrant: QdrantServer) -> RunningMatcher:
    """A matcher that knows a query's embedding and has measured slow searches."""
    assert (await matcher.match(KNOWN, 20.0)).is_whole
    for number in range(PAUSES):
        with stopped(own_qdrant.pid, PAUSE_SECONDS):
            await matcher.match(KNOWN, 20.0, top_k=10 + number)
    return matcher


def recomputed(match: pb.Match, collection: str) -> float:
    """The score by the default models and the parts of the explanation."""
    explanation = match.explanation
    parts = ScoreComponents(
        explanation.cosine if explanation.HasField("cosine") else None,
        explanation.lexical if explanation.HasField("lexical") else None,
        match.rerank_score if match.HasField("rerank_score") else None,
    )
    return probability(default_fusion(collection).logit(parts))


async def check(
    matcher: RunningMatcher, query: str, timeout_seconds: float, expected: str
) -> pb.MatchResponse:
    """A degraded answer with scores by the models, and the same answer with a threshold in its middle."""
    answer = (await matcher.match(query, timeout_seconds, explain=True)).answer
    assert pb.DegradedReason.Name(answer.degraded) == f"DEGRADED_REASON_{expected}"
    scores = [match.score for match in answer.matches]
    assert scores == sorted(scores, reverse=True)
    assert scores == pytest.approx(
        [recomputed(match, answer.bi_encoder_model_id) for match in answer.matches], abs=1e-5
    )
    assert scores[0] > scores[-1]
    threshold = (scores[0] + scores[-1]) / 2
    above = (await matcher.match(query, timeout_seconds, min_score=threshold)).answer
    assert above.degraded == answer.degraded
    found = [match.score for match in above.matches]
    assert found == pytest.approx([score for score in scores if score >= threshold], abs=1e-5)
    return answer


async def test_min_score_holds_for_degraded_answers(experienced: RunningMatcher, encoder: EncoderProcess):
    nearest = await check(experienced, KNOWN, 0.8, "RECALL_LATE")
    assert all(not match.explanation.HasField("lexical") for match in nearest.matches)
    with stopped(encoder.pid, 4 * PAUSE_SECONDS):
        by_terms = await check(experienced, "a query about number 23 and mats", 1.2, "ENCODE_LATE")
    assert by_terms.matches[0].document.id == "d23"
    assert all(not match.explanation.HasField("cosine") for match in by_terms.matches)
    await asyncio.to_thread(encoder.kill)
    unscored = await check(experienced, KNOWN, 20.0, "RERANK_UNAVAILABLE")
    assert all(match.explanation.HasField("cosine") for match in unscored.matches)
    assert all(match.explanation.HasField("lexical") for match in unscored.matches)
    assert all(match.score == match.recall_score for match in unscored.matches)


async def test_an_identical_text_comes_first(matcher: RunningMatcher):
    outcome = await matcher.match("the cat number 31 sits on the mat", 20.0, rerank=pb.RERANK_MODE_NONE)
    assert outcome.ids[0] == "d31"
