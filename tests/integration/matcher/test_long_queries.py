"""Queries that are longer than the model reads are matched by their passages."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.integration.matcher.parts import RunningMatcher, fill, running_matcher
from tests.integration.matcher.quick_encoder import QuickEncoder
from textmatch.documents import Document
from textmatch.index.index import Index
from textmatch.v1 import matcher_service_pb2 as pb

DOCUMENTS = [
    Document("whale", "whales sing under deep blue water", version=1),
    Document("bread", "bake sourdough bread with wild yeast", version=1),
    Document("bike", "repair a flat bicycle tyre quickly", version=1),
    Document("moon", "lunar eclipses darken the whole night", version=1),
]
# Words of no document.
FILLER = " ".join(
    f"Nothing{number} of{number} interest{number} is{number} here{number}." for number in range(12)
)


@pytest.fixture
async def matcher(quick: QuickEncoder, index: Index) -> AsyncIterator[RunningMatcher]:
    """Its model reads 20 words."""
    await fill(index, quick, DOCUMENTS)
    quick.max_tokens = 20
    async with running_matcher(quick, index) as running:
        yield running


def long_query(*texts: str) -> str:
    """The texts as sentences, each between others that no document has."""
    return " ".join([FILLER, *(f"{text.capitalize()}. {FILLER}" for text in texts)])


async def test_a_long_query_finds_what_any_part_of_it_means(matcher: RunningMatcher):
    query = long_query(DOCUMENTS[2].text, DOCUMENTS[0].text)
    found = await matcher.match(query, 20.0, rerank=pb.RERANK_MODE_NONE)
    assert found.is_whole
    assert sorted(found.ids[:2]) == ["bike", "whale"]
    assert found.answer.query_passage_count > 4
    for match in found.answer.matches[:2]:
        part = match.query_passage
        assert query[part.start : part.end] == part.text
        text = next(one.text for one in DOCUMENTS if one.id == match.document.id)
        assert text.capitalize() in part.text


async def test_pairs_are_scored_with_the_passage_that_fits(matcher: RunningMatcher):
    query = long_query(*(one.text for one in DOCUMENTS))
    found = await matcher.match(query, 20.0)
    assert found.is_whole
    assert found.answer.scored_count == len(DOCUMENTS)
    for match in found.answer.matches:
        alone = await matcher.match(match.query_passage.text, 20.0, top_k=1)
        assert alone.answer.query_passage_count == 1
        assert not alone.answer.matches[0].HasField("query_passage")
        assert alone.ids == [match.document.id]
        assert alone.answer.matches[0].score == match.score
        assert alone.answer.matches[0].rerank_score == match.rerank_score


async def test_a_long_query_is_kept_with_its_passages(matcher: RunningMatcher, quick: QuickEncoder):
    query = long_query(DOCUMENTS[1].text)
    first = await matcher.match(query, 20.0, rerank=pb.RERANK_MODE_NONE)
    calls = len(quick.calls)
    again = await matcher.match(query, 20.0, rerank=pb.RERANK_MODE_NONE, top_k=1)
    assert len(quick.calls) == calls
    assert again.answer.matches[0] == first.answer.matches[0]
    assert again.ids == ["bread"]
