"""Documents of several passages: written, found, updated and deleted as a whole, whenever a worker dies."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest

from tests.integration.ingest.document_calls import DocumentCalls
from tests.integration.ingest.indexing import Crash, CrashingClient, IngestState
from tests.integration.ingest.scripted_encoder import REFUSED_TEXT, ScriptedEncoder, embedding_of
from tests.support.collections import client_of
from textmatch.documents import Document, is_passage_point
from textmatch.filters import FieldMatch, Filter, HasId
from textmatch.index.bm25 import query_vector
from textmatch.index.index import Index
from textmatch.index.search import Hit, SearchQuery
from textmatch.index.term_statistics import UNKNOWN
from textmatch.v1 import matcher_service_pb2 as pb
from workers.indexer import DocumentOutcome, IndexerDependencies, index_documents

MAX_TOKENS = 40


@pytest.fixture(autouse=True)
def short_model(encoder: ScriptedEncoder) -> None:
    """A model that reads 40 words."""
    encoder.max_tokens = MAX_TOKENS


def sentences(name: str, count: int) -> list[str]:
    """Each has 20 words, and says which one it is."""
    return [f"{name} sentence number {number} " + "is here " * 7 + "today." for number in range(count)]


def long_document(
    document_id: str, count: int, version: int, name: str = "", attributes: dict[str, Any] | None = None
) -> Document:
    return Document(document_id, " ".join(sentences(name or document_id, count)), attributes or {}, version)


async def passage_points(index: Index) -> list[dict[str, Any]]:
    """The payloads of all further passages."""
    records, _ = await client_of(index).scroll(
        index.collections.config.physical(await index.model_in_use()), limit=10_000, with_payload=True
    )
    return [record.payload or {} for record in records if is_passage_point(str(record.id))]


async def search(index: Index, query: SearchQuery) -> list[Hit]:
    return await index.search(query, model_id=await index.model_in_use())


async def found_documents(index: Index, text: str, count: int = 10) -> list[Document]:
    """What is found for a text, the best passage of each document, best first."""
    embedding = embedding_of(text, await index.model_in_use())[0]
    hits = await search(index, SearchQuery(count, embedding, with_documents=True))
    hits.sort(key=lambda hit: -(hit.cosine or 0.0))
    found: dict[str, Document] = {}
    for hit in hits:
        assert hit.document is not None
        found.setdefault(hit.document.id, hit.document)
    return list(found.values())


def crashing(deps: IndexerDependencies, write_number: int) -> IndexerDependencies:
    """What a worker works with that dies before this write."""
    index: Any = copy.copy(deps.collection.index)
    index._client = CrashingClient(client_of(deps.collection.index), write_number)
    return replace(deps, collection=replace(deps.collection, index=index))


async def test_every_part_of_a_long_document_is_found_with_its_place(deps: IndexerDependencies):
    document = long_document("a", 9, version=1, attributes={"n": 1})
    assert await index_documents([document, Document("b", "short", {}, 1)], deps) == [
        DocumentOutcome.INDEXED, DocumentOutcome.INDEXED,
    ]  # fmt: skip
    index = deps.collection.index
    stored = await index.fetch(["a"])
    assert (stored["a"].document, stored["a"].document.passage) == (document, None)
    assert stored["a"].passage_count == len(await passage_points(index)) + 1 >= 5
    assert await index.count() == 2
    places = set()
    for payload in await passage_points(index):
        found = (await found_documents(index, payload["text"]))[0]
        assert found.passage is not None
        assert document.text[found.passage.start : found.passage.end] == found.text == payload["text"]
        assert (found.id, found.attributes, found.version) == ("a", {"n": 1}, 1)
        places.add(found.passage.number)
    assert places == set(range(1, stored["a"].passage_count))


async def test_a_short_text_is_encoded_once(deps: IndexerDependencies, encoder: ScriptedEncoder):
    await index_documents([Document("a", "short", {}, 1), Document("b", "word " * MAX_TOKENS, {}, 1)], deps)
    assert len(encoder.calls) == 1
    assert await passage_points(deps.collection.index) == []


async def test_no_passage_is_longer_than_the_model_reads(deps: IndexerDependencies, encoder: ScriptedEncoder):
    text = "w " * 300 + "incomprehensibilities " * 100 + "文" * 50
    await index_documents([Document("a", text, {}, 1)], deps)
    texts = [payload["text"] for payload in await passage_points(deps.collection.index)]
    assert all(len(one.split()) <= MAX_TOKENS for one in texts)
    first = text[: len(text) - len("".join(texts))]
    assert len(first.split()) < 2 * MAX_TOKENS


async def test_an_update_leaves_no_passage_of_the_old_version(deps: IndexerDependencies):
    index = deps.collection.index
    await index_documents([long_document("a", 12, version=1)], deps)
    for version, count in ((2, 4), (3, 8), (4, 1)):
        document = long_document("a", count, version, name=f"v{version}")
        await index_documents([document], deps)
        assert (await index.fetch(["a"]))["a"].document == document
        left = await passage_points(index)
        assert {payload["version"] for payload in left} <= {version}
        assert len(left) == (await index.fetch(["a"]))["a"].passage_count - 1


@pytest.mark.parametrize("write_number", [0, 1, 2])
async def test_a_crash_between_two_steps_leaves_the_old_or_the_new_document(
    deps: IndexerDependencies, write_number: int
):
    index = deps.collection.index
    old, new = long_document("a", 6, 1, name="old"), long_document("a", 4, 2, name="new")
    await index_documents([old], deps)
    with pytest.raises(Crash):
        await index_documents([new], crashing(deps, write_number))
    stored = (await index.fetch(["a"]))["a"].document
    assert stored == (new if write_number == 2 else old)
    for text in [*sentences("old", 6), *sentences("new", 4)]:
        for found in await found_documents(index, text):
            assert found.version == stored.version
            assert found.passage is not None
            assert stored.text[found.passage.start : found.passage.end] == found.text
    await index_documents([new], deps)
    assert (await index.fetch(["a"]))["a"].document == new
    assert {payload["version"] for payload in await passage_points(index)} == {2}


@pytest.mark.parametrize("newer_count", [1, 5])
async def test_an_old_version_that_loses_leaves_no_passage(deps: IndexerDependencies, newer_count: int):
    index = deps.collection.index
    old, new = long_document("a", 7, 1, name="old"), long_document("a", newer_count, 2, name="new")
    with pytest.raises(Crash):
        await index_documents([Document("b", "short", {}, 1), old], crashing(deps, 1))
    await index_documents([new], deps)
    assert await index_documents([old], deps) == [DocumentOutcome.STALE]
    assert {payload["version"] for payload in await passage_points(index)} <= {2}


async def test_an_old_version_in_one_batch_with_a_short_new_one_leaves_no_passage(deps: IndexerDependencies):
    index = deps.collection.index
    await index_documents([Document("b", "short", {}, 1)], deps)
    old, new = long_document("a", 7, 1), Document("a", "short", {}, 2)
    with pytest.raises(Crash):
        await index_documents([old], crashing(deps, 1))
    assert len(await passage_points(index)) > 0
    await index_documents([old, new], deps)
    assert await passage_points(index) == []


async def test_a_short_version_removes_passages_that_it_did_not_know_of(deps: IndexerDependencies):
    index = deps.collection.index
    await index_documents([Document("b", "short", {}, 1), long_document("a", 5, 1)], deps)
    model_id = await index.model_in_use()
    # As a worker does that read what is stored before another one wrote the long version.
    await index.upsert([Document("a", "short", {}, 2)], embedding_of("short", model_id), model_id=model_id)
    assert await passage_points(index) == []


async def test_a_text_is_divided_in_the_same_way_whatever_else_is_in_the_batch(
    deps: IndexerDependencies, encoder: ScriptedEncoder
):
    index = deps.collection.index
    text = " ".join(
        f"{word} " * (3 + number % 9) + "end."
        for number, word in enumerate(["cat", "internationalization"] * 40)
    )
    document = Document("a", text, {}, 1)
    others = [long_document(f"other-{number}", 5 + number, 1) for number in range(5)]
    await index_documents([document], deps)
    alone = await passage_points(index)
    await index_documents([*others, replace(document, version=2)], deps)
    together = [one for one in await passage_points(index) if one["id"] == "a"]
    assert len(alone) > 10
    places = [sorted(one["passage"]["start"] for one in some) for some in (alone, together)]
    assert places[0] == places[1]


async def test_of_equal_versions_with_other_contents_only_the_first_leaves_passages(
    deps: IndexerDependencies,
):
    index = deps.collection.index
    first, second = long_document("a", 5, 3, name="first"), long_document("a", 6, 3, name="second")
    await index_documents([Document("b", "short", {}, 1)], deps)
    with pytest.raises(Crash):
        await index_documents([second], crashing(deps, 1))
    await index_documents([first], deps)
    assert await index_documents([second], deps) == [DocumentOutcome.STALE]
    assert all(payload["text"] in first.text for payload in await passage_points(index))
    assert len(await passage_points(index)) == (await index.fetch(["a"]))["a"].passage_count - 1


async def test_deletes_remove_all_passages(deps: IndexerDependencies, handler: DocumentCalls):
    index = deps.collection.index
    documents = [long_document(name, 6, 5, attributes={"kind": name}) for name in ("a", "b", "c")]
    await index_documents(documents, deps)
    await handler.delete(pb.DeleteDocumentsRequest(ids=["a"], version=5))
    assert {payload["id"] for payload in await passage_points(index)} == {"b", "c"}
    await handler.delete(pb.DeleteDocumentsRequest(ids=["b"]))
    assert {payload["id"] for payload in await passage_points(index)} == {"c"}
    where = pb.Filter(must=[pb.Condition(match=pb.FieldMatch(field="kind"))])
    where.must[0].match.values.add().string_value = "c"
    answer = await handler.delete(pb.DeleteDocumentsRequest(filter=where))
    assert answer.deleted_count == 1
    assert await passage_points(index) == []
    assert await index.count() == 0


async def test_a_delete_also_covers_a_write_that_has_not_been_completed(
    deps: IndexerDependencies, handler: DocumentCalls
):
    index = deps.collection.index
    await index_documents([Document("b", "short", {}, 1)], deps)
    document = replace(long_document("a", 6, 9), accepted_us=1)
    with pytest.raises(Crash):
        await index_documents([document], crashing(deps, 1))
    await deps.collection.tombstones.delete(["a"], None, ttl_seconds=600)
    assert await index_documents([document], deps) == [DocumentOutcome.DELETED]
    assert await passage_points(index) == []


async def test_filters_hold_for_every_passage(deps: IndexerDependencies):
    index = deps.collection.index
    documents = [long_document(name, 6, 1, attributes={"kind": name}) for name in ("a", "b", "c")]
    await index_documents(documents, deps)
    model_id = await index.model_in_use()
    for payload in await passage_points(index):
        embedding = embedding_of(payload["text"], model_id)[0]
        for where in (Filter(must=(FieldMatch("kind", ("a",)),)), Filter(must_not=(HasId(("b", "c")),))):
            hits = await search(index, SearchQuery(10, embedding, condition=where, with_documents=True))
            assert {hit.document.id for hit in hits if hit.document} == {"a"}


async def test_one_long_document_does_not_take_the_places_of_others(deps: IndexerDependencies):
    index = deps.collection.index
    text = " ".join(f"cats purr {number} " + "x " * 36 + "." for number in range(60))
    many = Document("many", text, {}, 1)
    others = [Document(f"d{number}", f"dogs {number}", {}, 1) for number in range(9)]
    await index_documents([many, *others], deps)
    terms = query_vector("cats dogs", UNKNOWN)
    for query in (
        SearchQuery(10, embedding_of("cats", await index.model_in_use())[0]),
        SearchQuery(10, embedding_of("cats", await index.model_in_use())[0], terms),
    ):
        hits = await search(index, replace(query, with_documents=True))
        assert {hit.document.id for hit in hits if hit.document} == {"many", *(one.id for one in others)}


async def test_documents_are_listed_and_counted_once(
    deps: IndexerDependencies, handler: DocumentCalls, state: IngestState
):
    documents = [long_document("a", 6, 1), Document("b", "short", {}, 1), long_document("c", 3, 1)]
    await index_documents(documents, deps)
    index = deps.collection.index
    listed = await index.documents_after(Filter(), "", 10)
    assert sorted(one.id for one in listed) == ["a", "b", "c"]
    page = await index.points(await index.model_in_use()).page(None)
    assert page.versions == {"a": 1, "b": 1, "c": 1}
    status = await handler.status(pb.GetIngestStatusRequest())
    assert status.document_count == 3


async def test_a_document_with_a_bad_passage_is_refused_as_a_whole(deps: IndexerDependencies):
    good = long_document("good", 6, 1)
    bad = Document("bad", f"{sentences('bad', 3)[0]}\n\n# {REFUSED_TEXT}\n\n" + "word " * 39, {}, 1)
    outcomes = await index_documents([good, bad, Document("short", REFUSED_TEXT, {}, 1)], deps)
    assert outcomes[0] is DocumentOutcome.INDEXED
    assert outcomes[2] is DocumentOutcome.FAILED
    assert (await deps.collection.index.fetch(["good"]))["good"].document == good


async def test_passages_can_be_turned_off(deps: IndexerDependencies, encoder: ScriptedEncoder):
    index: Any = copy.copy(deps.collection.index)
    config = replace(deps.collection.config, passage_tokens=0)
    whole = replace(deps, collection=replace(deps.collection, config=config, index=index))
    await index_documents([long_document("a", 6, 1)], whole)
    assert len(encoder.calls) == 1
    assert await passage_points(deps.collection.index) == []


async def test_documents_that_are_not_read_to_the_end_are_counted(
    deps: IndexerDependencies, handler: DocumentCalls
):
    config = replace(deps.collection.config, passage_tokens=0)
    whole = replace(deps, collection=replace(deps.collection, config=config))
    long, short = long_document("long", 6, 1), Document("short", "A few words.", {}, 1)
    await index_documents([long, short], whole)
    assert (await handler.status(pb.GetIngestStatusRequest())).truncated_count == 1
    # The stored embedding of the same text is used again.
    await index_documents([replace(long, version=2, attributes={"a": 1})], whole)
    assert (await handler.status(pb.GetIngestStatusRequest())).truncated_count == 1
    # Divided, it is read.
    await index_documents([long_document("long", 7, 3)], deps)
    assert (await handler.status(pb.GetIngestStatusRequest())).truncated_count == 0


async def test_passages_are_as_short_as_the_collection_says(
    deps: IndexerDependencies, encoder: ScriptedEncoder
):
    config = replace(deps.collection.config, passage_tokens=32)
    short = replace(deps, collection=replace(deps.collection, config=config))
    await index_documents([long_document("a", 6, 1)], short)
    stored = (await deps.collection.index.fetch(["a"]))["a"]
    assert stored.passage_count == 6
