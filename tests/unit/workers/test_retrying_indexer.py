"""Trying until every document is settled; only the pipeline itself is replaced."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, cast

import pytest
from redis.asyncio import Redis

from tests.support.collections import make_collection
from tests.support.queue import mark
from textmatch.documents import Document
from textmatch.errors import (
    CollectionNotFound,
    CollectionNotOwned,
    DependencyUnavailable,
    InternalError,
    InvalidInput,
    ModelMismatch,
    Overloaded,
    PermissionDenied,
)
from workers import metrics, retrying_indexer
from workers.indexer import DocumentOutcome, IndexerDependencies
from workers.retrying_indexer import AcceptedDocument, RetryBudgetExhausted, RetryingIndexer

TRANSIENT = [
    Overloaded("busy"),
    DependencyUnavailable("gone"),
    ModelMismatch("a", "b"),
    PermissionDenied("no scope"),
    CollectionNotOwned.of("default"),
]


class Pipeline:
    """Records batches; fails with the errors given, in turn, and whenever a poisoned document is there."""

    def __init__(self, errors: Sequence[Exception] = (), poisoned: Sequence[str] = ()) -> None:
        self.batches: list[list[str]] = []
        self.settled: list[str] = []
        self._errors = list(errors)
        self._poisoned = set(poisoned)

    async def __call__(
        self, documents: Sequence[Document], deps: IndexerDependencies
    ) -> list[DocumentOutcome]:
        ids = [document.id for document in documents]
        self.batches.append(ids)
        if self._errors:
            raise self._errors.pop(0)
        if self._poisoned & set(ids):
            raise RuntimeError("a bug")
        self.settled += ids
        return [DocumentOutcome.INDEXED] * len(ids)


@pytest.fixture
def deps(redis: Redis) -> IndexerDependencies:
    untouched = cast("Any", None)
    return IndexerDependencies(make_collection(redis, untouched), untouched, untouched, 1.0)


@pytest.fixture
def no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying_indexer, "delay_seconds", lambda error, attempt: 0.0)


def documents(count: int) -> tuple[Document, ...]:
    return tuple(Document(f"d{number}", "text", version=5) for number in range(count))


def accepted(count: int) -> list[AcceptedDocument]:
    return [AcceptedDocument(document, time.time()) for document in documents(count)]


async def settle(
    pipeline: Pipeline,
    deps: IndexerDependencies,
    monkeypatch: pytest.MonkeyPatch,
    count: int = 1,
    **options: float,
) -> None:
    monkeypatch.setattr(retrying_indexer, "index_documents", pipeline)
    indexer = RetryingIndexer(**{"budget_seconds": 60.0, **options})
    await indexer.settle(accepted(count), deps)


@pytest.mark.parametrize("error", TRANSIENT, ids=lambda error: type(error).__name__)
async def test_what_may_pass_is_never_held_against_a_document(
    error: Exception, deps: IndexerDependencies, monkeypatch: pytest.MonkeyPatch, no_delay: None
):
    pipeline = Pipeline(errors=[error] * 20)
    await settle(pipeline, deps, monkeypatch, count=2)
    assert pipeline.batches == [["d0", "d1"]] * 21
    assert await deps.collection.dead_letters.count() == 0


@pytest.mark.parametrize(
    "error", [RuntimeError("bug"), InternalError("bug"), InvalidInput.of_field("x", "y")]
)
async def test_a_bug_that_passes_leaves_no_trace(
    error: Exception, deps: IndexerDependencies, monkeypatch: pytest.MonkeyPatch, no_delay: None
):
    pipeline = Pipeline(errors=[error, Overloaded("busy"), error])
    await settle(pipeline, deps, monkeypatch, count=2)
    assert pipeline.settled == ["d0", "d1"]
    assert await deps.collection.dead_letters.count() == 0


async def test_documents_that_set_off_a_bug_are_found(
    deps: IndexerDependencies, monkeypatch: pytest.MonkeyPatch, no_delay: None
):
    await mark(deps.collection.pending, {document.id: 5 for document in documents(16)}, accepted_at=1.0)
    pipeline = Pipeline(poisoned=["d3", "d11"])
    await settle(pipeline, deps, monkeypatch, count=16)
    assert sorted(pipeline.settled) == sorted({f"d{number}" for number in range(16)} - {"d3", "d11"})
    assert {letter.key for letter in await deps.collection.dead_letters.entries(10)} == {"d3", "d11"}
    letter = await deps.collection.dead_letters.get("d3")
    assert letter is not None
    assert (letter.reason, letter.error) == ("INTERNAL", "RuntimeError: a bug")
    assert set(await deps.collection.pending.versions(["d3", "d11"])) == set()
    # Three tries of the whole, then halves: about two for each level and document.
    assert len(pipeline.batches) <= 3 + 2 * 2 * 4


async def test_an_outage_while_looking_for_a_bug_condemns_nobody(
    deps: IndexerDependencies, monkeypatch: pytest.MonkeyPatch, no_delay: None
):
    bug = RuntimeError("bug")
    pipeline = Pipeline(errors=[bug, bug, bug, DependencyUnavailable("gone"), DependencyUnavailable("gone")])
    await settle(pipeline, deps, monkeypatch, count=2)
    assert pipeline.settled == ["d0", "d1"]
    assert await deps.collection.dead_letters.count() == 0


async def test_documents_of_a_deleted_collection_are_dropped(
    deps: IndexerDependencies, monkeypatch: pytest.MonkeyPatch
):
    before = dropped()
    pipeline = Pipeline(errors=[CollectionNotFound("default")])
    await settle(pipeline, deps, monkeypatch, count=2)
    assert pipeline.batches == [["d0", "d1"]]
    assert await deps.collection.dead_letters.count() == 0
    assert dropped() == before + 2


def dropped() -> float:
    return float(metrics.DOCUMENTS_TOTAL.labels("dropped")._value.get())


async def test_patience_ends(deps: IndexerDependencies, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(retrying_indexer, "delay_seconds", lambda error, attempt: 0.05)
    pipeline = Pipeline(errors=[Overloaded("busy")] * 100)
    with pytest.raises(RetryBudgetExhausted, match="busy"):
        await settle(pipeline, deps, monkeypatch, budget_seconds=0.2)
    assert 2 <= len(pipeline.batches) <= 5


async def test_the_delay_that_was_asked_for_is_kept_even_beyond_the_patience(
    deps: IndexerDependencies, monkeypatch: pytest.MonkeyPatch
):
    started_at = time.monotonic()
    with pytest.raises(RetryBudgetExhausted):
        await settle(
            Pipeline(errors=[Overloaded("busy", retry_delay_seconds=0.3)]),
            deps,
            monkeypatch,
            budget_seconds=0.0,
        )
    assert time.monotonic() - started_at >= 0.3


async def test_a_stop_ends_the_waiting(deps: IndexerDependencies, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        retrying_indexer, "index_documents", Pipeline(errors=[Overloaded("busy", retry_delay_seconds=60.0)])
    )
    indexer = RetryingIndexer(budget_seconds=60.0)
    waiting = asyncio.create_task(indexer.settle(accepted(1), deps))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    indexer.stop()
    async with asyncio.timeout(1):
        with pytest.raises(RetryBudgetExhausted):
            await waiting
