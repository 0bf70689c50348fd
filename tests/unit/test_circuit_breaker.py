"""Breakers, and guards of stores."""

from __future__ import annotations

import asyncio
import time

import pytest
from prometheus_client import REGISTRY

from tests.integration.ingest.waiting import eventually
from textmatch import circuit_breaker
from textmatch.circuit_breaker import CircuitBreaker, DependencyGuard
from textmatch.errors import DependencyUnavailable, StoreAccessDenied

GONE = DependencyUnavailable("gone", retry_delay_seconds=1.0)


def test_while_open_one_caller_at_a_time_is_the_probe():
    breaker = CircuitBreaker(0.0, 0.0)
    assert breaker.admit()
    assert breaker.admit()
    breaker.failed(GONE)
    assert [breaker.admit() for _ in range(3)] == [True, False, False]
    breaker.failed(GONE)
    assert [breaker.admit() for _ in range(3)] == [True, False, False]
    breaker.release()
    assert breaker.admit()
    breaker.succeeded()
    assert breaker.error is None
    assert breaker.admit()
    assert breaker.admit()


def test_the_delay_between_probes_grows_to_a_limit():
    breaker = CircuitBreaker(1.0, 4.0)
    delays = []
    for _ in range(5):
        breaker.failed(GONE)
        delays.append(breaker.probe_at - time.monotonic())
        breaker._probe_at = 0.0
        assert breaker.admit()
    for delay, longest in zip(delays, (1.0, 2.0, 4.0, 4.0, 4.0), strict=True):
        assert 0.7 * longest < delay <= longest


class Store:
    """Works, fails or hangs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, seconds in (("_SUSPICIOUS_SECONDS", 0.05), ("_PROBE_SECONDS", 0.1)):
            monkeypatch.setattr(circuit_breaker, name, seconds)
        for name in ("_FIRST_PROBE_DELAY_SECONDS", "_LAST_PROBE_DELAY_SECONDS"):
            monkeypatch.setattr(circuit_breaker, name, 0.05)
        self.error: Exception | None = None
        self.hangs = False
        self.probes = 0
        self.guard = DependencyGuard("store", self._probe, lambda error: error)

    async def _probe(self) -> None:
        self.probes += 1
        await self.call()

    async def call(self) -> None:
        async with self.guard.call():
            if self.hangs:
                await asyncio.sleep(60)
            if self.error:
                raise self.error

    async def until_refused(self) -> None:
        async def is_open() -> bool:
            return self.guard.error is not None

        await eventually(is_open, "the breaker")

    async def until_works(self) -> None:
        async def is_closed() -> bool:
            return self.guard.error is None

        await eventually(is_closed, "the breaker")


@pytest.fixture
async def store(monkeypatch: pytest.MonkeyPatch):
    store = Store(monkeypatch)
    yield store
    await store.guard.close()


async def test_a_store_that_hangs_is_remembered_and_noticed_when_it_is_back(store: Store):
    await store.call()
    store.hangs = True
    waiting = asyncio.create_task(store.call())
    await store.until_refused()
    started = time.monotonic()
    with pytest.raises(DependencyUnavailable, match="Store does not answer") as caught:
        await store.call()
    assert time.monotonic() - started < 0.05
    assert caught.value.retry_delay_seconds
    assert not waiting.done()
    waiting.cancel()
    store.hangs = False
    await store.until_works()
    await store.call()


async def test_a_refusal_is_remembered_with_its_reason_and_shown(store: Store):
    store.error = StoreAccessDenied("wrong key", retry_delay_seconds=5.0)
    with pytest.raises(StoreAccessDenied):
        await store.call()
    await store.until_refused()
    labels = {"dependency": "store", "reason": "STORE_ACCESS_DENIED"}
    assert REGISTRY.get_sample_value("textmatch_dependency_failing", labels) == 1.0
    with pytest.raises(StoreAccessDenied, match="wrong key"):
        await store.call()
    store.error = None
    await store.until_works()
    assert REGISTRY.get_sample_value("textmatch_dependency_failing", labels) is None


async def test_one_failed_call_of_a_store_that_works_changes_nothing(store: Store):
    with pytest.raises(DependencyUnavailable):
        async with store.guard.call():
            raise GONE
    await asyncio.sleep(0.05)
    assert store.probes == 1
    await store.call()


async def test_errors_that_are_no_failures_of_the_store_are_no_reason_to_probe(store: Store):
    with pytest.raises(KeyError):
        async with store.guard.call():
            raise KeyError
    await asyncio.sleep(0.02)
    assert store.probes == 0


async def test_a_store_is_watched_without_calls(store: Store):
    store.error = GONE
    watching = asyncio.create_task(store.guard.watch_forever())
    await store.until_refused()
    watching.cancel()


async def test_closing_ends_although_a_cancelled_probe_fails_with_an_error_of_its_own(store: Store):
    async def probe() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise GONE from None

    guard = DependencyGuard("cancelled", probe, lambda error: error)
    guard.suspect()
    await asyncio.sleep(0.01)
    async with asyncio.timeout(1):
        await guard.close()
    assert guard.error is None


async def test_a_bug_in_a_probe_does_not_end_probing(store: Store):
    store.error = GONE
    store.guard.suspect()
    await store.until_refused()
    store.error = KeyError("bug")
    await asyncio.sleep(0.1)
    store.error = GONE
    store.guard.suspect()
    await asyncio.sleep(0.1)
    store.error = None
    store.guard.suspect()
    await store.until_works()
