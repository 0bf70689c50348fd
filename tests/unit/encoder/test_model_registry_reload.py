from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from services.encoder.metrics import RELOADS_TOTAL
from services.encoder.model_registry import ModelRegistry, Reloader
from textmatch.errors import ModelNotFound


class Loads:
    """Loads that are let go one by one; notes how many run at once."""

    def __init__(self) -> None:
        self.started = 0
        self.most_at_once = 0
        self.go_on = threading.Semaphore(0)
        self.error: Exception | None = None
        self.served: list[ModelRegistry] = []
        self._running = 0

    def load(self) -> ModelRegistry:
        self.started += 1
        self._running += 1
        self.most_at_once = max(self.most_at_once, self._running)
        assert self.go_on.acquire(timeout=10)
        self._running -= 1
        if self.error is not None:
            raise self.error
        return ModelRegistry([], [])


@asynccontextmanager
async def _running(reloader: Reloader, loads: Loads) -> AsyncIterator[None]:
    task = asyncio.create_task(reloader.run(lambda: asyncio.to_thread(loads.load), loads.served.append))
    yield
    task.cancel()


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 -- the condition changes in a thread
            await asyncio.sleep(0.002)


def _count(result: str) -> float:
    return RELOADS_TOTAL.labels(result)._value.get()


async def test_what_is_asked_for_during_a_reload_is_done_once_after_it():
    reloader, loads, done_before = Reloader(), Loads(), _count("done")
    async with _running(reloader, loads):
        reloader.request()
        await _until(lambda: loads.started == 1)
        for _ in range(3):
            reloader.request()
        loads.go_on.release()
        await _until(lambda: loads.started == 2)
        assert len(loads.served) == 1
        loads.go_on.release()
        await _until(lambda: len(loads.served) == 2)
        await asyncio.sleep(0.05)
    assert (loads.started, loads.most_at_once) == (2, 1)
    assert _count("done") == done_before + 2


async def test_what_is_asked_for_before_it_runs_is_not_lost():
    reloader, loads = Reloader(), Loads()
    reloader.request()
    loads.go_on.release()
    async with _running(reloader, loads):
        await _until(lambda: len(loads.served) == 1)
    assert loads.started == 1


async def test_a_failed_reload_is_one_line_and_the_next_one_works(caplog: pytest.LogCaptureFixture):
    reloader, loads, failed_before = Reloader(), Loads(), _count("failed")
    loads.error = ModelNotFound("x", "no model\n  of that name")
    async with _running(reloader, loads):
        with caplog.at_level(logging.ERROR):
            reloader.request()
            loads.go_on.release()
            await _until(lambda: _count("failed") == failed_before + 1)
        loads.error = None
        reloader.request()
        loads.go_on.release()
        await _until(lambda: len(loads.served) == 1)
    assert caplog.messages == ["cannot reload; the old models keep serving: no model of that name"]
