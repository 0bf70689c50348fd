"""A Redis that answers and refuses: workers wait for it and go on, without a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import redis as blocking_redis
from redis.asyncio import Redis

from tests.integration.ingest.indexing import IngestState, make_ingest_state
from tests.integration.ingest.scripted_encoder import ScriptedEncoder
from tests.integration.ingest.waiting import eventually
from tests.integration.ingest.worker_process import WorkerProcess
from tests.support.collections import CONFIG
from tests.support.redis import RedisServer, free_port
from textmatch.documents import Document
from textmatch.errors import DependencyUnavailable, StoreAccessDenied
from textmatch.index.index import Index
from textmatch.queue.redis_client import connect

StartWorker = Callable[..., WorkerProcess]
Client = blocking_redis.Redis


def no_replicas(client: Client) -> None:
    client.config_set("min-replicas-to-write", 1)


def enough_replicas(client: Client) -> None:
    client.config_set("min-replicas-to-write", 0)


def become_a_replica(client: Client) -> None:
    client.replicaof("127.0.0.1", free_port())


def become_the_master(client: Client) -> None:
    client.replicaof("NO", "ONE")


def become_a_silent_replica(client: Client) -> None:
    client.config_set("replica-serve-stale-data", "no")
    become_a_replica(client)


def become_the_master_again(client: Client) -> None:
    become_the_master(client)
    client.config_set("replica-serve-stale-data", "yes")


REFUSALS = {
    "NOREPLICAS": (no_replicas, enough_replicas),
    "READONLY": (become_a_replica, become_the_master),
    "MASTERDOWN": (become_a_silent_replica, become_the_master_again),
}


def documents(count: int, first: int = 0) -> list[Document]:
    return [Document(f"d{number}", f"text {number}", version=1) for number in range(first, first + count)]


async def is_settled(state: IngestState) -> bool:
    return (await state.pending.summary()).count == 0


@pytest.mark.parametrize(("refuse", "agree"), REFUSALS.values(), ids=REFUSALS)
async def test_a_worker_waits_for_a_redis_that_refuses_and_goes_on(
    refuse: Callable[[Client], None],
    agree: Callable[[Client], None],
    own_redis_server: RedisServer,
    own_state: IngestState,
    encoder: ScriptedEncoder,
    index: Index,
    start_worker: StartWorker,
):
    worker = start_worker(TEXTMATCH_REDIS_URL=own_redis_server.url)
    await asyncio.to_thread(worker.wait_until_ready)
    encoder.may_answer.clear()
    for one in documents(20):
        await own_state.producer.enqueue(CONFIG, [one])

    async def is_at_work() -> bool:
        return bool(encoder.calls)

    await eventually(is_at_work, "the first batch")
    with own_redis_server.client() as client:
        refuse(client)
        # The first batch is written, cannot be acknowledged, and new messages cannot be taken.
        encoder.may_answer.set()
        await asyncio.sleep(5.0)
        late = start_worker(TEXTMATCH_REDIS_URL=own_redis_server.url)
        await asyncio.sleep(3.0)
        assert worker.exit_code is None, worker.log
        assert late.exit_code is None, late.log
        agree(client)

    async def is_accepted() -> bool:
        try:
            await own_state.producer.enqueue(CONFIG, documents(10, first=20))
        except DependencyUnavailable:
            return False
        return True

    await eventually(is_accepted, "acceptance")
    await eventually(lambda: is_settled(own_state), "all to be settled", seconds=60)
    assert len(await index.fetch([one.id for one in documents(30)])) == 30
    assert await own_state.dead_letters.count() == 0
    for one in (worker, late):
        # A worker that is still starting ends by the signal itself.
        await asyncio.to_thread(one.wait_until_ready)
        assert "Unrecoverable" not in one.log
        assert one.stop() == 0, one.log


async def test_a_password_that_redis_refuses_is_an_operators_matter(own_redis_server: RedisServer):
    with own_redis_server.client() as client:
        client.config_set("requirepass", "geheim")
        for url, problem in (
            (own_redis_server.url, "Authentication required"),
            (own_redis_server.url.replace("redis://", "redis://:wrong@"), "invalid username-password pair"),
        ):
            refused = connect(url)
            state = make_ingest_state(refused, None)
            with pytest.raises(StoreAccessDenied, match=problem) as caught:
                await state.producer.enqueue(CONFIG, documents(1))
            assert "TEXTMATCH_REDIS_URL" in str(caught.value)
            assert caught.value.retry_delay_seconds

            async def is_remembered(refused: Redis = refused) -> bool:
                return isinstance(refused.guard.error, StoreAccessDenied)

            await eventually(is_remembered, "the guard")
            await refused.aclose()
