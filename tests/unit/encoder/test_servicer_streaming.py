from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.encoder.servicer import answer_in_order


async def _numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


async def test_answers_come_in_order_though_the_first_is_the_slowest():
    async def answer(number: int) -> int:
        await asyncio.sleep(0.01 * (3 - number))
        return number * 10

    assert [answer async for answer in answer_in_order(_numbers(3), answer, limit=3)] == [0, 10, 20]


async def test_an_answer_does_not_wait_for_the_next_request():
    requests: asyncio.Queue[int] = asyncio.Queue()

    async def endless() -> AsyncIterator[int]:
        while True:
            yield await requests.get()

    async def answer(number: int) -> int:
        return number

    answers = answer_in_order(endless(), answer, limit=4)
    for number in range(10):
        requests.put_nowait(number)
        assert await asyncio.wait_for(anext(answers), 5) == number
    await answers.aclose()


async def test_no_more_than_the_limit_are_read_ahead():
    read = 0

    async def counted() -> AsyncIterator[int]:
        nonlocal read
        for number in range(100):
            read += 1
            yield number

    async def answer(number: int) -> int:
        return number

    answers = answer_in_order(counted(), answer, limit=3)
    await anext(answers)
    await asyncio.sleep(0.01)
    assert read == 3
    await answers.aclose()


async def test_a_failing_source_ends_the_answers_with_its_error():
    async def failing() -> AsyncIterator[int]:
        yield 1
        raise RuntimeError("the client has gone")

    async def answer(number: int) -> int:
        return number

    answers = answer_in_order(failing(), answer, limit=3)
    assert await anext(answers) == 1
    with pytest.raises(RuntimeError, match="the client has gone"):
        await anext(answers)


async def test_closing_cancels_what_is_under_way():
    cancelled: list[int] = []

    async def answer(number: int) -> int:
        if number == 0:
            return number
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(number)
            raise
        return number

    answers = answer_in_order(_numbers(10), answer, limit=3)
    assert await anext(answers) == 0
    await asyncio.sleep(0.01)
    await answers.aclose()
    await asyncio.sleep(0.01)
    assert cancelled == [1, 2]
