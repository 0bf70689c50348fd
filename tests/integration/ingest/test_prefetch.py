"""How much a worker takes at a time, and what it makes of small messages."""

from __future__ import annotations

from collections.abc import Callable

from redis.asyncio import Redis

from tests.integration.ingest.indexing import IngestState
from tests.integration.ingest.scripted_encoder import ScriptedEncoder
from tests.integration.ingest.waiting import eventually
from tests.integration.ingest.worker_process import WorkerProcess
from tests.support.collections import CONFIG, KEYS
from textmatch.documents import Document
from textmatch.index.index import Index

StartWorker = Callable[..., WorkerProcess]


async def settled(state: IngestState) -> bool:
    return (await state.pending.summary()).count == 0


async def test_a_worker_holds_one_large_message_for_each_batch(
    state: IngestState, redis: Redis, encoder: ScriptedEncoder, start_worker: StartWorker
):
    encoder.may_answer.clear()
    for number in range(10):
        await state.producer.enqueue(CONFIG, [Document(f"d{number}", "words " * 5_000, version=1)] * 8)
    worker = start_worker(TEXTMATCH_WORKER_CONCURRENCY="3")

    async def holds_some() -> bool:
        return len(encoder.calls) == 3

    await eventually(holds_some, "the calls", seconds=40)
    assert await redis.hlen(KEYS.unacked) == 3
    assert await redis.llen(KEYS.queue) == 7
    encoder.may_answer.set()
    await eventually(lambda: settled(state), "all to be settled", seconds=40)
    assert worker.stop() == 0


async def test_small_messages_are_worked_off_in_few_batches_and_each_is_acknowledged(
    state: IngestState, redis: Redis, index: Index, encoder: ScriptedEncoder, start_worker: StartWorker
):
    for number in range(300):
        await state.producer.enqueue(CONFIG, [Document(f"d{number}", f"text {number}", {"n": number}, 1)])
    assert await redis.llen(KEYS.queue) == 300
    worker = start_worker()
    await eventually(lambda: settled(state), "all to be settled", seconds=40)
    assert len(encoder.calls) <= 30
    assert max(len(call) for call in encoder.calls) <= 64
    assert len(await index.fetch([f"d{number}" for number in range(300)])) == 300
    assert worker.stop() == 0
    assert await redis.hlen(KEYS.unacked) == await redis.llen(KEYS.taken) == await redis.llen(KEYS.queue) == 0


async def test_a_killed_workers_small_messages_all_come_back(
    state: IngestState, redis: Redis, index: Index, encoder: ScriptedEncoder, start_worker: StartWorker
):
    encoder.may_answer.clear()
    for number in range(100):
        await state.producer.enqueue(CONFIG, [Document(f"d{number}", f"text {number}", version=1)])
    killed = start_worker()

    async def holds_many() -> bool:
        return await redis.hlen(KEYS.unacked) > 50

    await eventually(holds_many, "the messages to be taken", seconds=40)
    killed.kill()
    encoder.may_answer.set()
    start_worker()
    await eventually(lambda: settled(state), "all to be settled", seconds=40)
    assert len(await index.fetch([f"d{number}" for number in range(100)])) == 100
