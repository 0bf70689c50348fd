"""FindDuplicates over a real engine, with a real encoder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from itertools import pairwise

import grpc
import numpy as np
import pytest

from services.matcher import duplicates
from tests.integration.matcher.parts import RunningMatcher, fill, running_matcher
from tests.integration.matcher.quick_encoder import QuickEncoder
from tests.integration.matcher.test_options import FUSION
from textmatch.documents import Document, point_id
from textmatch.errors import DependencyUnavailable, InvalidInput
from textmatch.filters import Filter
from textmatch.index.index import Index
from textmatch.runtime.grpc_errors import from_rpc_error
from textmatch.score_fusion import FUSION_NOTE, to_mapping
from textmatch.v1 import matcher_service_pb2 as pb

WORDS = [
    "the",
    "cat",
    "dog",
    "park",
    "mat",
    "sits",
    "runs",
    "rain",
    "falls",
    "on",
    "in",
    "a",
    "red",
    "blue",
    "green",
    "house",
    "tree",
    "car",
]


def corpus() -> list[Document]:
    """Random sentences, of which some are there several times."""
    random = np.random.default_rng(5)
    texts = [" ".join(random.choice(WORDS, size=8)) for _ in range(120)]
    texts += texts[:20] + texts[:10]
    return [
        Document(f"d{number}", text, {"half": number % 2}, version=1) for number, text in enumerate(texts)
    ]


DOCUMENTS = corpus()


@pytest.fixture
async def pairs_matcher(quick: QuickEncoder, index: Index) -> AsyncIterator[RunningMatcher]:
    model_id = await fill(index, quick, DOCUMENTS)
    await index.collections.note(model_id, {FUSION_NOTE: to_mapping(FUSION)})
    async with running_matcher(quick, index) as running:
        yield running


async def responses(matcher: RunningMatcher, **fields: object) -> list[pb.FindDuplicatesResponse]:
    """Of all calls that a search takes."""
    found: list[pb.FindDuplicatesResponse] = []
    request = pb.FindDuplicatesRequest(**fields)
    while not found or not found[-1].is_last:
        found += [one async for one in matcher.stub.FindDuplicates(request, timeout=60)]
        request.resume_token = found[-1].resume_token
    return found


def pairs_of(found: Iterable[pb.FindDuplicatesResponse]) -> list[tuple[str, str]]:
    return [(pair.first.id, pair.second.id) for one in found for pair in one.pairs]


def same_texts() -> set[tuple[str, str]]:
    """All pairs of documents with equal texts, each in the order of point ids."""
    ordered = sorted(DOCUMENTS, key=lambda one: point_id(one.id))
    return {
        (one.id, other.id)
        for position, one in enumerate(ordered)
        for other in ordered[position + 1 :]
        if one.text == other.text
    }


async def test_equal_texts_are_found_each_pair_once(pairs_matcher: RunningMatcher):
    # A cosine of 1: with FUSION, a score of 0.5.
    found = await responses(pairs_matcher, min_score=0.4999, omit_rerank=True)
    assert len(pairs_of(found)) == len(set(pairs_of(found)))
    assert set(pairs_of(found)) == same_texts()
    assert sum(one.compared_count for one in found) == len(DOCUMENTS)
    [pair, *_] = [pair for one in found for pair in one.pairs]
    assert pair.score == pair.recall_score == pytest.approx(0.5, abs=1e-3)
    assert not pair.HasField("rerank_score")
    assert pair.first.text == pair.second.text != ""
    assert not pair.first.HasField("attributes")


@pytest.mark.parametrize("neighbors", [1, 2, 5])
async def test_a_pair_that_one_side_finds_is_found_once(
    pairs_matcher: RunningMatcher, index: Index, neighbors: int
):
    """Neighbors are not mutual: the pairs are those of all searches, one by one."""
    model_id = await index.model_in_use()
    search = index.neighbors(model_id)
    wanted: set[tuple[str, str]] = set()
    names = {point_id(one.id): one.id for one in DOCUMENTS}
    stored = await index.fetch([one.id for one in DOCUMENTS], with_embeddings=True)
    for one in stored.values():
        [near] = await search.nearest([one.embedding], neighbors + 1, Filter(), -1.0)
        own = point_id(one.document.id)
        others = [point for point in near if point != own][:neighbors]
        wanted |= {tuple(names[point] for point in sorted((own, str(other)))) for other in others}
    found = await responses(pairs_matcher, min_score=1e-6, omit_rerank=True, neighbors=neighbors)
    assert len(pairs_of(found)) == len(set(pairs_of(found)))
    # Equal texts are equally near.
    assert len(set(pairs_of(found)) ^ wanted) <= len(wanted) * 0.1


async def test_a_search_goes_on_after_any_document(
    pairs_matcher: RunningMatcher, monkeypatch: pytest.MonkeyPatch
):
    whole = await responses(pairs_matcher, min_score=0.4999, omit_rerank=True)
    monkeypatch.setattr(duplicates, "_PAGE", 7)
    monkeypatch.setattr(duplicates, "MAX_COMPARED", 20)
    monkeypatch.setattr(duplicates, "_REMEMBERED", 3)
    request = pb.FindDuplicatesRequest(min_score=0.4999, omit_rerank=True)
    first = [one async for one in pairs_matcher.stub.FindDuplicates(request, timeout=60)]
    assert [one.compared_count for one in first] == [7, 7, 7]
    assert not first[-1].is_last
    found = await responses(pairs_matcher, min_score=0.4999, omit_rerank=True)
    assert set(pairs_of(found)) == set(pairs_of(whole))
    assert len(pairs_of(found)) == len(pairs_of(whole))
    request.resume_token = first[1].resume_token
    rest = [one async for one in pairs_matcher.stub.FindDuplicates(request, timeout=60)]
    assert pairs_of(rest)[: len(pairs_of(first[2:]))] == pairs_of(first[2:])


async def test_the_cross_encoder_scores_the_candidates(pairs_matcher: RunningMatcher):
    found = await responses(pairs_matcher, min_score=0.4)
    pairs = [pair for one in found for pair in one.pairs]
    assert pairs
    assert sum(one.scored_count for one in found) >= len(pairs)
    for pair in pairs:
        logit = np.log(pair.rerank_score / (1 - pair.rerank_score))
        recall_logit = np.log(pair.recall_score / (1 - pair.recall_score))
        assert pair.score == pytest.approx(1 / (1 + np.exp(-recall_logit - logit)), abs=1e-3)
        assert pair.score >= 0.4


async def test_both_documents_match_the_filter(pairs_matcher: RunningMatcher):
    where = {"must": [{"match": {"field": "half", "values": [{"number_value": 1}]}}]}
    found = await responses(pairs_matcher, min_score=0.4999, omit_rerank=True, filter=where, omit_text=True)
    halves = {one.id: one.attributes["half"] for one in DOCUMENTS}
    wanted = {pair for pair in same_texts() if halves[pair[0]] == halves[pair[1]] == 1}
    assert set(pairs_of(found)) == wanted
    assert {pair.first.text for one in found for pair in one.pairs} == {""}
    assert sum(one.compared_count for one in found) == len(DOCUMENTS) // 2


async def test_large_pages_are_sent_in_parts(pairs_matcher: RunningMatcher, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("textmatch.wire.duplicates._MAX_MESSAGE_BYTES", 100)
    monkeypatch.setattr(duplicates, "_PAGE", 50)
    found = await responses(pairs_matcher, min_score=0.4999, omit_rerank=True)
    assert len(found) > 10
    assert set(pairs_of(found)) == same_texts()
    complete = [one.resume_token for one in found if one.compared_count]
    for one, following in pairwise(found):
        if not one.compared_count:
            assert one.resume_token in ("", *complete)
            assert following.resume_token in (one.resume_token, *complete)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"min_score": -0.1}, "min_score: is -0.1"),
        ({"min_score": 1.5}, "min_score: is 1.5; it must be above 0 and at most 1"),
        ({"min_score": float("nan")}, "min_score: is nan"),
        ({"neighbors": -1}, "neighbors: is -1; it must be 1 to 100"),
        ({"neighbors": 101}, "neighbors: is 101"),
        ({"resume_token": "x" * 513}, "resume_token: has 513 bytes"),
    ],
)
async def test_options_have_limits(served: RunningMatcher, fields: dict[str, object], problem: str):
    with pytest.raises(grpc.RpcError) as raised:
        await responses(served, **fields)
    error = from_rpc_error(raised.value)
    assert isinstance(error, InvalidInput)
    assert problem in str(error)


async def test_an_empty_collection_has_no_pairs(quick: QuickEncoder, index: Index):
    async with running_matcher(quick, index) as matcher:
        [only] = await responses(matcher)
    assert (only.is_last, len(only.pairs), only.resume_token) == (True, 0, "")


async def test_an_encoder_that_is_gone_ends_the_search_and_not_what_was_found(
    pairs_matcher: RunningMatcher, quick: QuickEncoder
):
    quick.kill()
    with pytest.raises(grpc.RpcError) as raised:
        await responses(pairs_matcher, min_score=0.4)
    assert isinstance(from_rpc_error(raised.value), DependencyUnavailable)
    assert await responses(pairs_matcher, min_score=0.4, omit_rerank=True)


async def test_a_caller_who_leaves_stops_the_work(
    pairs_matcher: RunningMatcher, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(duplicates, "_PAGE", 1)
    seen = 0
    real = duplicates._Neighborhood.candidates

    async def counted(self: duplicates._Neighborhood, documents: list[object]) -> object:
        nonlocal seen
        seen += 1
        await asyncio.sleep(0.01)
        return await real(self, documents)

    monkeypatch.setattr(duplicates._Neighborhood, "candidates", counted)
    call = pairs_matcher.stub.FindDuplicates(pb.FindDuplicatesRequest(omit_rerank=True), timeout=60)
    await call.read()
    call.cancel()
    await asyncio.sleep(0.3)
    stopped_at = seen
    await asyncio.sleep(0.3)
    assert seen == stopped_at < len(DOCUMENTS)
