"""Ingest over Redis Sentinel and over TLS."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from celery import Celery

from tests.integration.ingest.indexing import make_ingest_state
from tests.integration.ingest.scripted_encoder import ScriptedEncoder
from tests.integration.ingest.waiting import eventually
from tests.integration.ingest.worker_process import WorkerProcess
from tests.support.collections import CONFIG, KEYS, register
from tests.support.sentinel import MASTER_NAME, PASSWORD, Certificates, Node, SentinelCluster, knows_tls
from textmatch.documents import Document
from textmatch.errors import DependencyUnavailable
from textmatch.index.index import Index
from textmatch.queue.messages import TASK_NAME
from textmatch.queue.producer import Producer
from textmatch.queue.redis_client import connect

StartWorker = Callable[..., WorkerProcess]

needs_tls = pytest.mark.skipif(
    not knows_tls() or not shutil.which("openssl"), reason="this Redis server was built without TLS"
)


def documents(first: int, count: int) -> list[Document]:
    return [Document(f"d{number}", f"text {number}", version=1) for number in range(first, first + count)]


async def enqueue_in_the_end(producer: Producer, batch: list[Document]) -> None:
    """As a caller does who is told to come back."""

    async def is_taken() -> bool:
        try:
            await producer.enqueue(CONFIG, batch)
        except DependencyUnavailable:
            return False
        return True

    await eventually(is_taken, "the new master", seconds=60)


@pytest.fixture
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SentinelCluster]:
    certificates = Certificates(tmp_path) if request.param else None
    started = SentinelCluster(tmp_path, certificates)
    yield started
    started.stop()


@pytest.mark.slow
@pytest.mark.parametrize(
    "cluster", [pytest.param(False, id="plain"), pytest.param(True, id="tls", marks=needs_tls)], indirect=True
)
async def test_ingest_goes_on_after_a_failover(
    cluster: SentinelCluster, index: Index, encoder: ScriptedEncoder, start_worker: StartWorker
):
    redis = connect(cluster.url)
    await register(redis)
    state = make_ingest_state(redis, index)
    worker = start_worker(TEXTMATCH_REDIS_URL=cluster.url)
    await state.producer.enqueue(CONFIG, documents(0, 100))

    async def settled() -> bool:
        try:
            return (await state.pending.summary()).count == 0
        except DependencyUnavailable:
            return False

    await eventually(settled, "the first documents", seconds=60)
    encoder.may_answer.clear()
    await state.producer.enqueue(CONFIG, documents(100, 100))
    # The replica has them: a failover loses only what it had not been told.
    await redis.wait(1, 5_000)
    cluster.master.kill()
    encoder.may_answer.set()
    await enqueue_in_the_end(state.producer, documents(200, 100))
    await eventually(settled, "all documents", seconds=60)
    assert len(await index.fetch([one.id for one in documents(0, 300)])) == 300
    assert await asyncio.to_thread(worker.stop) == 0
    await redis.aclose()


@pytest.mark.slow
@pytest.mark.parametrize("cluster", [pytest.param(False, id="plain")], indirect=True)
async def test_another_celery_application_sends_by_the_sentinels(
    cluster: SentinelCluster, index: Index, encoder: ScriptedEncoder, start_worker: StartWorker
):
    redis = connect(cluster.url)
    await register(redis)
    start_worker(TEXTMATCH_REDIS_URL=cluster.url)
    hosts = [f"sentinel://:{PASSWORD}@127.0.0.1:{one.port}/0" for one in cluster.sentinels]
    theirs = Celery("theirs", broker=";".join(hosts), set_as_current=False)
    theirs.conf.broker_transport_options = {
        "master_name": MASTER_NAME,
        "sentinel_kwargs": {"password": PASSWORD},
    }
    sent = [{"id": "a", "text": "text", "version": 1}]
    message = {"schema_version": 2, "accepted_at": time.time(), "documents": sent}
    options = {"args": [json.dumps(message)], "queue": KEYS.queue, "priority": 5}
    await asyncio.to_thread(lambda: theirs.send_task(TASK_NAME, **options))

    async def is_stored() -> bool:
        return "a" in await index.fetch(["a"])

    await eventually(is_stored, "the document", seconds=60)
    theirs.close()
    await redis.aclose()


@needs_tls
async def test_ingest_over_tls(tmp_path: Path, index: Index, start_worker: StartWorker):
    certificates = Certificates(tmp_path)
    server = Node(tmp_path / "server", "requirepass secret", certificates=certificates)
    url = f"rediss://:secret@127.0.0.1:{server.port}/0"
    untrusting = connect(url)
    with pytest.raises(DependencyUnavailable, match="certificate"):
        await Producer(untrusting, KEYS).enqueue(CONFIG, documents(0, 1))
    await untrusting.aclose()
    trusting = f"{url}?ssl_ca_certs={certificates.authority}"
    redis = connect(trusting)
    await register(redis)
    state = make_ingest_state(redis, index)
    start_worker(TEXTMATCH_REDIS_URL=trusting)
    await state.producer.enqueue(CONFIG, documents(0, 100))

    async def settled() -> bool:
        return (await state.pending.summary()).count == 0

    await eventually(settled, "all documents", seconds=60)
    assert len(await index.fetch([one.id for one in documents(0, 100)])) == 100
    await redis.aclose()
    server.kill()
