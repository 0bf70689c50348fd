"""Workers as processes: from acceptance to the index, and what survives when something dies on the way."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence

import pytest
from redis.asyncio import Redis

from tests.integration.ingest.indexing import IngestState
from tests.integration.ingest.scripted_encoder import REFUSED_TEXT, ScriptedEncoder
from tests.integration.ingest.waiting import eventually
from tests.integration.ingest.worker_process import WorkerProcess
from tests.support.collections import CONFIG, KEYS, STATE, register
from tests.support.redis import RedisServer
from textmatch.documents import Document
from textmatch.errors import DependencyUnavailable, Overloaded
from textmatch.index.index import Index
from textmatch.queue.app import make_app
from textmatch.queue.messages import TASK_NAME
from textmatch.queue.pending import Pending
from textmatch.queue.producer import Producer
from textmatch.queue.redis_client import connect

StartWorker = Callable[..., WorkerProcess]


def documents(count: int, version: int = 1) -> list[Document]:
    return [Document(f"文档🙂{number}", f"text {number}", {"n": number}, version) for number in range(count)]


async def settled(state: IngestState) -> bool:
    return (await state.pending.summary()).count == 0


async def all_settled(state: IngestState, seconds: float = 20.0) -> None:
    await eventually(lambda: settled(state), "all documents to be settled", seconds)


async def called(encoder: ScriptedEncoder, times: int) -> None:
    async def condition() -> bool:
        return len(encoder.calls) >= times

    await eventually(condition, f"{times} calls of the encoder")


async def nothing_is_left(redis: Redis) -> bool:
    counts = [
        await redis.llen(KEYS.queue),
        await redis.llen(KEYS.taken),
        await redis.hlen(KEYS.unacked),
        await redis.zcard(KEYS.unacked_index),
    ]
    return not any(counts)


async def stored_ids(index: Index, expected: Sequence[Document]) -> set[str]:
    return set(await index.fetch([document.id for document in expected]))


async def test_accepted_documents_become_searchable_and_are_counted(
    state: IngestState, redis: Redis, index: Index, start_worker: StartWorker
):
    worker = start_worker()
    worker.wait_until_ready()
    sent = [*documents(600), Document("bad", REFUSED_TEXT, version=1)]
    await state.producer.enqueue(CONFIG, sent)
    await all_settled(state)
    assert await stored_ids(index, sent) == {document.id for document in sent} - {"bad"}
    await eventually(lambda: nothing_is_left(redis), "the acknowledgements")
    assert worker.metric('textmatch_documents_total{result="indexed"}') == 600
    assert worker.metric('textmatch_documents_total{result="failed"}') == 1
    assert worker.metric("textmatch_ingest_accept_to_searchable_seconds_count") == 600
    assert worker.metric("textmatch_worker_task_seconds_count") == 3
    assert worker.stop() == 0


async def test_a_killed_workers_messages_are_taken_by_another(
    state: IngestState, redis: Redis, index: Index, encoder: ScriptedEncoder, start_worker: StartWorker
):
    encoder.may_answer.clear()
    first = start_worker()
    sent = documents(300)
    await state.producer.enqueue(CONFIG, sent)
    await called(encoder, 2)
    first.kill()
    encoder.may_answer.set()
    second = start_worker()
    await asyncio.to_thread(second.wait_until_ready)
    ready_at = time.monotonic()
    await all_settled(state, seconds=40)
    # The visibility timeout and a sweep, and the time to work on a busy machine.
    assert time.monotonic() - ready_at < 2.0 + 0.5 + 5.0
    assert await stored_ids(index, sent) == {document.id for document in sent}
    await eventually(lambda: nothing_is_left(redis), "the acknowledgements")
    assert await index.count() == 300


async def test_a_message_that_takes_longer_than_the_visibility_timeout_is_run_once(
    state: IngestState, encoder: ScriptedEncoder, start_worker: StartWorker
):
    encoder.may_answer.clear()
    start_worker(TEXTMATCH_WORKER_VISIBILITY_TIMEOUT_SECONDS="1")
    await state.producer.enqueue(CONFIG, documents(1))
    await called(encoder, 1)
    # A worker also sweeps messages of its own.
    await asyncio.sleep(2.5)
    encoder.may_answer.set()
    await all_settled(state)
    assert len(encoder.calls) == 1


async def test_a_message_lost_between_the_queue_and_its_record_comes_back(
    state: IngestState, redis: Redis, index: Index, start_worker: StartWorker
):
    sent = documents(1)
    await state.producer.enqueue(CONFIG, sent)
    await redis.lmove(KEYS.queue, KEYS.taken, "RIGHT", "LEFT")
    start_worker()
    await all_settled(state)
    assert await stored_ids(index, sent) == {sent[0].id}
    await eventually(lambda: nothing_is_left(redis), "the acknowledgement")


async def test_a_stopping_worker_finishes_what_runs(
    state: IngestState, redis: Redis, index: Index, encoder: ScriptedEncoder, start_worker: StartWorker
):
    encoder.may_answer.clear()
    worker = start_worker()
    sent = documents(1)
    await state.producer.enqueue(CONFIG, sent)
    await called(encoder, 1)
    stopping = asyncio.create_task(asyncio.to_thread(worker.stop))
    await asyncio.sleep(0.5)
    encoder.may_answer.set()
    assert await stopping == 0
    assert await stored_ids(index, sent) == {sent[0].id}
    assert await nothing_is_left(redis)


async def test_a_stopping_worker_puts_back_what_it_cannot_do(
    state: IngestState, redis: Redis, encoder: ScriptedEncoder, start_worker: StartWorker
):
    encoder.errors = [Overloaded("busy", retry_delay_seconds=60.0)]
    worker = start_worker()
    await state.producer.enqueue(CONFIG, documents(1))
    await called(encoder, 1)
    started_at = time.monotonic()
    assert worker.stop() == 0
    assert time.monotonic() - started_at < 10.0
    assert await redis.llen(KEYS.queue) == 1
    assert await redis.hlen(KEYS.unacked) == 0
    start_worker()
    await all_settled(state)


async def test_a_stopping_worker_puts_back_what_takes_too_long(
    state: IngestState, redis: Redis, encoder: ScriptedEncoder, start_worker: StartWorker
):
    encoder.may_answer.clear()
    worker = start_worker(TEXTMATCH_DRAIN_SECONDS="0.5")
    await state.producer.enqueue(CONFIG, documents(1))
    await called(encoder, 1)
    assert worker.stop() == 0
    assert await redis.llen(KEYS.queue) == 1


async def test_what_nobody_can_read_goes_to_the_dead_letters(
    redis_server: RedisServer, state: IngestState, redis: Redis, start_worker: StartWorker
):
    app = make_app(redis_server.url, KEYS)
    not_utf8, not_json = b"\xff\x00", b"{broken"
    with redis_server.client() as client:
        client.lpush(KEYS.queue, not_utf8, not_json, b"5", b"{}", json.dumps({"body": 5}))
    app.send_task("no.such.task", args=[1], queue=KEYS.queue)
    app.send_task(TASK_NAME, args=["{not our schema}"])
    app.send_task(TASK_NAME, kwargs={"documents": []})
    worker = start_worker()
    await state.producer.enqueue(CONFIG, documents(1))
    await all_settled(state)
    letters = await state.unreadable.entries(100)
    assert await state.dead_letters.count() == 0
    assert len(letters) == 8
    assert all(letter.reason == "MALFORMED" and letter.raw and letter.error for letter in letters)
    assert {"{broken", "5", "{}", "{not our schema}"} <= {letter.raw for letter in letters}
    await eventually(lambda: nothing_is_left(redis), "the acknowledgements")
    assert worker.stop() == 0
    app.close()


async def test_a_celery_client_can_send_documents_and_bad_ones_stay_behind(
    redis_server: RedisServer, state: IngestState, index: Index, start_worker: StartWorker
):
    good = {"id": "好", "text": "t", "attributes": {"__type__": "uuid", "__value__": "x"}, "version": 3}
    bad = [{"id": "bad", "text": "", "version": 3}, {"id": 5}]
    message = {"schema_version": 2, "accepted_at": time.time(), "documents": [*bad, good]}
    with make_app(redis_server.url, KEYS) as app:
        app.send_task(TASK_NAME, args=[json.dumps(message)])
    start_worker()

    async def is_stored() -> bool:
        return "好" in await index.fetch(["好"])

    await eventually(is_stored, "the good document")
    assert (await index.fetch(["好"]))["好"].document.attributes == good["attributes"]
    letters = {letter.key: letter for letter in await state.dead_letters.entries(10)}
    assert "text: is empty" in letters.pop("bad").error
    [malformed] = letters.values()
    assert "lacks ['text', 'version']" in malformed.error


async def test_nothing_acknowledged_is_lost_when_redis_is_killed(
    own_redis_server: RedisServer, index: Index, encoder: ScriptedEncoder, start_worker: StartWorker
):
    redis = connect(own_redis_server.url)
    await register(redis)
    pending = Pending(redis, STATE)
    producer = Producer(redis, KEYS)
    worker = start_worker(TEXTMATCH_REDIS_URL=own_redis_server.url)
    worker.wait_until_ready()
    encoder.may_answer.clear()
    sent = documents(400)
    await producer.enqueue(CONFIG, sent[:300])
    await called(encoder, 2)
    own_redis_server.kill()
    encoder.may_answer.set()
    with pytest.raises(DependencyUnavailable):
        await producer.enqueue(CONFIG, sent[300:])
    own_redis_server.start()
    await producer.enqueue(CONFIG, sent[300:])

    async def is_settled() -> bool:
        return (await pending.summary()).count == 0

    await eventually(is_settled, "all documents to be settled", seconds=30)
    assert await stored_ids(index, sent) == {document.id for document in sent}
    await eventually(lambda: nothing_is_left(redis), "the acknowledgements")
    assert worker.stop() == 0
    await redis.aclose()
