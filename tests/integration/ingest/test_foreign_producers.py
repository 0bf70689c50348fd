"""A Celery application of somebody else sends documents, with the options that its author is used to."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from redis.asyncio import Redis

from tests.integration.ingest.indexing import IngestState
from tests.integration.ingest.waiting import eventually
from tests.integration.ingest.worker_process import WorkerProcess
from tests.support.collections import CONFIG, KEYS
from tests.support.queue import take_queued
from tests.support.redis import RedisServer
from textmatch.documents import Document
from textmatch.index.index import Index
from textmatch.queue.messages import TASK_NAME
from textmatch.queue.transport import GATHER

StartWorker = Callable[..., WorkerProcess]

OPTIONS: dict[str, dict[str, Any]] = {
    **{f"priority-{one}": {"priority": one} for one in (0, 1, 3, 6, 9)},
    "countdown": {"countdown": 1_000},
    "expired": {"expires": 0.001},
    "gzip": {"compression": "gzip"},
    "bzip2": {"compression": "bzip2"},
    "lzma": {"compression": "lzma"},
    "ignored": {"ignore_result": True, "time_limit": 1, "headers": {"theirs": 1}, "reply_to": "x"},
}


def message(document_id: str) -> str:
    documents = [{"id": document_id, "text": f"text of {document_id}", "version": 3}]
    return json.dumps({"schema_version": 2, "accepted_at": time.time(), "documents": documents})


@pytest.fixture
def app(redis_server: RedisServer) -> Celery:
    """It knows nothing of textmatch but the names of the task and the queue."""
    return Celery("theirs", broker=redis_server.url, set_as_current=False)


async def test_documents_arrive_with_any_option_of_celery(
    app: Celery, state: IngestState, redis: Redis, index: Index, start_worker: StartWorker
):
    """Those with a priority lay in lists that nobody read; compressed ones became dead letters."""
    worker = start_worker()
    worker.wait_until_ready()
    for name, options in OPTIONS.items():
        app.send_task(TASK_NAME, args=[message(name)], queue=KEYS.queue, **options)
    app.conf.broker_transport_options = {
        "priority_steps": list(range(10)),
        "queue_order_strategy": "priority",
    }
    with app.connection_for_write() as connection:
        for priority in (2, 7):
            producer = app.amqp.Producer(connection)
            app.send_task(
                TASK_NAME,
                args=[message(f"step-{priority}")],
                queue=KEYS.queue,
                priority=priority,
                producer=producer,
            )
    expected = {*OPTIONS, "step-2", "step-7"}

    async def are_stored() -> bool:
        return len(await index.fetch(list(expected))) == len(expected)

    await eventually(are_stored, "all documents", seconds=60)
    assert await state.unreadable.count() == 0

    async def nothing_is_left() -> bool:
        lists = [KEYS.queue, KEYS.taken, *KEYS.priority_queues]
        return not any([await redis.llen(one) for one in lists]) and await redis.hlen(KEYS.unacked) == 0

    await eventually(nothing_is_left, "the acknowledgements", seconds=60)
    assert worker.stop() == 0
    app.close()


async def test_a_priority_is_not_more_urgent_than_what_waits(
    app: Celery, state: IngestState, redis: Redis, redis_server: RedisServer
):
    """It goes behind the queue once, so that it can neither starve others nor be starved."""
    app.send_task(TASK_NAME, args=[message("theirs")], queue=KEYS.queue, priority=9)
    await state.producer.enqueue(CONFIG, [Document("ours", "text", version=1)])
    with redis_server.client() as client:
        GATHER(client, KEYS)
    await state.producer.enqueue(CONFIG, [Document("later", "text", version=1)])
    assert [one.id for one in await take_queued(redis)] == ["ours", "theirs", "later"]
    app.close()


async def test_an_unversioned_delete_covers_what_they_sent_before(
    app: Celery, state: IngestState, handler: Any, redis: Redis, start_worker: StartWorker, index: Index
):
    """Such messages leave no mark: the time of the delete covers them, of any version."""
    from textmatch.v1 import matcher_service_pb2 as pb

    app.send_task(TASK_NAME, args=[message("a")], queue=KEYS.queue)
    await handler.delete(pb.DeleteDocumentsRequest(ids=["a"]))
    app.send_task(TASK_NAME, args=[message("b")], queue=KEYS.queue)
    start_worker()

    async def is_done() -> bool:
        return "b" in await index.fetch(["b"]) and await redis.hlen(KEYS.unacked) == 0

    await eventually(is_done, "the queue to be worked off", seconds=60)
    assert await index.fetch(["a"]) == {}
    app.close()
