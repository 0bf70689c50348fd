"""Match by a stored document, without some documents, only completely, and in groups."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.integration.matcher.parts import (
    DOCUMENTS,
    RunningMatcher,
    fill,
    running_matcher,
)
from tests.integration.matcher.quick_encoder import QuickEncoder
from textmatch.documents import Document
from textmatch.errors import AnswerIncomplete, DocumentNotFound, InvalidInput
from textmatch.index.index import Index
from textmatch.score_fusion import FUSION_NOTE, Fusion, ScoreModel, to_mapping
from textmatch.v1 import matcher_service_pb2 as pb

PAIR = ScoreModel(-1.0, cosine=1.0, lexical=1.0, pair=1.0)
# Every part counts.
FUSION = Fusion(
    cosine=ScoreModel(-1.0, cosine=1.0),
    lexical=ScoreModel(-1.0, lexical=1.0),
    cosine_lexical=ScoreModel(-1.0, cosine=1.0, lexical=1.0),
    cosine_pair=ScoreModel(-1.0, cosine=1.0, pair=1.0),
    cosine_lexical_pair=PAIR,
)


def by_id(document_id: str, **options: object) -> pb.MatchRequest:
    given = {"rerank": pb.RERANK_MODE_CROSS_ENCODER, **options}
    return pb.MatchRequest(document_id=document_id, options=given)


async def test_a_stored_document_finds_the_others_without_the_encoder_that_embeds(
    served: RunningMatcher, quick: QuickEncoder
):
    found = await served.ask(by_id("d7", top_k=49))
    assert found.is_whole
    assert sorted(found.ids) == sorted({one.id for one in DOCUMENTS} - {"d7"})
    assert found.answer.scored_count > 0
    # Its text is the query of BM25 and of pair scores.
    text = await served.match(DOCUMENTS[7].text, 20.0, top_k=50, exclude_ids=["d7"])
    scores = {one.document.id: one.rerank_score for one in text.answer.matches}
    assert {one.document.id: one.rerank_score for one in found.answer.matches} == scores
    quick.kill()
    again = await served.ask(by_id("d8", rerank=pb.RERANK_MODE_NONE))
    assert len(again.ids) == 10
    assert again.is_whole


async def test_a_document_that_is_not_stored_is_named(served: RunningMatcher):
    error = (await served.ask(by_id("d99"))).error
    assert isinstance(error, DocumentNotFound)
    assert error.resource_name == "d99"


async def test_an_empty_collection_has_no_document(quick: QuickEncoder, index: Index):
    async with running_matcher(quick, index) as served:
        assert isinstance((await served.ask(by_id("d1"))).error, DocumentNotFound)


async def test_a_query_and_a_document_exclude_each_other(served: RunningMatcher):
    request = pb.MatchRequest(query="a", document_id="b")
    error = (await served.ask(request)).error
    assert isinstance(error, InvalidInput)
    assert str(error) == "document_id: give either a query or a document_id"
    error = (await served.ask(by_id("x" * 513))).error
    assert isinstance(error, InvalidInput)
    assert str(error).startswith("document_id: has 513 bytes")


async def test_excluded_documents_make_room_for_others(served: RunningMatcher):
    first = (await served.match("cat number 7", 20.0)).ids
    where = {"must": [{"has_id": {"ids": [one.id for one in DOCUMENTS[:30]]}}]}
    rest = await served.match("cat number 7", 20.0, exclude_ids=first, top_k=50)
    assert sorted((*first, *rest.ids)) == sorted(one.id for one in DOCUMENTS)
    filtered = await served.match("cat number 7", 20.0, exclude_ids=first, top_k=50, filter=where)
    assert set(filtered.ids) == {one.id for one in DOCUMENTS[:30]} - set(first)
    by_document = await served.ask(by_id("d7", exclude_ids=["d8", "unknown"], top_k=50))
    assert len(by_document.ids) == 48


async def test_a_thousand_ids_can_be_excluded(served: RunningMatcher):
    many = [f"{number:0512}" for number in range(1_000)]
    assert len((await served.match("cat", 20.0, exclude_ids=many)).ids) == 10
    for ids, problem in (([*many, "x"], "has 1,001 ids; the limit is 1,000"), ([""], "is empty")):
        error = (await served.match("cat", 20.0, exclude_ids=ids)).error
        assert isinstance(error, InvalidInput)
        assert problem in str(error)


async def test_an_answer_without_pair_scores_is_an_error_if_a_complete_one_is_required(
    served: RunningMatcher, quick: QuickEncoder
):
    assert (await served.match("cat number 7", 20.0, require_complete=True)).is_whole
    quick.kill()
    assert not (await served.match("cat number 7", 20.0)).is_whole
    error = (await served.match("cat number 7", 20.0, require_complete=True)).error
    assert isinstance(error, AnswerIncomplete)
    assert error.degraded == "RERANK_UNAVAILABLE"
    assert error.is_transient
    request = pb.BatchMatchRequest(
        queries=["cat number 7"], options={"require_complete": True, "rerank": pb.RERANK_MODE_CROSS_ENCODER}
    )
    [answer] = [one async for one in served.stub.BatchMatch(request, timeout=1.5)]
    assert "incomplete: RERANK_UNAVAILABLE" in answer.error.message


# The cats of a house, more of them than are recalled; some dogs, and some without a kind.
HOUSES = [
    *(
        Document(f"cat{number}", f"the cat {number} sits on the mat", {"kind": {"of": "cat"}}, 1)
        for number in range(150)
    ),
    *(Document(f"dog{number}", f"a dog {number} runs", {"kind": {"of": "dog"}}, 1) for number in range(5)),
    *(Document(f"one{number}", f"{number} in the park", {"kind": {"of": None}}, 1) for number in range(2)),
    Document("bare", "rain falls", version=1),
    Document("seven", "seven things", {"kind": {"of": 7}}, 1),
]


@pytest.fixture(params=["default", "weighted"])
async def houses(
    request: pytest.FixtureRequest, quick: QuickEncoder, index: Index
) -> AsyncIterator[RunningMatcher]:
    model_id = await fill(index, quick, HOUSES)
    if request.param == "weighted":
        await index.collections.note(model_id, {FUSION_NOTE: to_mapping(FUSION)})
    async with running_matcher(quick, index) as running:
        yield running


@pytest.mark.parametrize("rerank", [pb.RERANK_MODE_NONE, pb.RERANK_MODE_AUTO, pb.RERANK_MODE_CROSS_ENCODER])
async def test_only_the_best_of_each_group_is_returned_and_more_are_recalled_to_fill_them(
    houses: RunningMatcher, rerank: pb.RerankMode.ValueType
):
    options = {"rerank": rerank, "group_by": "kind.of", "rerank_depth": 20}
    found = await houses.match("the cat 3 sits on the mat", 20.0, **options)
    assert found.is_whole
    groups = [one.rstrip("0123456789") for one in found.ids]
    assert sorted(groups) == ["bare", "cat", "dog", "one", "one", "seven"]
    scores = [one.score for one in found.answer.matches]
    assert scores == sorted(scores, reverse=True)
    few = await houses.match("the cat 3 sits on the mat", 20.0, top_k=2, candidate_count=1_000, **options)
    assert few.ids == found.ids[:2]
    where = {"must": [{"match": {"field": "kind.of", "values": [{"string_value": "dog"}]}}]}
    dogs = await houses.match("the cat 3 sits on the mat", 20.0, filter=where, **options)
    assert len(dogs.ids) == 1
    by_document = await houses.ask(by_id("cat3", **options))
    assert by_document.ids.count("cat3") == 0
    assert len(by_document.ids) == 6


async def test_the_best_of_a_group_is_that_by_pair_scores(houses: RunningMatcher):
    everything = await houses.match("a cat", 20.0, top_k=1_000, candidate_count=1_000, rerank_depth=1_000)
    assert len(everything.ids) == len(HOUSES)
    best: dict[str, str] = {}
    for one in everything.ids:
        best.setdefault(one if one.startswith("one") else one.rstrip("0123456789"), one)
    grouped = await houses.match("a cat", 20.0, group_by="kind.of", candidate_count=1_000, rerank_depth=1_000)
    assert grouped.ids == list(best.values())


@pytest.mark.parametrize("path", ["", "a..b", 'a"b', "tags[]", "x" * 257])
async def test_a_group_is_a_plain_path(served: RunningMatcher, path: str):
    outcome = await served.match("cat", 20.0, group_by=path)
    if not path:
        assert outcome.is_whole
        return
    assert isinstance(outcome.error, InvalidInput)
    assert str(outcome.error).startswith("options.group_by: ")
