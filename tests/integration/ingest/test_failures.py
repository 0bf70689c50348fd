"""Failures of the encoder as a worker meets them: over real gRPC, into a real index."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from prometheus_client import REGISTRY

from tests.integration.ingest.indexing import IngestState
from tests.integration.ingest.scripted_encoder import ScriptedEncoder
from tests.integration.ingest.waiting import eventually
from tests.support.collections import CONFIG
from textmatch.documents import Document
from textmatch.errors import Overloaded
from workers.indexer import IndexerDependencies
from workers.pauses import Paused
from workers.retrying_indexer import AcceptedDocument, RetryingIndexer

POISON = "poison"
MISMATCH_LABELS = {"collection": "default", "reason": "MODEL_MISMATCH"}


@pytest.fixture
def indexer() -> RetryingIndexer:
    return RetryingIndexer(budget_seconds=30.0)


def documents(count: int) -> tuple[Document, ...]:
    return tuple(Document(f"文档🙂{number}", f"text {number}", {"n": number}, 1) for number in range(count))


def accepted(*several: Document) -> list[AcceptedDocument]:
    return [AcceptedDocument(one, time.time()) for one in several]


def fails_on_poison(texts: Sequence[str]) -> None:
    if POISON in texts:
        raise RuntimeError("a bug")


async def test_overload_is_waited_out_for_as_long_as_the_encoder_asks(
    indexer: RetryingIndexer, deps: IndexerDependencies, encoder: ScriptedEncoder
):
    labels = {"reason": "OVERLOADED"}
    retries = REGISTRY.get_sample_value("textmatch_worker_retries_total", labels) or 0.0
    encoder.errors = [Overloaded("busy", retry_delay_seconds=1.5)]
    started_at = time.monotonic()
    await indexer.settle(accepted(*documents(3)), deps)
    assert time.monotonic() - started_at >= 1.5
    assert REGISTRY.get_sample_value("textmatch_worker_retries_total", labels) == retries + 1
    assert await deps.collection.index.count() == 3
    assert await deps.collection.dead_letters.count() == 0


async def test_a_bug_of_the_encoder_fails_only_the_document_that_sets_it_off(
    indexer: RetryingIndexer, deps: IndexerDependencies, encoder: ScriptedEncoder
):
    encoder.check = fails_on_poison
    poisoned = Document("poisoned", POISON, version=1)
    await indexer.settle(accepted(*documents(20), poisoned), deps)
    assert await deps.collection.index.count() == 20
    [letter] = await deps.collection.dead_letters.entries(10)
    assert (letter.document, letter.reason) == (poisoned, "INTERNAL")


async def test_a_dead_letter_can_be_replayed(
    indexer: RetryingIndexer, deps: IndexerDependencies, state: IngestState, encoder: ScriptedEncoder
):
    encoder.check = fails_on_poison
    poisoned = Document("中毒", POISON, {"n": 1}, version=5)
    await indexer.settle(accepted(poisoned), deps)
    encoder.check = lambda texts: None
    assert await state.dead_letters.replay(["中毒"], state.producer, CONFIG) == 1
    assert await state.pending.versions(["中毒"]) == {"中毒": 5}
    await indexer.settle(accepted(poisoned), deps)
    assert (await deps.collection.index.fetch(["中毒"]))["中毒"].document == poisoned
    assert await deps.collection.dead_letters.count() == 0


async def test_a_model_mismatch_waits_for_the_operator(
    indexer: RetryingIndexer, deps: IndexerDependencies, encoder: ScriptedEncoder
):
    await deps.collection.index.collections.prepare("another-0123456789ab", 8)
    with pytest.raises(Paused, match="another-0123456789ab"):
        await indexer.settle(accepted(*documents(1)), deps)
    assert REGISTRY.get_sample_value("textmatch_worker_operator_needed", MISMATCH_LABELS) == 1.0
    encoder.model_id = "another-0123456789ab"

    async def is_settled() -> bool:
        try:
            await indexer.settle(accepted(*documents(1)), deps)
        except Paused:
            return False
        return True

    await eventually(is_settled, "the next probe")
    assert REGISTRY.get_sample_value("textmatch_worker_operator_needed", MISMATCH_LABELS) is None
    assert await deps.collection.index.count() == 1
    assert await deps.collection.dead_letters.count() == 0
