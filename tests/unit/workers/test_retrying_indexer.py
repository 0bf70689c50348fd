"""Trying until every document is settled; only the pipeline itself is replaced."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast

import pytest
from redis.asyncio import Redis

from tests.support.collections import make_collection
from tests.support.queue import mark
from textmatch import circuit_breaker
from textmatch.documents import Document
from textmatch.encoder_client import EncoderCrashed
from textmatch.errors import (
    CollectionNotFound,
    CollectionNotOwned,
    DeadlinePassed,
    DeadlineTooShort,
    DependencyUnavailable,
    InternalError,
    InvalidInput,
    ModelMismatch,
    Overloaded,
    PermissionDenied,
    StoreAccessDenied,
    StoreFull,
    StoreMisconfigured,
)
from textmatch.index.qdrant_errors import RequestTooLarge
from workers import metrics, pauses, retrying_indexer
from workers.indexer import DocumentOutcome, IndexerDependencies
from workers.pauses import OperatorAwaited, Paused, Pauses, RetryBudgetExhausted
from workers.retrying_indexer import AcceptedDocument, RetryingIndexer

TRANSIENT = [Overloaded("busy"), DependencyUnavailable("gone")]
FOR_AN_OPERATOR = [
    ModelMismatch("a", "b"),
    PermissionDenied("no scope"),
    CollectionNotOwned.of("default"),
    StoreAccessDenied("wrong key"),
    StoreFull("no space left"),
    StoreMisconfigured("strict mode"),
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
    return IndexerDependencies(make_collection(redis, untouched), untouched, untouched, 1.0, 60)


class Clock:
    """Replaces the module `time`: a test does not depend on how busy the machine is."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Encoder:
    """Embeds probe texts, except for the next ones that fail."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.probes = 0

    async def __call__(self, deps: IndexerDependencies) -> None:
        self.probes += 1
        if self.failures:
            self.failures -= 1
            raise DependencyUnavailable("no healthy upstream")


@pytest.fixture(autouse=True)
def encoder(monkeypatch: pytest.MonkeyPatch) -> Encoder:
    encoder = Encoder()
    monkeypatch.setattr(retrying_indexer, "probe_encoder", encoder)
    return encoder


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


async def test_an_encoder_that_embeds_no_probe_text_is_waited_for(
    deps: IndexerDependencies, monkeypatch: pytest.MonkeyPatch, no_delay: None, encoder: Encoder
):
    encoder.failures = 50
    pipeline = Pipeline(errors=[EncoderCrashed("disconnected")])
    await settle(pipeline, deps, monkeypatch, budget_seconds=0.0)
    assert encoder.probes > 50
    assert len(pipeline.batches) == 2
    assert await deps.collection.dead_letters.count() == 0


@pytest.mark.parametrize("error", FOR_AN_OPERATOR, ids=lambda error: type(error).__name__)
async def test_what_an_operator_must_end_pauses_the_collection_and_one_batch_at_a_time_probes(
    error: Exception, deps: IndexerDependencies, monkeypatch: pytest.MonkeyPatch
):
    clock = Clock()
    monkeypatch.setattr(circuit_breaker, "time", clock)
    monkeypatch.setattr(pauses, "time", clock)
    pipeline = Pipeline(errors=[error] * 3)
    monkeypatch.setattr(retrying_indexer, "index_documents", pipeline)
    waiting = Pauses()
    indexer = RetryingIndexer(60.0, waiting)
    assert waiting.intake() is None
    with pytest.raises(Paused):
        await indexer.settle(accepted(2), deps)
    assert waiting.intake() == 0
    assert {name: problem.message for name, problem in waiting.problems().items()} == {"default": str(error)}
    with pytest.raises(Paused):
        await indexer.settle(accepted(2), deps)
    assert len(pipeline.batches) == 1
    tries = 0
    while waiting.problems():
        clock.now += 0.1
        tries += 1
        with suppress(Paused):
            await indexer.settle(accepted(2), deps)
    # The delays before the three probes are 1, 2 and 4 seconds, or up to a quarter less.
    assert len(pipeline.batches) == 4
    assert 52 < tries <= 73
    assert waiting.intake() is None
    assert pipeline.settled == ["d0", "d1"]
    assert await deps.collection.dead_letters.count() == 0


async def test_a_paused_worker_takes_one_message_as_the_probe(
    deps: IndexerDependencies, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pauses, "_FIRST_DELAY_SECONDS", 0.05)
    waiting = Pauses()
    for collection in ("a", "b"):
        with pytest.raises(Paused), waiting.attempt(collection):
            raise OperatorAwaited(StoreFull("full"))
    assert waiting.intake() == 0
    await asyncio.sleep(0.06)
    assert waiting.intake() == 1
    with waiting.attempt("a"):
        assert waiting.intake() == 1
    # The collection "a" goes on, so messages are taken; those of "b" are put back.
    assert waiting.intake() is None
    assert list(waiting.problems()) == ["b"]


async def test_a_batch_that_fails_as_a_whole_is_held_against_no_document(
    deps: IndexerDependencies, monkeypatch: pytest.MonkeyPatch, no_delay: None
):
    pipeline = Pipeline(poisoned=[f"d{number}" for number in range(8)])
    with pytest.raises(Paused, match="a bug"):
        await settle(pipeline, deps, monkeypatch, count=8)
    assert await deps.collection.dead_letters.count() == 0


async def test_a_document_that_fails_alone_is_dead_once_another_one_has_succeeded(
    deps: IndexerDependencies, monkeypatch: pytest.MonkeyPatch, no_delay: None
):
    monkeypatch.setattr(pauses, "_FIRST_DELAY_SECONDS", 0.0)
    pipeline = Pipeline(poisoned=["d0"])
    monkeypatch.setattr(retrying_indexer, "index_documents", pipeline)
    indexer = RetryingIndexer(60.0)
    one, other = accepted(2)
    for _ in range(2):
        with pytest.raises(Paused):
            await indexer.settle([one], deps)
    assert await deps.collection.dead_letters.count() == 0
    await indexer.settle([other], deps)
    await indexer.settle([one], deps)
    assert [letter.key for letter in await deps.collection.dead_letters.entries(10)] == ["d0"]


async def test_an_encoder_that_fails_for_every_text_is_held_against_no_document(
    deps: IndexerDependencies, monkeypatch: pytest.MonkeyPatch, no_delay: None, encoder: Encoder
):
    encoder.failures = 10**6
    with pytest.raises(Paused, match="bug"):
        await settle(Pipeline(errors=[InternalError("bug")] * 4), deps, monkeypatch)
    assert await deps.collection.dead_letters.count() == 0
    encoder.failures = 0
    await settle(Pipeline(errors=[InternalError("bug")] * 4), deps, monkeypatch)
    assert await deps.collection.dead_letters.count() == 1


async def test_a_text_is_to_blame_only_if_the_encoder_works_before_and_after(
    deps: IndexerDependencies, monkeypatch: pytest.MonkeyPatch, no_delay: None, encoder: Encoder
):
    crash = EncoderCrashed("disconnected")
    # Three crashes, but before one of them something else failed, so that no probe was just before it.
    errors = [crash, crash, crash, DependencyUnavailable("gone"), crash]
    await settle(Pipeline(errors=errors), deps, monkeypatch)
    assert await deps.collection.dead_letters.count() == 0
    await settle(Pipeline(errors=[crash] * 4), deps, monkeypatch)
    [letter] = await deps.collection.dead_letters.entries(10)
    assert letter.reason == "TEXT_FAILED"


async def test_crashes_on_a_route_that_fails_probes_too_do_not_count(
    deps: IndexerDependencies, monkeypatch: pytest.MonkeyPatch, no_delay: None, encoder: Encoder
):
    crash = EncoderCrashed("disconnected")
    pipeline = Pipeline(errors=[crash] * 12)

    async def unreliable(deps: IndexerDependencies) -> None:
        encoder.probes += 1
        if encoder.probes % 3 == 0:
            raise DependencyUnavailable("no healthy upstream")

    monkeypatch.setattr(retrying_indexer, "probe_encoder", unreliable)
    await settle(pipeline, deps, monkeypatch)
    assert pipeline.settled == ["d0"]
    assert await deps.collection.dead_letters.count() == 0


class SlowPipeline(Pipeline):
    """Embeds so many documents in time."""

    def __init__(self, fits: int, error: Exception) -> None:
        super().__init__()
        self.fits = fits
        self.error = error

    async def __call__(
        self, documents: Sequence[Document], deps: IndexerDependencies
    ) -> list[DocumentOutcome]:
        if len(documents) > self.fits:
            self.batches.append([document.id for document in documents])
            raise self.error
        await asyncio.sleep(0.4 * len(documents) / self.fits)
        return await super().__call__(documents, deps)


@pytest.mark.parametrize(
    "error", [DeadlinePassed("late"), DeadlineTooShort("late"), RequestTooLarge("9 > 8")]
)
async def test_a_batch_that_is_too_large_is_halved_and_its_size_remembered(
    error: Exception, deps: IndexerDependencies, monkeypatch: pytest.MonkeyPatch
):
    pipeline = SlowPipeline(8, error)
    monkeypatch.setattr(retrying_indexer, "index_documents", pipeline)
    indexer = RetryingIndexer(60.0)
    await indexer.settle(accepted(32), deps)
    # Of the second half, nothing larger than the size that works is tried.
    assert [len(batch) for batch in pipeline.batches] == [32, 16, 8, 8, 8, 8]
    pipeline.batches.clear()
    await indexer.settle(accepted(32), deps)
    assert [len(batch) for batch in pipeline.batches] == [8, 8, 8, 8]
    assert len(pipeline.settled) == 64
    assert await deps.collection.dead_letters.count() == 0


async def test_an_encoder_that_answers_nothing_in_time_is_waited_for(
    deps: IndexerDependencies, monkeypatch: pytest.MonkeyPatch, no_delay: None, encoder: Encoder
):
    encoder.failures = 5
    pipeline = Pipeline(errors=[DeadlinePassed("late")] * 5)
    await settle(pipeline, deps, monkeypatch, count=4)
    assert [len(batch) for batch in pipeline.batches] == [4] * 6


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
