"""Workers write to the dual-write targets of the collection in use."""

from __future__ import annotations

from dataclasses import replace

import pytest
from prometheus_client import REGISTRY

from tests.integration.ingest.scripted_encoder import ScriptedEncoder
from tests.integration.reindex.conftest import OpenDeps
from tests.integration.reindex.contents import by_id, contents
from tests.support.collections import roles_of
from textmatch.collection_roles import CollectionRole, Roles
from textmatch.documents import Document
from textmatch.errors import ModelMismatch
from textmatch.index.index import Index
from workers.indexer import DocumentOutcome, IndexerDependencies, index_documents

FIRST = Document("a", "first", version=1)
SECOND = Document("b", "second", version=1)


async def test_a_worker_that_has_not_seen_the_change_yet_misses_nothing(
    deps: IndexerDependencies, index: Index, old: str, new: str
):
    await index_documents([FIRST], deps)
    # The worker knows the aliases of a moment ago, and must not rely on them.
    assert (await deps.collection.index.collections.roles()).dual_write_targets == ()
    await index.roles.start(new, 8)
    assert await index_documents([SECOND], deps) == [DocumentOutcome.INDEXED]
    assert await contents(index, new) == by_id([SECOND])
    await index.roles.promote(CollectionRole.NEXT, in_use=old)
    third = Document("c", "third", version=1)
    assert await index_documents([third], deps) == [DocumentOutcome.INDEXED]
    assert await contents(index, new) == by_id([SECOND, third])
    assert await contents(index, old) == by_id([FIRST, SECOND, third])


async def test_a_queued_delete_is_applied_to_both(
    deps: IndexerDependencies, index: Index, old: str, new: str
):
    await index_documents([FIRST, SECOND], deps)
    await index.roles.start(new, 8)
    await index_documents([FIRST, SECOND], deps)
    # Without a version: it was accepted after the documents, which were accepted at no known time.
    delete = replace(Document.deletion("a"), accepted_us=2)
    assert await index_documents([delete], deps) == [DocumentOutcome.DELETED]
    assert await contents(index, new) == await contents(index, old) == by_id([SECOND])


async def test_attributes_alone_are_not_encoded_again_for_the_mirror_either(
    deps: IndexerDependencies, index: Index, encoder: ScriptedEncoder, new: str
):
    await index_documents([FIRST], deps)
    await index.roles.start(new, 8)
    await index_documents([Document("a", "first", {"n": 1}, 2)], deps)
    calls = len(encoder.calls)
    newest = Document("a", "first", {"n": 2}, 3)
    assert await index_documents([newest], deps) == [DocumentOutcome.UNCHANGED_TEXT]
    assert len(encoder.calls) == calls
    assert await contents(index, new) == by_id([newest])


async def test_of_equal_versions_the_mirror_holds_what_the_index_holds(
    deps: IndexerDependencies, index: Index, new: str
):
    await index_documents([FIRST], deps)
    await index.roles.start(new, 8)
    await index_documents([Document("a", "another text of the same version", version=1)], deps)
    assert await contents(index, new) == by_id([FIRST])


async def test_a_document_that_only_the_new_model_refuses_is_indexed_and_leaves_no_old_version_behind(
    deps: IndexerDependencies, index: Index, encoder: ScriptedEncoder, new: str
):
    await index_documents([FIRST], deps)
    await index.roles.start(new, 8)
    await index_documents([Document("a", "older", version=2)], deps)
    encoder.refused_by_model = {new: "newer"}
    assert await index_documents([Document("a", "newer", version=3)], deps) == [DocumentOutcome.INDEXED]
    assert await contents(index, new) == {}
    assert await deps.collection.dead_letters.count() == 0


async def test_a_mirror_whose_model_is_not_served_is_waited_for(
    deps: IndexerDependencies, index: Index, encoder: ScriptedEncoder, old: str, new: str
):
    await index_documents([FIRST], deps)
    await index.roles.start(new, 8)
    encoder.other_model_ids = ()
    with pytest.raises(ModelMismatch, match=f"{new}.*{old}"):
        await index_documents([SECOND], deps)
    # It can be found, and waits to be acknowledged.
    assert set(await contents(index, old)) == {"a", "b"}
    encoder.other_model_ids = (new,)
    await index_documents([SECOND], deps)
    assert await contents(index, new) == by_id([SECOND])


@pytest.mark.parametrize("role", [CollectionRole.NEXT, CollectionRole.PREVIOUS])
async def test_a_mirror_whose_model_stays_away_is_abandoned_and_ingest_goes_on(
    open_deps: OpenDeps, index: Index, encoder: ScriptedEncoder, old: str, new: str, role: CollectionRole
):
    async with open_deps(unserved_seconds=0.0) as deps:
        await index_documents([FIRST], deps)
        await index.roles.start(new, 8)
        if role is CollectionRole.PREVIOUS:
            await index.roles.promote(CollectionRole.NEXT, in_use=old)
            await index.roles.promote(CollectionRole.PREVIOUS, in_use=new)
        encoder.other_model_ids = ()
        assert await index_documents([SECOND], deps) == [DocumentOutcome.INDEXED]
        assert await roles_of(index) == Roles(in_use=old, abandoned=new)
        assert await index_documents([Document("c", "third", version=1)], deps) == [DocumentOutcome.INDEXED]
        assert (
            REGISTRY.get_sample_value("textmatch_worker_abandoned_collections", {"collection": "default"})
            == 1.0
        )
    assert set(await contents(index, old)) == {"a", "b", "c"}


async def test_the_model_in_use_is_never_given_up(
    open_deps: OpenDeps, index: Index, encoder: ScriptedEncoder, old: str, new: str
):
    async with open_deps(unserved_seconds=0.0) as deps:
        await index_documents([FIRST], deps)
        encoder.model_id, encoder.other_model_ids = new, ()
        with pytest.raises(ModelMismatch, match=f"{old}.*{new}"):
            await index_documents([SECOND], deps)
        assert await roles_of(index) == Roles(in_use=old)
