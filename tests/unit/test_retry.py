"""What is tried again, when, and for how long."""

from __future__ import annotations

import asyncio
import time

import pytest

from textmatch.errors import DependencyUnavailable, InvalidInput, Overloaded, TextMatchError
from textmatch.retry import RETRY_OVERLOADED, RetryPolicy, delay_seconds

QUICK = RetryPolicy(first_backoff_seconds=0.001, max_backoff_seconds=0.001)


class Failing:
    """A step that fails with each error in turn, and then succeeds."""

    def __init__(self, *errors: TextMatchError) -> None:
        self.errors = list(errors)
        self.tries = 0

    async def __call__(self) -> str:
        self.tries += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


async def test_what_may_pass_is_tried_until_it_succeeds():
    step = Failing(Overloaded("busy"), DependencyUnavailable("gone"))
    assert await QUICK.call(step) == "done"
    assert step.tries == 3


async def test_what_does_not_pass_is_raised_at_once():
    step = Failing(InvalidInput.of_field("x", "y"))
    with pytest.raises(InvalidInput):
        await QUICK.call(step)
    step = Failing(DependencyUnavailable("gone"))
    with pytest.raises(DependencyUnavailable):
        await RETRY_OVERLOADED.call_until(time.monotonic() + 10, step)
    assert step.tries == 1


async def test_a_delay_beyond_the_deadline_is_not_waited_for():
    step = Failing(Overloaded("busy", retry_delay_seconds=30.0))
    with pytest.raises(Overloaded):
        await QUICK.call_until(time.monotonic() + 10, step)
    step = Failing(Overloaded("busy"))
    with pytest.raises(Overloaded):
        await QUICK.call_until(0.0, step)
    assert step.tries == 1


async def test_a_loop_of_attempts_ends_at_its_deadline():
    step = Failing(*[Overloaded("busy")] * 3)
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await asyncio.sleep(seconds)

    assert await QUICK.attempts(lambda: time.monotonic() + 10, sleep)(step) == "done"
    assert len(slept) == 3
    step = Failing(*[Overloaded("busy")] * 100)
    deadline = time.monotonic() + 0.02
    with pytest.raises(Overloaded, match="busy"):
        await QUICK.attempts(lambda: deadline, sleep)(step)
    assert 2 <= step.tries < 100


def test_delays_grow_to_a_limit_and_differ():
    error = Overloaded("busy")
    shortest = [min(delay_seconds(error, attempt) for _ in range(50)) for attempt in range(40)]
    assert 0.1 < shortest[0] < 0.25
    assert shortest[0] < shortest[3] < shortest[6]
    assert all(delay <= 15.0 for delay in shortest)
    assert len({delay_seconds(error, 3) for _ in range(10)}) > 5


def test_a_server_that_asks_for_time_gets_it():
    error = Overloaded("busy", retry_delay_seconds=12.0)
    assert all(12.0 < delay_seconds(error, 0) <= 12.25 for _ in range(50))
