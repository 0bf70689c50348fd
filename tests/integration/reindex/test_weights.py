"""Tuned weights after a change of the model."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import pytest

from tests.integration.ingest.scripted_encoder import ScriptedEncoder
from tests.integration.reindex.command import ReindexCommand
from textmatch.documents import Document
from textmatch.index.index import Index
from textmatch.score_fusion import FUSION_NOTE, default_fusion, to_mapping
from workers.indexer import IndexerDependencies, index_documents

TUNED = to_mapping(default_fusion("any-0"))
OTHERS: dict[str, Any] = {**TUNED, "cosine": {"intercept": -1.0, "cosine": 2.0}}


@pytest.fixture
def retrained(encoder: ScriptedEncoder, old: str) -> str:
    """A model with the old one's name, served in addition to it."""
    retrained = f"{old.rpartition('-')[0]}-{uuid.uuid4().hex[:12]}"
    encoder.other_model_ids = (retrained, *encoder.other_model_ids)
    return retrained


@pytest.fixture
async def ingested(deps: IndexerDependencies, old: str) -> IndexerDependencies:
    """A worker's parts, and a collection of the old model with tuned weights."""
    await index_documents([Document("a", "text", version=1)], deps)
    await deps.collection.index.collections.note(old, {FUSION_NOTE: TUNED})
    return deps


async def weights(index: Index, collection: str) -> Mapping[str, Any] | None:
    weights: Mapping[str, Any] | None = (await index.collections.info(collection)).notes.get(FUSION_NOTE)
    return weights


async def test_weights_go_on_with_a_model_of_the_same_name(
    ingested: IndexerDependencies, command: ReindexCommand, index: Index, retrained: str
):
    assert (await command.run("--model", retrained))["tuned_weights"] == "taken over"
    assert await weights(index, retrained) == TUNED


async def test_weights_stay_with_their_model_and_the_command_says_so(
    ingested: IndexerDependencies, command: ReindexCommand, index: Index, old: str, new: str
):
    output = await command.show("--model", new)
    assert f"tuned weights of {old} do not fit another model" in output
    assert "textmatch tune DIRECTORY" in output
    assert await weights(index, new) is None
    await command.run("--rollback")
    assert await weights(index, await index.refresh_model_in_use()) == TUNED


async def test_weights_of_its_own_are_kept(
    ingested: IndexerDependencies, command: ReindexCommand, index: Index, retrained: str
):
    assert (await command.run("--model", retrained, "--no-switch"))["tuned_weights"] is None
    await index.collections.note(retrained, {FUSION_NOTE: OTHERS})
    assert (await command.run("--model", retrained))["tuned_weights"] == "own"
    assert await weights(index, retrained) == OTHERS


async def test_without_weights_there_is_nothing_to_say(
    deps: IndexerDependencies, command: ReindexCommand, index: Index, old: str, new: str
):
    await index_documents([Document("a", "text", version=1)], deps)
    await index.collections.note(old, {FUSION_NOTE: None})
    assert (await command.run("--model", new))["tuned_weights"] == "none"
