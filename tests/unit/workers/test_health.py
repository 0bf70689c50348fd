"""When a worker is ready and live."""

from __future__ import annotations

import time
from typing import Any, cast

import pytest
from redis.asyncio import Redis

from tests.support.collections import KEYS
from textmatch.circuit_breaker import DependencyGuard
from textmatch.errors import StoreAccessDenied, StoreFull
from textmatch.queue.depth import QueueDepth
from textmatch.queue.worker_problems import WorkerProblems
from textmatch.types import Problem
from workers import health
from workers.health import Progress, WorkerHealth
from workers.pauses import OperatorAwaited, Paused, Pauses


class Clock:
    """The monotonic clock, moved by hand."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def monotonic(self) -> float:
        return self.now


class Worker:
    """The parts of a worker that its health depends on."""

    def __init__(self, redis: Redis) -> None:
        self.progress = Progress()
        self.pauses = Pauses()
        self.guard = DependencyGuard("qdrant", cast("Any", None), lambda error: error)
        self.problems = WorkerProblems(redis, KEYS)
        self.health = WorkerHealth(
            "worker-1",
            self.progress,
            self.pauses,
            (self.guard,),
            QueueDepth(redis, KEYS),
            self.problems,
            stall_seconds=60.0,
            busy_seconds=180.0,
        )

    def pause(self, collection: str = "default") -> None:
        with pytest.raises(Paused), self.pauses.attempt(collection):
            raise OperatorAwaited(StoreFull("no space left"))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(health, "time", clock)
    return clock


@pytest.fixture
def worker(redis: Redis, clock: Clock) -> Worker:
    worker = Worker(redis)
    worker.progress.connected(is_connected=True)
    return worker


async def minutes_pass(worker: Worker, clock: Clock, seconds: float) -> None:
    await worker.health._check()
    clock.now += seconds
    worker.health._checked_at = clock.now


async def test_a_worker_that_takes_nothing_although_messages_wait_is_not_live(
    worker: Worker, clock: Clock, redis: Redis
):
    await redis.lpush(KEYS.queue, "message")
    await minutes_pass(worker, clock, 59.0)
    assert worker.health.liveness() == ""
    await minutes_pass(worker, clock, 2.0)
    assert "nothing was done for 61 s" in worker.health.liveness()
    with worker.progress.holding():
        assert worker.health.liveness() == ""


async def test_an_empty_queue_is_no_reason_to_restart(worker: Worker, clock: Clock):
    await minutes_pass(worker, clock, 10_000.0)
    assert worker.health.liveness() == ""


async def test_a_message_that_takes_long_is_no_reason_to_restart(worker: Worker, clock: Clock, redis: Redis):
    await redis.lpush(KEYS.queue, "message")
    with worker.progress.holding():
        await minutes_pass(worker, clock, 170.0)
        assert worker.health.liveness() == ""
        worker.progress.note()
        await minutes_pass(worker, clock, 170.0)
        assert worker.health.liveness() == ""
        await minutes_pass(worker, clock, 20.0)
        assert worker.health.liveness()


async def test_a_worker_that_waits_for_redis_or_an_operator_is_live_and_not_ready(
    worker: Worker, clock: Clock, redis: Redis
):
    assert worker.health.readiness() == ""
    await redis.lpush(KEYS.queue, "message")
    worker.progress.connected(is_connected=False)
    await minutes_pass(worker, clock, 1_000.0)
    assert worker.health.liveness() == ""
    assert worker.health.readiness() == "not connected to Redis"
    worker.progress.connected(is_connected=True)
    worker.pause()
    await minutes_pass(worker, clock, 1_000.0)
    assert worker.health.liveness() == ""
    assert worker.health.readiness() == "default: no space left"


async def test_an_event_loop_that_hangs_is_not_live(worker: Worker, clock: Clock):
    await worker.health._check()
    clock.now += 61.0
    assert "event loop" in worker.health.liveness()


async def test_a_store_that_fails_is_a_reason_not_to_be_ready(worker: Worker):
    worker.guard._error = StoreAccessDenied("wrong key")
    assert worker.health.readiness() == "wrong key"


async def test_paused_collections_are_shown_to_matchers_until_they_go_on(worker: Worker, redis: Redis):
    worker.pause()
    worker.pause("faq")
    with worker.pauses.attempt("other"):
        pass
    assert worker.health.readiness() == ""
    await worker.health._check()
    expected = [Problem("worker", name, "STORE_FULL", "no space left") for name in ("default", "faq")]
    assert await worker.problems.all() == expected
    worker.pauses._pauses.clear()
    await worker.health._check()
    assert await worker.problems.all() == []
    assert await redis.exists(KEYS.troubled_workers) == 0


async def test_a_worker_that_is_gone_has_no_problems(worker: Worker, redis: Redis):
    worker.pause()
    await worker.health._check()
    assert 0 < await redis.ttl(KEYS.worker_problems("worker-1")) <= 20
    await redis.delete(KEYS.worker_problems("worker-1"))
    assert await worker.problems.all() == []
    assert await redis.exists(KEYS.troubled_workers) == 0
