"""Accepted on replicas too: what is accepted survives the loss of the master; the rest is refused."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.support.collections import CONFIG, KEYS, STATE, register
from tests.support.queue import take_queued
from tests.support.sentinel import Node
from textmatch.documents import Document
from textmatch.errors import DependencyUnavailable
from textmatch.filters import FieldMatch, Filter
from textmatch.queue import redis_client
from textmatch.queue.clock import Request
from textmatch.queue.producer import Producer, Submission
from textmatch.queue.redis_client import connect
from textmatch.queue.tombstones import Tombstone, Tombstones

DURABLE = ["appendonly yes", "appendfsync always", 'save ""', "requirepass secret", "masterauth secret"]


@dataclass
class Pair:
    """A master and its replica."""

    master: Node
    replica: Node

    def replica_is_durable(self) -> bool:
        """Whether its file has what it got when it connected, and all that comes after it."""
        with self.replica.client() as client:
            found = client.info("persistence")
        return not found["aof_rewrite_in_progress"] and not found["aof_rewrite_scheduled"]

    def fail_over(self) -> None:
        """The master is lost, and the replica takes its place with what it has.

        It starts again, because a replica that was paused still reads what came in by its socket.
        """
        self.master.kill()
        self.replica.restart()
        with self.replica.client() as client:
            client.replicaof("NO", "ONE")


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    master = Node(tmp_path / "master", *DURABLE)
    replica = Node(tmp_path / "replica", *DURABLE, f"replicaof 127.0.0.1 {master.port}")
    started = Pair(master, replica)
    yield started
    for node in (master, replica):
        node.resume()
        node.kill()


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_client, "_CONFIRM_SECONDS", 0.5)


@pytest.fixture(name="master")
async def connected_master(pair: Pair) -> AsyncIterator[Redis]:
    client = connect(f"redis://:secret@127.0.0.1:{pair.master.port}/0")
    await register(client)
    async with asyncio.timeout(20):
        while await client.wait(1, 1_000) < 1:  # noqa: ASYNC110 -- the replica is connecting
            await asyncio.sleep(0.1)
        while not pair.replica_is_durable():  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    yield client
    await client.aclose()


def replica_of(pair: Pair) -> Redis:
    return connect(f"redis://:secret@127.0.0.1:{pair.replica.port}/0")


def document(number: int) -> Document:
    return Document(f"d{number}", f"text {number}")


async def test_what_was_accepted_is_there_and_what_was_not_confirmed_was_refused(pair: Pair, master: Redis):
    producer, generator = Producer(master, KEYS, replicas=1), random.Random(1)
    accepted: set[str] = set()
    refusals: list[str] = []

    async def send(number: int) -> None:
        await asyncio.sleep(generator.uniform(0, 1))
        try:
            await producer.enqueue(CONFIG, [document(number)])
            accepted.add(f"d{number}")
        except DependencyUnavailable as error:
            refusals.append(str(error))

    sending = [asyncio.create_task(send(number)) for number in range(60)]
    await asyncio.sleep(0.5)
    pair.replica.pause()
    await asyncio.gather(*sending)
    assert accepted
    assert refusals
    assert all("only 0 of 1 replicas" in one for one in refusals)
    # The master has taken all of it.
    assert await master.llen(KEYS.queue) == 60
    pair.fail_over()
    promoted = replica_of(pair)
    assert accepted <= {one.id for one in await take_queued(promoted)}
    await promoted.aclose()


async def test_without_the_setting_an_accepted_document_can_be_lost(pair: Pair, master: Redis):
    """What docs/guarantees.md says of asynchronous replication."""
    pair.replica.pause()
    await Producer(master, KEYS).enqueue(CONFIG, [document(1)])
    pair.fail_over()
    promoted = replica_of(pair)
    assert await take_queued(promoted) == []
    await promoted.aclose()


async def test_a_try_after_the_first_is_confirmed_too(pair: Pair, master: Redis):
    producer = Producer(master, KEYS, replicas=1)
    submission = Submission({}, Request(str(uuid.uuid4()), 60))
    pair.replica.pause()
    for _ in range(2):
        with pytest.raises(DependencyUnavailable, match="only 0 of 1"):
            await producer.enqueue(CONFIG, [document(1)], submission)
    pair.replica.resume()
    versions = await producer.enqueue(CONFIG, [document(1)], submission)
    pair.fail_over()
    promoted = replica_of(pair)
    assert {one.version for one in await take_queued(promoted)} == set(versions)
    # The record of the request is there too.
    assert await Producer(promoted, KEYS).enqueue(CONFIG, [document(1)], submission) == versions
    await promoted.aclose()


async def test_deletes_are_confirmed_too(pair: Pair, master: Redis):
    tombstones = Tombstones(master, STATE, replicas=1)
    red = Filter(must=(FieldMatch("colour", ("red",)),))
    at = await tombstones.delete(["a"], None, ttl_seconds=60)
    await tombstones.add({"a": 5}, 60)
    filtered_at = await tombstones.filters.delete(red, None, ttl_seconds=60)
    pair.replica.pause()
    with pytest.raises(DependencyUnavailable, match="only 0 of 1"):
        await tombstones.delete(["b"], None, ttl_seconds=60)
    with pytest.raises(DependencyUnavailable, match="only 0 of 1"):
        await tombstones.add({"b": 5}, 60)
    with pytest.raises(DependencyUnavailable, match="only 0 of 1"):
        await tombstones.filters.delete(Filter(must=(FieldMatch("n", (1,)),)), None, ttl_seconds=60)
    pair.fail_over()
    promoted = replica_of(pair)
    survived = Tombstones(promoted, STATE)
    assert await survived.get(["a"]) == {"a": Tombstone(5, at)}
    [[kept], *_] = [page async for page in survived.filters.after(0)]
    assert (kept.condition, kept.accepted_us) == (red, filtered_at)
    await promoted.aclose()
