"""When a step of changing the model is refused, and what the message says."""

from __future__ import annotations

import pytest

from tests.integration.ingest.scripted_encoder import ScriptedEncoder
from tests.support.collections import roles_of
from textmatch.collection_roles import CollectionRole, Roles
from textmatch.documents import Document
from textmatch.errors import ModelNotFound
from textmatch.index.index import Index
from textmatch.reindex import steps
from textmatch.reindex.sync import Migration, ReindexRefused
from workers.indexer import IndexerDependencies, index_documents


@pytest.fixture
async def ingested(deps: IndexerDependencies) -> IndexerDependencies:
    """A worker's parts, and an index of the old model with a document in it."""
    await index_documents([Document("a", "text", version=1)], deps)
    return deps


async def test_without_an_index_there_is_nothing_to_change(deps: IndexerDependencies, new: str):
    with pytest.raises(ReindexRefused, match="there is no index yet"):
        await steps.start(deps.collection.index, deps.encoder, new)


async def test_the_model_in_use_is_no_change(ingested: IndexerDependencies, old: str):
    with pytest.raises(ReindexRefused, match=f"{old} is in use already"):
        await steps.start(ingested.collection.index, ingested.encoder, old)


async def test_a_model_that_is_not_served_is_named_with_those_that_are(
    ingested: IndexerDependencies, old: str, new: str
):
    with pytest.raises(ModelNotFound, match=f'no bi-encoder "missing" is served; served: {old}, {new}'):
        await steps.start(ingested.collection.index, ingested.encoder, "missing")


async def test_the_model_in_use_must_be_served_too(
    ingested: IndexerDependencies, encoder: ScriptedEncoder, old: str, new: str
):
    encoder.model_id, encoder.other_model_ids = new, ()
    with pytest.raises(ModelNotFound, match=f'no bi-encoder "{old}" is served; served: {new}'):
        await steps.start(ingested.collection.index, ingested.encoder, new)


async def test_what_is_not_there_cannot_be_put_to_use_or_deleted(ingested: IndexerDependencies):
    with pytest.raises(ReindexRefused, match="a rollback is not possible"):
        await steps.roll_back(ingested.collection.index, ingested.encoder)
    with pytest.raises(ReindexRefused, match="no previous collection is kept"):
        await steps.drop_old(ingested.collection.index)
    with pytest.raises(ReindexRefused, match="no collection is being built"):
        await steps.cancel(ingested.collection.index)


async def test_a_third_model_waits_until_the_change_before_is_finished(
    ingested: IndexerDependencies, encoder: ScriptedEncoder, old: str, new: str
):
    third = f"third-{new}"
    encoder.other_model_ids = (new, third)
    going = await steps.start(ingested.collection.index, ingested.encoder, new)
    assert going == Migration(old, new)
    with pytest.raises(ReindexRefused, match=f"{new} is not finished; .* --cancel"):
        await steps.start(ingested.collection.index, ingested.encoder, third)
    await steps.switch(ingested.collection.index, going)
    with pytest.raises(ReindexRefused, match=f"{old} is still kept .* --drop-old"):
        await steps.start(ingested.collection.index, ingested.encoder, third)
    with pytest.raises(ReindexRefused, match=f"{old} is the previous collection; .* --rollback"):
        await steps.start(ingested.collection.index, ingested.encoder, old)


async def test_a_switch_may_be_repeated_when_its_answer_got_lost(
    ingested: IndexerDependencies, index: Index, old: str, new: str
):
    going = await steps.start(ingested.collection.index, ingested.encoder, new)
    await steps.switch(ingested.collection.index, going)
    await steps.switch(ingested.collection.index, going)
    assert await roles_of(index) == Roles(in_use=new, previous=old)


async def test_what_was_abandoned_is_not_switched_to_nor_gone_back_to(
    ingested: IndexerDependencies, index: Index, new: str, old: str
):
    going = await steps.start(ingested.collection.index, ingested.encoder, new)
    await index.roles.abandon(CollectionRole.NEXT)
    with pytest.raises(ReindexRefused, match=f"{new} is no longer being built"):
        await steps.switch(ingested.collection.index, going)
    with pytest.raises(ReindexRefused, match=f"{new} lacks writes, .* textmatch reindex --model {new}"):
        await steps.roll_back(ingested.collection.index, ingested.encoder)
    assert await steps.start(ingested.collection.index, ingested.encoder, new) == going
    assert await roles_of(index) == Roles(in_use=old, next=new)


async def test_what_was_abandoned_can_be_deleted(
    ingested: IndexerDependencies, index: Index, new: str, old: str
):
    await steps.start(ingested.collection.index, ingested.encoder, new)
    await index.roles.abandon(CollectionRole.NEXT)
    assert await steps.cancel(ingested.collection.index) == new
    assert await roles_of(index) == Roles(in_use=old)


async def test_going_back_needs_the_old_model(
    ingested: IndexerDependencies, encoder: ScriptedEncoder, old: str, new: str
):
    await steps.switch(
        ingested.collection.index, await steps.start(ingested.collection.index, ingested.encoder, new)
    )
    encoder.model_id, encoder.other_model_ids = new, ()
    with pytest.raises(ModelNotFound, match=old):
        await steps.roll_back(ingested.collection.index, ingested.encoder)
