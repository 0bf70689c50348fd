"""What a worker does with a batch: `index_documents` against the real index and a real Redis."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from redis.asyncio import Redis

from tests.integration.ingest.indexing import make_indexer_dependencies
from tests.integration.ingest.scripted_encoder import REFUSED_TEXT, ScriptedEncoder, embedding_of
from tests.integration.ingest.waiting import eventually
from tests.support.collections import close_index, make_index
from tests.support.queue import mark
from textmatch.documents import Document
from textmatch.encoder_client import EncoderClient
from textmatch.errors import DependencyUnavailable, InvalidInput, ModelMismatch, Overloaded
from textmatch.index.index import Index
from workers.indexer import DocumentOutcome, IndexerDependencies, index_documents

INDEXED, STALE, DELETED = DocumentOutcome.INDEXED, DocumentOutcome.STALE, DocumentOutcome.DELETED


async def stored_text(deps: IndexerDependencies, document_id: str) -> str | None:
    found = (await deps.collection.index.fetch([document_id])).get(document_id)
    return found.document.text if found else None


async def test_documents_are_encoded_in_one_call_and_stored_whole(
    deps: IndexerDependencies, encoder: ScriptedEncoder
):
    documents = [
        Document("文档🙂", "猫坐在垫子上", {"作者": ["李", None], "n": 2**53 - 1}, 7),
        Document("b", "two 👩‍👩‍👧", {}, 8),
    ]
    await mark(deps.collection.pending, {"文档🙂": 7, "b": 8}, accepted_at=1.0)
    assert await index_documents(documents, deps) == [INDEXED, INDEXED]
    assert encoder.calls == [["猫坐在垫子上", "two 👩‍👩‍👧"]]
    stored = await deps.collection.index.fetch(["文档🙂", "b"], with_embeddings=True)
    assert [stored[document.id].document for document in documents] == documents
    embedding = stored["b"].embedding
    assert embedding is not None
    assert np.allclose(embedding, embedding_of("two 👩‍👩‍👧", encoder.model_id)[0], atol=1e-6)
    assert await deps.collection.index.model_in_use() == encoder.model_id
    assert (await deps.collection.pending.summary()).count == 0


async def test_an_unchanged_text_is_not_encoded_again(deps: IndexerDependencies, encoder: ScriptedEncoder):
    await index_documents([Document("a", "same", {"n": 1}, 1), Document("b", "old", {}, 1)], deps)
    again = [Document("a", "same", {"n": 2}, 2), Document("b", "new", {}, 2)]
    assert await index_documents(again, deps) == [DocumentOutcome.UNCHANGED_TEXT, INDEXED]
    assert encoder.calls[1:] == [["new"]]
    stored = await deps.collection.index.fetch(["a"], with_embeddings=True)
    assert stored["a"].document == again[0]
    assert stored["a"].embedding is not None
    assert np.allclose(stored["a"].embedding, embedding_of("same", encoder.model_id)[0], atol=1e-6)


async def test_the_same_batch_twice_is_encoded_once(deps: IndexerDependencies, encoder: ScriptedEncoder):
    documents = [Document("a", "text", {}, 5)]
    assert await index_documents(documents, deps) == [INDEXED]
    assert await index_documents(documents, deps) == [DocumentOutcome.UNCHANGED_TEXT]
    assert len(encoder.calls) == 1


async def test_of_equal_versions_with_other_contents_the_first_stays(
    deps: IndexerDependencies, encoder: ScriptedEncoder
):
    await index_documents([Document("a", "first", version=5)], deps)
    assert await index_documents([Document("a", "second", version=5)], deps) == [STALE]
    assert await index_documents([Document("a", "first", {"n": 1}, version=5)], deps) == [STALE]
    assert (await deps.collection.index.fetch(["a"]))["a"].document == Document("a", "first", version=5)
    assert len(encoder.calls) == 1


async def test_the_highest_version_wins_whatever_the_order(deps: IndexerDependencies):
    assert await index_documents([Document("a", "third", version=3)], deps) == [INDEXED]
    assert await index_documents([Document("a", "first", version=1)], deps) == [STALE]
    assert await stored_text(deps, "a") == "third"
    batch = [
        Document("a", "fourth", version=4),
        Document("a", "sixth", version=6),
        Document("a", "5", version=5),
    ]
    assert await index_documents(batch, deps) == [STALE, INDEXED, STALE]
    assert await stored_text(deps, "a") == "sixth"


async def test_a_settled_old_version_leaves_the_mark_of_the_newer(deps: IndexerDependencies):
    await mark(deps.collection.pending, {"a": 9}, accepted_at=1.0)
    await index_documents([Document("a", "old", version=8)], deps)
    assert await deps.collection.pending.versions(["a"]) == {"a": 9}


async def test_a_tombstone_keeps_older_writes_out(deps: IndexerDependencies, encoder: ScriptedEncoder):
    await deps.collection.tombstones.add({"a": 10}, ttl_seconds=60)
    await mark(deps.collection.pending, {"a": 10}, accepted_at=1.0)
    older = [Document("a", "old", version=9), Document("a", "equal", version=10)]
    assert await index_documents(older, deps) == [STALE, DELETED]
    assert await stored_text(deps, "a") is None
    assert encoder.calls == []
    assert await deps.collection.pending.versions(["a"]) == {}
    assert await index_documents([Document("a", "newer", version=11)], deps) == [INDEXED]


async def test_a_delete_during_the_write_takes_the_document_with_it(
    deps: IndexerDependencies, encoder: ScriptedEncoder
):
    encoder.may_answer.clear()
    writing = asyncio.create_task(
        index_documents([Document("a", "text", version=5), Document("b", "text", version=5)], deps)
    )
    await eventually(lambda: _was_called(encoder), "the call")
    await deps.collection.tombstones.add({"a": 6}, ttl_seconds=60)
    assert await deps.collection.index.delete({"a": 6}) == 0
    encoder.may_answer.set()
    assert await writing == [DELETED, INDEXED]
    assert await stored_text(deps, "a") is None
    assert await stored_text(deps, "b") == "text"


async def test_a_redelivery_removes_what_a_killed_worker_wrote_after_a_delete(deps: IndexerDependencies):
    document = Document("a", "text", version=5)
    await index_documents([document], deps)
    # The delete came between the killed worker's two looks for tombstones, and was done before its write.
    await deps.collection.tombstones.add({"a": 6}, ttl_seconds=60)
    assert await index_documents([document], deps) == [DELETED]
    assert await stored_text(deps, "a") is None


async def test_texts_the_encoder_names_go_to_the_dead_letters_alone(
    deps: IndexerDependencies, encoder: ScriptedEncoder
):
    documents = [Document(f"d{number}", f"text {number}", version=1) for number in range(4)]
    documents[1:1] = [Document("坏", REFUSED_TEXT, {"k": 1}, 1)]
    await mark(deps.collection.pending, {document.id: 1 for document in documents}, accepted_at=1.0)
    results = await index_documents(documents, deps)
    assert results == [INDEXED, DocumentOutcome.FAILED, INDEXED, INDEXED, INDEXED]
    assert [len(texts) for texts in encoder.calls] == [5, 4]
    letter = await deps.collection.dead_letters.get("坏")
    assert letter is not None
    assert (letter.document, letter.reason) == (documents[1], "TEXT_FAILED")
    assert letter.error == "the text makes the model fail"
    assert (await deps.collection.pending.summary()).count == 0


async def test_a_batch_of_bad_texts_only_is_settled(deps: IndexerDependencies, encoder: ScriptedEncoder):
    assert await index_documents([Document("a", REFUSED_TEXT, version=1)], deps) == [DocumentOutcome.FAILED]
    assert await deps.collection.index.model_in_use() == ""


@pytest.mark.parametrize("is_named", [False, True])
@pytest.mark.parametrize("text", [REFUSED_TEXT, REFUSED_TEXT * 10, "a text under a tombstone"])
async def test_a_first_batch_without_anything_to_write_is_settled(
    index: Index, redis: Redis, qdrant_url: str, encoder: ScriptedEncoder, text: str, is_named: bool
):
    """A collection that names its bi-encoder has no physical collection before its first document."""
    encoder.refused_by_model = {encoder.model_id: REFUSED_TEXT * 10}
    config = replace(index.collections.config, bi_encoder=encoder.model_id if is_named else "")
    named, client = make_index(qdrant_url, config), EncoderClient(encoder.target)
    deps = make_indexer_dependencies(named, redis, client)
    expected = DocumentOutcome.FAILED
    if REFUSED_TEXT not in text:
        await deps.collection.tombstones.add({"a": 1}, ttl_seconds=60)
        expected = DELETED
    async with asyncio.timeout(10):
        assert await index_documents([Document("a", text, version=1)], deps) == [expected]
    assert await index.model_in_use() == ""
    await client.close()
    await close_index(named)


async def test_a_later_good_version_clears_the_dead_letter(deps: IndexerDependencies):
    await index_documents([Document("a", REFUSED_TEXT, version=1)], deps)
    assert await index_documents([Document("a", "good", version=2)], deps) == [INDEXED]
    assert await deps.collection.dead_letters.count() == 0


async def test_failures_leave_everything_to_be_tried_again(
    deps: IndexerDependencies, encoder: ScriptedEncoder
):
    await mark(deps.collection.pending, {"a": 1}, accepted_at=1.0)
    encoder.errors = [Overloaded("busy", retry_delay_seconds=7.0), InvalidInput.of_field("texts", "too many")]
    document = Document("a", "text", version=1)
    with pytest.raises(Overloaded) as refused:
        await index_documents([document], deps)
    assert refused.value.retry_delay_seconds == 7.0
    with pytest.raises(InvalidInput, match="too many"):
        await index_documents([document], deps)
    assert await deps.collection.pending.versions(["a"]) == {"a": 1}
    assert await deps.collection.dead_letters.count() == 0
    assert await index_documents([document], deps) == [INDEXED]


async def test_another_model_is_refused_by_the_index(deps: IndexerDependencies, encoder: ScriptedEncoder):
    await index_documents([Document("a", "text", version=1)], deps)
    built_by, encoder.model_id = encoder.model_id, "other-0123456789ab"
    with pytest.raises(ModelMismatch) as mismatch:
        await index_documents([Document("b", "text", version=1)], deps)
    assert mismatch.value.index_model_id == built_by
    assert await stored_text(deps, "b") is None


async def test_a_dead_encoder_is_named(deps: IndexerDependencies, encoder: ScriptedEncoder):
    encoder.stop()
    with pytest.raises(DependencyUnavailable):
        await index_documents([Document("a", "text", version=1)], deps)


async def _was_called(encoder: ScriptedEncoder) -> bool:
    return bool(encoder.calls)
