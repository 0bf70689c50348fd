"""A change of the model amid writes, updates and deletes, compared with what the outcome must be.

TEXTMATCH_TEST_SEED repeats a run.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis

from tests.integration.ingest.scripted_encoder import ScriptedEncoder, embedding_of
from tests.integration.reindex.conftest import OpenDeps
from tests.integration.reindex.contents import by_id, contents
from tests.support.collections import roles_of
from tests.support.lagging_qdrant import LaggingQdrant
from textmatch.cli.reindex import Reindexing, ReindexOptions, ReindexReport
from textmatch.collection_roles import Roles
from textmatch.documents import Document
from textmatch.errors import NotReady, Overloaded, TextMatchError
from textmatch.index.client import CollectionGone
from textmatch.index.index import Index
from textmatch.indexing import Copier
from textmatch.reindex import steps
from textmatch.reindex.sync import CollectionSync
from workers.indexer import IndexerDependencies, index_documents

SEED = int(os.environ.get("TEXTMATCH_TEST_SEED", "1"))
WORKERS = 3
IDS = 120
CHANGES = 900
TOMBSTONE_SECONDS = 600
MAX_LAG_SECONDS = 3.0


@dataclass(frozen=True)
class Delete:
    """Of everything up to a version."""

    id: str
    version: int


@pytest.fixture
async def cluster(qdrant_url: str) -> AsyncIterator[LaggingQdrant]:
    """A node for each worker and the operator, which know everything at once."""
    lagging = LaggingQdrant(urlsplit(qdrant_url).port or 0, [0.0] * (WORKERS + 1))
    await lagging.start()
    yield lagging
    await lagging.stop()


class NoProgress:
    def stage(self, name: str, total: int) -> None: ...

    def advance(self, count: int) -> None: ...


def changes(generator: random.Random) -> list[Document | Delete]:
    """In the order of their versions, a few deletes among them."""
    made: list[Document | Delete] = []
    for version in range(1, CHANGES + 1):
        document_id = f"文档{generator.randrange(IDS)}"
        if generator.random() < 0.15:
            made.append(Delete(document_id, version))
        else:
            text = f"text {generator.randrange(40)}"
            made.append(Document(document_id, text, {"n": generator.randrange(3)}, version))
    return made


def outcome(made: Sequence[Document | Delete]) -> dict[str, Document]:
    """What must be stored once all is done."""
    stored: dict[str, Document] = {}
    for one in made:
        if isinstance(one, Document):
            stored[one.id] = one
        else:
            stored.pop(one.id, None)
    return stored


def differences(
    found: dict[str, Document], expected: dict[str, Document]
) -> dict[str, tuple[Document | None, Document | None]]:
    """What is stored and what should be, by id."""
    ids = found.keys() | expected.keys()
    return {one: (found.get(one), expected.get(one)) for one in ids if found.get(one) != expected.get(one)}


async def until_it_works(change: Callable[[], Awaitable[object]]) -> None:
    """Try again what may pass, as workers and clients do."""
    for _ in range(40):
        try:
            await change()
        except CollectionGone:
            await asyncio.sleep(0.3)
        else:
            return
    raise AssertionError("not settled")


async def delete(one: Delete, deps: IndexerDependencies) -> None:
    """As the matcher does it."""
    await deps.collection.tombstones.add({one.id: one.version}, TOMBSTONE_SECONDS)
    await deps.collection.index.delete({one.id: one.version})


async def send(
    made: Sequence[Document | Delete], deps: IndexerDependencies, generator: random.Random
) -> None:
    """Out of order, some of it twice, each worker tried again until it has settled its batch."""
    order = [*made, *generator.sample(made, len(made) // 5)]
    generator.shuffle(order)
    while order:
        size = generator.randint(1, 12)
        batch, order = order[:size], order[size:]
        documents = [one for one in batch if isinstance(one, Document)]
        if documents:
            await until_it_works(partial(index_documents, documents, deps))
        for one in batch:
            if isinstance(one, Delete):
                await until_it_works(partial(delete, one, deps))
        await asyncio.sleep(generator.random() * 0.02)


async def reindex(deps: IndexerDependencies, redis: Redis, model: str) -> ReindexReport:
    options = ReindexOptions(
        model=model,
        switch=True,
        queries=None,
        sample=5,
        top_k=3,
        min_overlap=0.0,
        allow_refused=False,
        max_documents_per_second=400.0,
    )
    return await Reindexing(deps.collection, deps.encoder, options, NoProgress()).run()


async def reindex_with_interruptions(
    deps: IndexerDependencies, redis: Redis, model: str, generator: random.Random
) -> None:
    """Cancelled again and again, at any point, until it is left alone."""
    for _ in range(3):
        with suppress(TimeoutError):
            async with asyncio.timeout(generator.random() * 0.5):
                await reindex(deps, redis, model)
        if (await deps.collection.index.collections.refresh_roles()).in_use == model:
            return
    await reindex(deps, redis, model)


async def operate(
    deps: IndexerDependencies, redis: Redis, models: list[str], generator: random.Random, done: asyncio.Event
) -> int:
    """Change from one model to the other, sometimes back and forth, until done; says how often."""
    for number in itertools.count(1):
        roles = await deps.collection.index.collections.refresh_roles()
        [model] = [one for one in models if one != roles.in_use]
        await reindex_with_interruptions(deps, redis, model, generator)
        if done.is_set():
            return number
        for _ in range(generator.randrange(3)):
            await asyncio.sleep(generator.random() * 0.1)
            await steps.roll_back(deps.collection.index, deps.encoder)
        await asyncio.sleep(generator.random() * 0.1)
        await steps.drop_old(deps.collection.index)
    raise AssertionError("unreachable")


async def ask(index: Index, collection: str) -> None:
    found = await index.points(collection).nearest(embedding_of("text 1", collection)[0], 3)
    assert len(found) == 3


async def ask_until(done: asyncio.Event, index: Index) -> int:
    """Ask as a matcher does, by the collection in use, once more if it has just gone; says how often."""
    for asked in itertools.count():
        if done.is_set():
            return asked
        try:
            await ask(index, await index.model_in_use())
        except CollectionGone:
            await ask(index, await index.refresh_model_in_use())
        await asyncio.sleep(0.01)
    raise AssertionError("unreachable")


@pytest.mark.parametrize(
    "seed", [SEED, *(pytest.param(SEED + more, marks=pytest.mark.slow) for more in range(1, 4))]
)
async def test_after_all_changes_both_collections_hold_exactly_what_they_must(
    open_deps: OpenDeps, index: Index, redis: Redis, old: str, new: str, seed: int
):
    await change_amid_writes(open_deps, index, redis, [old, new], seed, [""] * (WORKERS + 1))


@pytest.mark.parametrize(
    "seed", [SEED, *(pytest.param(SEED + more, marks=pytest.mark.slow) for more in range(1, 8))]
)
async def test_nothing_is_lost_while_nodes_show_collections_and_aliases_of_a_moment_ago(
    open_deps: OpenDeps, index: Index, redis: Redis, cluster: LaggingQdrant, old: str, new: str, seed: int
):
    generator = random.Random(seed)
    cluster.lags = [generator.choice([0.0, generator.random() * MAX_LAG_SECONDS]) for _ in cluster.lags]
    lags = f"seed {seed}, lags {cluster.lags}"
    async with open_deps(url=cluster.urls[-1]) as asker:
        asked = asker.collection.index
        await change_amid_writes(open_deps, asked, redis, [old, new], seed, cluster.urls, lags)


async def change_amid_writes(
    open_deps: OpenDeps,
    index: Index,
    redis: Redis,
    models: list[str],
    seed: int,
    urls: Sequence[str],
    case: str = "",
) -> None:
    """Change the model again and again, and compare what is stored.

    Args:
        urls: of Qdrant, for each worker and for the operator; "": as the index has it.
    """
    generator = random.Random(seed)
    made = changes(generator)
    cut = CHANGES // 4
    async with AsyncExitStack() as stack:
        *workers, operator = [await stack.enter_async_context(open_deps(url=url)) for url in urls]
        for part, deps in enumerate(workers):
            await send(made[:cut][part::WORKERS], deps, generator)
        done = asyncio.Event()
        asking = asyncio.create_task(ask_until(done, index))
        operating = asyncio.create_task(operate(operator, redis, models, generator, done))
        await asyncio.gather(
            *(send(made[cut:][part::WORKERS], deps, generator) for part, deps in enumerate(workers))
        )
        done.set()
        assert await operating > 1
        assert await asking > 10
    roles = await index.collections.refresh_roles()
    assert {roles.in_use, roles.previous} == set(models)
    expected = outcome(made)
    for collection in (roles.in_use, roles.previous):
        assert differences(await contents(index, collection), expected) == {}, case or f"seed {seed}"


async def built_and_switched(operator: IndexerDependencies, new: str) -> AsyncIterator[None]:
    """Change the model, with a moment between the copy and the switch."""
    migration = await steps.start(operator.collection.index, operator.encoder, new)
    copier = Copier(operator.collection.index, operator.encoder, operator.collection.tombstones, 10.0)
    sync = CollectionSync(operator.collection.index, copier, migration, NoProgress(), None)
    await sync.run_until_equal()
    yield
    await steps.switch(operator.collection.index, migration)


async def test_a_worker_whose_node_does_not_know_the_new_collection_misses_nothing(
    open_deps: OpenDeps, index: Index, cluster: LaggingQdrant, new: str
):
    first, second = Document("a", "text 1", version=1), Document("b", "text 2", version=1)
    async with open_deps(url=cluster.urls[0]) as worker, open_deps(url=cluster.urls[1]) as operator:
        await until_it_works(partial(index_documents, [first], worker))
        cluster.lags[0] = MAX_LAG_SECONDS
        await asyncio.sleep(MAX_LAG_SECONDS)
        async for _ in built_and_switched(operator, new):
            await until_it_works(partial(index_documents, [second], worker))
    assert await contents(index, new) == by_id([first, second])


async def test_a_delete_through_such_a_node_is_applied_to_the_new_collection(
    open_deps: OpenDeps, index: Index, cluster: LaggingQdrant, new: str
):
    first, second = Document("a", "text 1", version=1), Document("b", "text 2", version=1)
    async with open_deps(url=cluster.urls[0]) as deleter, open_deps(url=cluster.urls[1]) as operator:
        await until_it_works(partial(index_documents, [first, second], deleter))
        cluster.lags[0] = MAX_LAG_SECONDS
        await asyncio.sleep(MAX_LAG_SECONDS)
        async for _ in built_and_switched(operator, new):
            await until_it_works(partial(delete, Delete("b", 1), deleter))
    assert await contents(index, new) == by_id([first])


async def test_a_failing_encoder_or_index_is_waited_for(
    deps: IndexerDependencies, redis: Redis, index: Index, encoder: ScriptedEncoder, new: str
):
    documents = [Document(f"d{number}", f"text {number}", version=1) for number in range(100)]
    await index_documents(documents, deps)
    encoder.errors = [Overloaded("busy", retry_delay_seconds=0.3), NotReady("loading")]
    report = await reindex(deps, redis, new)
    assert report.switched
    assert await index.points(new).count() == 100


async def test_a_bug_ends_the_command_and_changes_nothing(
    deps: IndexerDependencies, redis: Redis, index: Index, encoder: ScriptedEncoder, old: str, new: str
):
    await index_documents([Document("a", "text", version=1)], deps)

    def fail(_: Sequence[str]) -> None:
        raise RuntimeError("a bug")

    encoder.check = fail
    with pytest.raises(TextMatchError):
        await reindex(deps, redis, new)
    assert await roles_of(index) == Roles(in_use=old, next=new)
