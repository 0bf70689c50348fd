"""Each way in which the parts behind a Match can fail has an answer; docs/matching.md lists them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

from qdrant_client.conversions.common_types import PointId

from tests.integration.matcher.parts import (
    DOCUMENTS,
    EncoderProcess,
    RunningMatcher,
    fill,
    running_matcher,
    stopped,
)
from tests.support.qdrant import QdrantServer
from textmatch.documents import Document
from textmatch.encoder_client import EncoderClient
from textmatch.errors import (
    DeadlineTooShort,
    DependencyUnavailable,
    ModelMismatch,
    Overloaded,
    TextMatchError,
)
from textmatch.index.index import Index
from textmatch.v1 import matcher_service_pb2 as pb

KNOWN = "cat number 7"
PAUSE_SECONDS = 0.7


async def test_an_encoder_that_pauses_costs_time_and_nothing_else(
    matcher: RunningMatcher, encoder: EncoderProcess
):
    with stopped(encoder.pid, PAUSE_SECONDS):
        outcome = await matcher.match("asked while it pauses", 20.0)
    assert outcome.is_whole
    assert outcome.seconds > PAUSE_SECONDS / 2


async def test_a_qdrant_that_pauses_costs_time_and_nothing_else(
    matcher: RunningMatcher, own_qdrant: QdrantServer
):
    with stopped(own_qdrant.pid, PAUSE_SECONDS):
        outcome = await matcher.match(KNOWN, 20.0)
    assert outcome.is_whole
    assert outcome.seconds > PAUSE_SECONDS / 2


async def test_an_encoder_that_is_gone_and_comes_back(matcher: RunningMatcher, encoder: EncoderProcess):
    assert (await matcher.match(KNOWN, 20.0)).is_whole
    encoder.kill()
    for recall in (pb.RECALL_MODE_UNSPECIFIED, pb.RECALL_MODE_DENSE):
        error = (await matcher.match("nobody has asked this", 20.0, recall=recall)).error
        assert type(error) is DependencyUnavailable
        assert encoder.target in str(error)
        assert error.retry_delay_seconds
    known = (await matcher.match(KNOWN, 20.0)).answer
    assert known.degraded == pb.DEGRADED_REASON_RERANK_UNAVAILABLE
    assert (len(known.matches), known.scored_count, known.candidate_count) == (10, 0, 50)
    await asyncio.to_thread(encoder.start)
    await matcher.until_whole()


@asynccontextmanager
async def flooded(encoder: EncoderProcess) -> AsyncIterator[None]:
    """Others want more of the encoder than it can do."""
    client = EncoderClient(encoder.target)

    async def flood() -> None:
        while True:
            try:
                await client.score(
                    "the cat", ["sits on the mat " * 30] * 500, is_bulk=False, timeout_seconds=60
                )
            except (Overloaded, DeadlineTooShort):
                await asyncio.sleep(0.01)

    floods = [asyncio.create_task(flood()) for _ in range(6)]
    yield
    for one in floods:
        one.cancel()
    await asyncio.gather(*floods, return_exceptions=True)
    await client.close()


async def test_an_encoder_that_refuses(models: Mapping[str, str], index: Index):
    encoder = EncoderProcess({**models, "TEXTMATCH_ENCODER_QUEUE_TOKENS": "1000"})
    try:
        await asyncio.to_thread(encoder.start)
        await fill(index, encoder)
        async with running_matcher(encoder, index) as matcher:
            assert (await matcher.match(KNOWN, 20.0)).is_whole
            async with flooded(encoder), asyncio.timeout(60):
                await answers_of_a_refusing_encoder(matcher)
    finally:
        encoder.kill()


async def answers_of_a_refusing_encoder(matcher: RunningMatcher) -> None:
    """Every kind of answer is seen sooner or later, because a refusal is a matter of the moment."""
    missing = {"unscored", "words alone", "refused"}
    for number in count():
        known = (await matcher.match(KNOWN, 5.0)).answer
        if known.degraded == pb.DEGRADED_REASON_RERANK_REFUSED:
            assert len(known.matches) == 10
            missing -= {"unscored"}
        new = await matcher.match(f"number 23 asked the {number}th time", 5.0)
        if new.answer.degraded == pb.DEGRADED_REASON_ENCODE_LATE:
            assert new.ids[0] == "d23"
            missing -= {"words alone"}
        dense = await matcher.match(f"the {number}th dense", 5.0, recall=pb.RECALL_MODE_DENSE)
        if isinstance(dense.result, TextMatchError):
            assert isinstance(dense.result, (Overloaded, DeadlineTooShort))
            assert dense.result.retry_delay_seconds
            missing -= {"refused"}
        if not missing:
            return


async def test_a_qdrant_that_is_gone(matcher: RunningMatcher, own_qdrant: QdrantServer):
    assert (await matcher.match(KNOWN, 20.0)).is_whole
    own_qdrant.kill()
    outcome = await matcher.match(KNOWN, 20.0)
    assert type(outcome.error) is DependencyUnavailable
    assert "Qdrant does not answer" in str(outcome.error)
    assert outcome.error.retry_delay_seconds


async def test_without_a_collection_and_with_an_empty_one_nothing_matches(
    encoder: EncoderProcess, index: Index
):
    async with running_matcher(encoder, index) as matcher:
        for recall in (pb.RECALL_MODE_UNSPECIFIED, pb.RECALL_MODE_HYBRID, pb.RECALL_MODE_DENSE):
            outcome = await matcher.match("a cat", 20.0, recall=recall)
            assert (outcome.is_whole, outcome.ids) == (True, [])
        collection = await fill(index, encoder)
        await index.delete({document.id: document.version for document in DOCUMENTS})
        for recall in (pb.RECALL_MODE_UNSPECIFIED, pb.RECALL_MODE_HYBRID, pb.RECALL_MODE_DENSE):
            outcome = await matcher.match("a cat", 20.0, recall=recall)
            assert (outcome.is_whole, outcome.ids) == (True, [])
            assert outcome.answer.bi_encoder_model_id == collection


async def test_a_collection_of_another_model_names_both(encoder: EncoderProcess, index: Index):
    await index.collections.prepare("another-0123456789ab", 32)
    async with running_matcher(encoder, index) as matcher:
        error = (await matcher.match("a cat", 20.0)).error
    assert isinstance(error, ModelMismatch)
    client = EncoderClient(encoder.target)
    [served] = await client.bi_encoders(timeout_seconds=20)
    await client.close()
    assert (error.index_model_id, error.encoder_model_id) == ("another-0123456789ab", served.model_id)


class DeletingIndex:
    """The real index, with a delete between recall and reading."""

    def __init__(self, index: Index, deleted: Sequence[Document]) -> None:
        self._index = index
        self._deleted = deleted

    def __getattr__(self, name: str) -> Any:
        return getattr(self._index, name)

    async def documents(self, points: Sequence[PointId], *, model_id: str) -> dict[PointId, Document]:
        await self._index.delete({document.id: document.version for document in self._deleted})
        return await self._index.documents(points, model_id=model_id)


async def test_what_is_deleted_between_recall_and_scoring_is_left_out(encoder: EncoderProcess, filled: Index):
    deleting: Any = DeletingIndex(filled, DOCUMENTS[:45])
    async with running_matcher(encoder, deleting) as matcher:
        outcome = await matcher.match(KNOWN, 20.0, candidate_count=50, rerank_depth=50)
    assert outcome.is_whole
    assert set(outcome.ids) == {document.id for document in DOCUMENTS[45:]}
    assert (outcome.answer.candidate_count, outcome.answer.scored_count) == (50, 5)


async def test_a_query_of_the_largest_size_is_answered_by_all_its_passages(matcher: RunningMatcher):
    query = "what is in the park " * 1_500 + "23"
    outcome = await matcher.match(query, 20.0, top_k=50, rerank=pb.RERANK_MODE_NONE)
    assert outcome.is_whole
    assert len(outcome.ids) == 50
    assert outcome.answer.query_passage_count > 100
    places = [match.query_passage for match in outcome.answer.matches]
    assert all(query[one.start : one.end] == one.text for one in places)
