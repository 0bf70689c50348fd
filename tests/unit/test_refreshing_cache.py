"""Something that is read now and then: how old it may be, and who waits for it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import pytest

from textmatch.errors import DependencyUnavailable
from textmatch.refreshing_cache import RefreshingCache

_MAX_AGE_SECONDS = 10.0


@dataclass
class Counting:
    """Reads 1, 2, 3 ..., each once its gate is open."""

    count: int = 0
    error: Exception | None = None
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def read(self) -> int:
        self.count += 1
        value = self.count
        await self.gate.wait()
        if self.error:
            raise self.error
        return value


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._now = time.monotonic()
        monkeypatch.setattr("textmatch.refreshing_cache.time.monotonic", lambda: self._now)

    def advance(self, seconds: float) -> None:
        self._now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def reading() -> Counting:
    counting = Counting()
    counting.gate.set()
    return counting


@pytest.fixture
def renewed(reading: Counting) -> RefreshingCache[int]:
    return RefreshingCache(reading.read, _MAX_AGE_SECONDS)


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_it_is_read_once_while_it_is_fresh(
    renewed: RefreshingCache[int], reading: Counting, clock: Clock
):
    assert [await renewed.get() for _ in range(3)] == [1, 1, 1]
    clock.advance(4.9)
    assert (await renewed.get(), reading.count) == (1, 1)


async def test_it_is_read_anew_before_it_is_too_old_without_letting_anybody_wait(
    renewed: RefreshingCache[int], reading: Counting, clock: Clock
):
    await renewed.get()
    reading.gate.clear()
    clock.advance(5.1)
    assert [await renewed.get() for _ in range(3)] == [1, 1, 1]
    await _settle()
    assert reading.count == 2
    reading.gate.set()
    await _settle()
    assert await renewed.get() == 2
    clock.advance(5.1)
    await renewed.get()
    await _settle()
    assert await renewed.get() == 3


async def test_what_is_too_old_is_waited_for(renewed: RefreshingCache[int], clock: Clock):
    await renewed.get()
    clock.advance(10.0)
    assert await renewed.get() == 2


async def test_who_needs_what_cannot_be_read_is_told(
    renewed: RefreshingCache[int], reading: Counting, clock: Clock
):
    await renewed.get()
    reading.error = DependencyUnavailable("gone")
    clock.advance(5.1)
    assert await renewed.get() == 1
    await _settle()
    assert (await renewed.get(), reading.count) == (1, 2)
    clock.advance(5.1)
    with pytest.raises(DependencyUnavailable, match="gone"):
        await renewed.get()
    reading.error = None
    assert await renewed.get() == reading.count


async def test_what_is_forgotten_is_read_again_even_if_it_was_being_read(
    renewed: RefreshingCache[int], reading: Counting, clock: Clock
):
    await renewed.get()
    reading.gate.clear()
    clock.advance(5.1)
    await renewed.get()
    await _settle()
    renewed.forget()
    reading.gate.set()
    assert await renewed.get() == 3


async def test_a_slow_reading_does_not_replace_a_later_one(
    renewed: RefreshingCache[int], reading: Counting, clock: Clock
):
    reading.gate.clear()
    slow = asyncio.create_task(renewed.refresh())
    await _settle()
    clock.advance(1.0)
    gate, reading.gate = reading.gate, asyncio.Event()
    reading.gate.set()
    assert await renewed.refresh() == 2
    gate.set()
    assert await slow == 1
    assert await renewed.get() == 2
