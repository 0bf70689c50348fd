"""Batches made of messages that wait together; only the work on a batch is replaced."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest

from textmatch.collection_config import CollectionConfig
from textmatch.collection_store import Collection
from textmatch.documents import Document
from workers.batcher import MicroBatcher
from workers.indexer import IndexerDependencies
from workers.pauses import RetryBudgetExhausted
from workers.retrying_indexer import AcceptedDocument


class Indexer:
    """Records batches, and waits with each until it may go on."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.may_go_on = asyncio.Event()
        self.error: Exception | None = None

    async def settle(self, documents: Sequence[AcceptedDocument], deps: IndexerDependencies) -> None:
        assert deps.collection.name in ("first", "second")
        self.batches.append([one.document.id for one in documents])
        await self.may_go_on.wait()
        if self.error:
            raise self.error


@pytest.fixture
def indexer() -> Indexer:
    return Indexer()


@pytest.fixture
def batcher(indexer: Indexer) -> MicroBatcher:
    return MicroBatcher(cast("Any", indexer), batches=1)


def message(*ids: str) -> tuple[AcceptedDocument, ...]:
    return tuple(AcceptedDocument(Document(one, "text", version=1), 1.0) for one in ids)


def dependencies(name: str) -> IndexerDependencies:
    untouched = cast("Any", None)
    collection = Collection(CollectionConfig(name), untouched, untouched, untouched, untouched, untouched)
    return IndexerDependencies(collection, untouched, untouched, 1.0, 60)


FIRST, SECOND = dependencies("first"), dependencies("second")


async def send(
    batcher: MicroBatcher, *ids: str, size_bytes: int = 10, deps: IndexerDependencies = FIRST
) -> asyncio.Task[None]:
    task = asyncio.create_task(batcher.settle(message(*ids), deps, size_bytes))
    for _ in range(5):
        await asyncio.sleep(0)
    return task


async def test_what_waits_goes_together_and_nothing_waits_for_more(batcher: MicroBatcher, indexer: Indexer):
    first = await send(batcher, "a")
    assert indexer.batches == [["a"]]
    others = [await send(batcher, f"{number}", f"{number}+") for number in range(40)]
    indexer.may_go_on.set()
    await asyncio.gather(first, *others)
    assert [len(batch) for batch in indexer.batches] == [1, 64, 16]
    assert indexer.batches[1][:3] == ["0", "0+", "1"]


async def test_a_batch_has_documents_of_one_collection(batcher: MicroBatcher, indexer: Indexer):
    tasks = [await send(batcher, "a")]
    tasks += [await send(batcher, f"{number}", deps=SECOND if number % 2 else FIRST) for number in range(6)]
    indexer.may_go_on.set()
    await asyncio.gather(*tasks)
    assert indexer.batches == [["a"], ["0", "2", "4"], ["1", "3", "5"]]


async def test_large_messages_go_alone(batcher: MicroBatcher, indexer: Indexer):
    tasks = [await send(batcher, f"{number}", size_bytes=200_000) for number in range(3)]
    tasks.append(await send(batcher, "huge", size_bytes=10**7))
    indexer.may_go_on.set()
    await asyncio.gather(*tasks)
    assert indexer.batches == [["0"], ["1"], ["2"], ["huge"]]


async def test_several_batches_run_at_a_time(indexer: Indexer):
    batcher = MicroBatcher(cast("Any", indexer), batches=2)
    tasks = [await send(batcher, one) for one in "abc"]
    assert indexer.batches == [["a"], ["b"]]
    indexer.may_go_on.set()
    await asyncio.gather(*tasks)
    assert indexer.batches == [["a"], ["b"], ["c"]]


async def test_every_message_of_a_batch_that_is_not_settled_is_put_back(
    batcher: MicroBatcher, indexer: Indexer
):
    tasks = [await send(batcher, one) for one in "abc"]
    indexer.error = RetryBudgetExhausted("not settled")
    indexer.may_go_on.set()
    assert [type(one) for one in await asyncio.gather(*tasks, return_exceptions=True)] == [
        RetryBudgetExhausted
    ] * 3


async def test_what_nobody_waits_for_any_more_is_left_out(batcher: MicroBatcher, indexer: Indexer):
    tasks = [await send(batcher, one) for one in "abc"]
    tasks[1].cancel()
    await asyncio.sleep(0)
    indexer.may_go_on.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert indexer.batches == [["a"], ["c"]]


async def test_closing_ends_what_runs(batcher: MicroBatcher, indexer: Indexer):
    waiting = await send(batcher, "a")
    await batcher.close()
    assert not waiting.done()
    waiting.cancel()
