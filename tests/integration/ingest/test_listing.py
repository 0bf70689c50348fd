"""Lists, counts and many documents by their ids, and dead letters, with a real index and a real Redis."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.integration.ingest.document_calls import DocumentCalls
from tests.integration.ingest.indexing import IngestState
from tests.integration.ingest.test_documents_handler import document_state, proto, send, work
from textmatch.documents import MAX_TEXT_BYTES, Document
from textmatch.errors import InvalidInput
from textmatch.queue.dead_letters import of_document, of_raw
from textmatch.v1 import matcher_service_pb2 as pb
from textmatch.wire.matching import MAX_ANSWER_BYTES
from workers.indexer import IndexerDependencies

Store = Callable[..., Awaitable[list[str]]]
COUNT = 230


@pytest.fixture
async def store(handler: DocumentCalls, deps: IndexerDependencies, redis: Redis) -> Store:
    """Stores documents, and returns their ids in the order of a list."""

    async def stored(*documents: pb.Document) -> list[str]:
        await send(handler, list(documents))
        await work(deps, redis)
        return await listed(handler)

    return stored


def numbered(count: int) -> list[pb.Document]:
    return [proto(f"文{number}", f"text {number}", version=number + 1, n=number) for number in range(count)]


def where(**bounds: float) -> pb.Filter:
    return pb.Filter(must=[pb.Condition(range=pb.FieldRange(field="n", **bounds))])


async def pages(handler: DocumentCalls, **options: Any) -> list[pb.ListDocumentsResponse]:
    found = [await handler.list(pb.ListDocumentsRequest(**options))]
    while token := found[-1].next_page_token:
        found.append(await handler.list(pb.ListDocumentsRequest(**{**options, "page_token": token})))
    return found


async def listed(handler: DocumentCalls, **options: Any) -> list[str]:
    return [one.id for page in await pages(handler, **options) for one in page.documents]


async def test_pages_of_any_size_have_the_same_documents_in_the_same_order(
    handler: DocumentCalls, store: Store
):
    sent = {one.id: one for one in numbered(COUNT)}
    order = await store(*sent.values())
    assert sorted(order) == sorted(sent)
    for size in (1, 7, 100, 230, 231, 1_000):
        found = await pages(handler, page_size=size)
        assert [one.id for page in found for one in page.documents] == order
        assert all(one == sent[one.id] for page in found for one in page.documents)
        assert len(found) == -(-COUNT // size)


async def test_an_empty_list_is_one_page(handler: DocumentCalls):
    [page] = await pages(handler)
    assert (list(page.documents), page.next_page_token) == ([], "")
    assert (await handler.count(pb.CountDocumentsRequest())).document_count == 0
    answer = await handler.get_many(pb.GetDocumentsRequest(ids=["a"]))
    assert (list(answer.documents), list(answer.missing_ids)) == ([], ["a"])


async def test_a_filter_is_applied_to_lists_and_counts(handler: DocumentCalls, store: Store):
    order = await store(*numbered(COUNT))
    for bounds in ({"gte": 100}, {"lt": 3}, {"gt": 1e6}):
        expected = [
            one
            for one in order
            if all(
                {"gte": int(one[1:]) >= limit, "lt": int(one[1:]) < limit, "gt": int(one[1:]) > limit}[name]
                for name, limit in bounds.items()
            )
        ]
        assert await listed(handler, filter=where(**bounds), page_size=9) == expected
        counted = await handler.count(pb.CountDocumentsRequest(filter=where(**bounds)))
        assert counted.document_count == len(expected)
    assert (await handler.count(pb.CountDocumentsRequest())).document_count == COUNT
    empty = await handler.count(pb.CountDocumentsRequest(filter=pb.Filter()))
    assert empty.document_count == COUNT


async def test_a_list_goes_on_after_a_document_that_was_deleted(handler: DocumentCalls, store: Store):
    order = await store(*numbered(30))
    first = await handler.list(pb.ListDocumentsRequest(page_size=10))
    assert first.next_page_token == order[9]
    await handler.delete(pb.DeleteDocumentsRequest(ids=[order[9], order[12]]))
    rest = await listed(handler, page_token=order[9], page_size=10)
    assert rest == [order[10], order[11], *order[13:]]
    after_another = await listed(handler, page_token="never stored")  # noqa: S106 -- an id
    now = await listed(handler)
    assert after_another == now[len(now) - len(after_another) :]


async def test_parts_are_left_out(handler: DocumentCalls, store: Store):
    await store(proto("a", "text", version=3, n=1))
    [page] = await pages(handler, omit_text=True)
    assert page.documents[0] == pb.Document(id="a", attributes={"n": 1}, version=3)
    [page] = await pages(handler, omit_text=True, omit_attributes=True)
    assert page.documents[0] == pb.Document(id="a", version=3)


async def test_large_documents_make_more_pages_and_not_larger_ones(handler: DocumentCalls, store: Store):
    text = "x" * MAX_TEXT_BYTES
    order = await store(*(proto(str(number), text) for number in range(150)))
    found = await pages(handler, page_size=1_000)
    assert len(found) == 2
    assert all(page.ByteSize() < MAX_ANSWER_BYTES + 1_000 for page in found)
    assert [one.id for page in found for one in page.documents] == order
    answer = await handler.get_many(pb.GetDocumentsRequest(ids=order))
    assert answer.ByteSize() < MAX_ANSWER_BYTES + 1_000
    assert [one.id for one in answer.documents] == order[: answer.answered_count]
    assert 100 < answer.answered_count < 150


async def test_documents_by_id_come_in_the_order_of_the_ids(handler: DocumentCalls, store: Store):
    sent = {one.id: one for one in numbered(250)}
    await store(*sent.values())
    asked = ["文9", "missing", *(f"文{number}" for number in range(249, -1, -1)), "文9"]
    answer = await handler.get_many(pb.GetDocumentsRequest(ids=asked))
    assert list(answer.documents) == [sent[one] for one in asked if one in sent]
    assert (list(answer.missing_ids), answer.answered_count) == (["missing"], 253)


@pytest.mark.parametrize(
    ("call", "request_", "complaint"),
    [
        ("list", pb.ListDocumentsRequest(page_size=-1), "page_size: is -1"),
        ("list", pb.ListDocumentsRequest(page_token="x" * 513), "page_token: has 513 bytes"),
        ("list", pb.ListDocumentsRequest(filter={"must": [{}]}), r"filter\.must\[0\]"),
        ("count", pb.CountDocumentsRequest(filter={"must": [{}]}), r"filter\.must\[0\]"),
        ("get_many", pb.GetDocumentsRequest(), "ids: is empty"),
        ("get_many", pb.GetDocumentsRequest(ids=["a", ""]), r"ids\[1\]: is empty"),
        ("get_many", pb.GetDocumentsRequest(ids=["a"] * 1_001), "ids: has 1,001 items"),
        ("list_letters", pb.ListDeadLettersRequest(page_size=-1), "page_size: is -1"),
        ("list_letters", pb.ListDeadLettersRequest(page_token="a"), "page_token: is not one"),  # noqa: S106
        ("replay", pb.ReplayDeadLettersRequest(), "ids: is empty"),
        ("drop", pb.DropDeadLettersRequest(ids=["a"] * 1_001), "ids: has 1,001 items"),
    ],
)
async def test_what_cannot_be_meant_is_told(handler: DocumentCalls, call: str, request_: Any, complaint: str):
    with pytest.raises(InvalidInput, match=complaint):
        await getattr(handler, call)(request_)


async def test_dead_letters_are_listed_in_pages(handler: DocumentCalls, state: IngestState):
    await state.dead_letters.add(
        [of_document(Document(f"d{number}", "text", version=7), "TEXT_FAILED", "e") for number in range(120)]
    )
    await state.dead_letters.add([of_raw("{nonsense", "is not JSON")])
    for size in (1, 50, 1_000):
        token, found = "", list[pb.DeadLetter]()
        while True:
            request = pb.ListDeadLettersRequest(page_size=size, page_token=token)
            page = await handler.list_letters(request)
            found += page.dead_letters
            token = page.next_page_token
            if not token:
                break
        assert [one.id for one in found[:-1]] == [f"d{number}" for number in range(120)]
        assert (found[0].reason, found[0].text, found[0].version) == ("TEXT_FAILED", "text", 7)
        assert not found[0].HasField("raw")
        assert (found[-1].reason, found[-1].raw) == ("MALFORMED", "{nonsense")
        assert not found[-1].HasField("text")


async def test_letters_of_any_size_and_content_fit_into_a_page(handler: DocumentCalls, state: IngestState):
    await state.dead_letters.add(
        [
            of_raw("文" * 3_000_000, "e" * 1_000_000),
            of_document(Document("odd", "\ud800", {"x": float("inf")}, version=5), "A", "\ud800"),
        ]
    )
    page = await handler.list_letters(pb.ListDeadLettersRequest())
    large, odd = page.dead_letters
    assert len(large.raw.encode()) <= 32 * 1024
    assert len(large.error) == 4 * 1024
    assert (odd.id, odd.text, odd.error) == ("odd", "?", "?")


async def test_a_dead_letter_is_replayed_or_dropped(
    handler: DocumentCalls, state: IngestState, deps: IndexerDependencies, redis: Redis
):
    documents = [Document(one, f"text {one}", version=7) for one in ("a", "b")]
    await state.dead_letters.add([of_document(one, "TEXT_FAILED", "e") for one in documents])
    assert await document_state(handler, "a") == "FAILED"
    request = pb.ReplayDeadLettersRequest(ids=["a", "a", "missing"])
    assert (await handler.replay(request)).replayed_count == 1
    await work(deps, redis)
    assert await document_state(handler, "a") == "INDEXED"
    assert (await handler.get(pb.GetDocumentRequest(id="a"))).document.version == 7
    assert (await handler.drop(pb.DropDeadLettersRequest(ids=["b", "missing"]))).dropped_count == 1
    assert await document_state(handler, "b") == "UNKNOWN"
    assert list((await handler.list_letters(pb.ListDeadLettersRequest())).dead_letters) == []


async def test_a_delete_takes_the_dead_letter_from_the_list(
    handler: DocumentCalls, state: IngestState, redis: Redis
):
    await state.dead_letters.add([of_document(Document("a", "text", version=7), "TEXT_FAILED", "e")])
    await handler.delete(pb.DeleteDocumentsRequest(ids=["a"]))
    assert list((await handler.list_letters(pb.ListDeadLettersRequest())).dead_letters) == []
    assert await redis.keys("*dead-letter*") == []
