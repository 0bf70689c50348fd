"""The rules by which a copy stays equal to its source, one by one."""

from __future__ import annotations

import asyncio

import pytest

from tests.integration.ingest.scripted_encoder import ScriptedEncoder, embedding_of
from tests.integration.ingest.waiting import eventually
from tests.integration.reindex.contents import by_id, contents
from textmatch.documents import Document
from textmatch.index.index import Index
from textmatch.indexing import Copier
from workers.indexer import IndexerDependencies, index_documents

FIRST = Document("a", "first", version=1)


@pytest.fixture
async def copier(deps: IndexerDependencies, new: str) -> Copier:
    """An index with one document, and a second, empty collection."""
    await index_documents([FIRST], deps)
    await deps.collection.index.roles.start(new, 8)
    return Copier(
        deps.collection.index, deps.encoder, deps.collection.tombstones, encode_timeout_seconds=10.0
    )


async def write(index: Index, collection: str, document: Document) -> None:
    await index.upsert([document], embedding_of(document.text, collection), model_id=collection)


async def test_a_delete_while_a_document_is_copied_takes_the_copy_with_it(
    copier: Copier, deps: IndexerDependencies, index: Index, encoder: ScriptedEncoder, old: str, new: str
):
    encoder.may_answer.clear()
    calls = len(encoder.calls)
    copying = asyncio.create_task(copier.copy(["a"], source=old, target=new))

    async def is_encoding() -> bool:
        return len(encoder.calls) > calls

    await eventually(is_encoding, "the copy to have read the document")
    await deps.collection.tombstones.add({"a": 1}, ttl_seconds=600)
    await deps.collection.index.delete({"a": 1})
    encoder.may_answer.set()
    assert (await copying).removed == 1
    assert await contents(index, new) == {}


async def test_a_newer_write_while_a_document_is_copied_wins(
    copier: Copier, deps: IndexerDependencies, index: Index, encoder: ScriptedEncoder, old: str, new: str
):
    encoder.may_answer.clear()
    calls = len(encoder.calls)
    copying = asyncio.create_task(copier.copy(["a"], source=old, target=new))

    async def is_encoding() -> bool:
        return len(encoder.calls) > calls

    await eventually(is_encoding, "the copy to have read the document")
    newer = Document("a", "newer", version=2)
    await write(index, old, newer)
    await write(index, new, newer)
    encoder.may_answer.set()
    await copying
    assert await contents(index, new) == by_id([newer])


async def test_copying_by_outdated_roles_removes_nothing(copier: Copier, index: Index, old: str, new: str):
    # As if the new one were in use by now, and its newest writes had not come to the old one yet.
    newer, other = Document("a", "newer", version=2), Document("b", "other", version=1)
    await write(index, new, newer)
    await write(index, new, other)
    await copier.copy(["a", "b"], source=old, target=new)
    assert await contents(index, new) == by_id([newer, other])


async def test_a_second_copy_changes_nothing(copier: Copier, encoder: ScriptedEncoder, old: str, new: str):
    assert (await copier.copy(["a", "missing"], source=old, target=new)).written == 1
    calls = len(encoder.calls)
    again = await copier.copy(["a", "missing"], source=old, target=new)
    assert (again.written, again.removed, again.refused) == (0, 0, {})
    assert len(encoder.calls) == calls


async def test_what_the_source_has_lost_goes_and_what_it_has_in_another_version_comes(
    copier: Copier, index: Index, old: str, new: str
):
    await write(index, new, Document("a", "of a version that is gone", version=9))
    await write(index, new, Document("b", "gone", version=1))
    copied = await copier.remove_deleted({"a": 9, "b": 1}, source=old, target=new)
    assert (copied.removed, copied.written) == (2, 1)
    assert await contents(index, new) == by_id([FIRST])
