"""A second call when the first is slow."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from services.matcher.hedging import hedged


class Replicas:
    """Each call goes to the next: (seconds that it takes, what it answers or raises)."""

    def __init__(self, *behaviours: tuple[float, str | Exception]) -> None:
        self._behaviours = behaviours
        self.asked = 0
        self.cancelled = 0

    @property
    def call(self) -> Callable[[], Awaitable[str]]:
        async def ask() -> str:
            seconds, outcome = self._behaviours[self.asked]
            self.asked += 1
            try:
                await asyncio.sleep(seconds)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        return ask


async def test_a_quick_answer_needs_no_second_call():
    replicas = Replicas((0.0, "first"), (0.0, "second"))
    assert await hedged(replicas.call, 30.0) == "first"
    assert replicas.asked == 1


async def test_the_second_answers_for_a_first_that_hangs_and_is_then_given_up():
    replicas = Replicas((60.0, "first"), (0.0, "second"))
    assert await hedged(replicas.call, 0.01) == "second"
    await asyncio.sleep(0)
    assert replicas.cancelled == 1


async def test_without_hedging_there_is_one_call():
    replicas = Replicas((0.05, "first"), (0.0, "second"))
    assert await hedged(replicas.call, 0.0) == "first"
    assert replicas.asked == 1


async def test_an_error_of_one_does_not_matter_while_the_other_runs():
    assert await hedged(Replicas((0.1, "first"), (0.0, ValueError("second"))).call, 0.01) == "first"


@pytest.mark.parametrize("after_seconds", [0.0, 0.01, 30.0])
async def test_the_error_of_all_is_raised(after_seconds: float):
    replicas = Replicas((0.05, ValueError("one")), (0.0, ValueError("two")))
    with pytest.raises(ValueError, match="one|two"):
        await hedged(replicas.call, after_seconds)


async def test_a_caller_who_leaves_ends_both_calls():
    replicas = Replicas((60.0, "first"), (60.0, "second"))
    call = asyncio.create_task(hedged(replicas.call, 0.01))
    await asyncio.sleep(0.1)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await asyncio.sleep(0)
    assert (replicas.asked, replicas.cancelled) == (2, 2)
