"""Results that nobody reads warn, because nothing was sent."""

from __future__ import annotations

import asyncio
import gc
import time
import warnings
from collections.abc import AsyncIterator

import pytest

from tests.support.scripted_servicer import RunningServer, ScriptedMatcher
from textmatch.client import AsyncTextMatchClient, ResultsNotRead, TextMatchClient
from textmatch.errors import DependencyUnavailable

CALLS = {
    "ingest": lambda client: client.ingest([{"id": "a", "text": "one"}]),
    "batch_match": lambda client: client.batch_match(["one"]),
}


@pytest.mark.parametrize("method", CALLS)
def test_unread_results_warn_where_they_were_dropped(client_class: type[TextMatchClient], method: str):
    with client_class("127.0.0.1:1") as client:
        message = rf"nothing was sent: the results of {method}\(\) were not read; iterate over them"
        with pytest.warns(ResultsNotRead, match=message) as caught:
            CALLS[method](client)
        assert [one.filename for one in caught] == [__file__]


def test_python_shows_the_warning_by_default():
    assert issubclass(ResultsNotRead, RuntimeWarning)
    assert not issubclass(ResultsNotRead, ResourceWarning)


@pytest.mark.parametrize("method", CALLS)
def test_results_that_were_read_or_closed_do_not_warn(client: TextMatchClient, method: str):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        list(CALLS[method](client))
        next(CALLS[method](client))
        CALLS[method](client).close()
        gc.collect()
    assert [str(one.message) for one in caught] == []


async def test_the_asyncio_client_takes_and_gives_asynchronous_iterables(matcher_server: RunningServer):
    async def documents() -> AsyncIterator[dict[str, str]]:
        for number in range(450):
            yield {"id": str(number), "text": f"text {number}"}

    async def queries() -> AsyncIterator[str]:
        for number in range(150):
            yield f"text {number}"

    async with AsyncTextMatchClient(matcher_server.address) as client:
        results = [one async for one in client.ingest(documents())]
        assert sorted(one.position for one in results) == list(range(450))
        assert (await client.ingest_all(documents())).unchanged == 450
        answers = [one async for one in client.batch_match(queries(), top_k=1)]
        assert [one.query_index for one in answers] == list(range(150))


async def test_the_synchronous_client_says_that_it_cannot_wait_for_asyncio(matcher_server: RunningServer):
    async def documents() -> AsyncIterator[dict[str, str]]:
        await asyncio.sleep(0)
        yield {"id": "a", "text": "one"}

    with (
        TextMatchClient(matcher_server.address) as client,
        pytest.raises(RuntimeError, match="use AsyncTextMatchClient"),
    ):
        client.ingest_all(documents())


async def test_calls_of_the_asyncio_client_run_at_the_same_time(
    matcher_server: RunningServer, matcher: ScriptedMatcher
):
    matcher.delay_seconds = 0.3
    async with AsyncTextMatchClient(matcher_server.address) as client:
        started = time.monotonic()
        results = await asyncio.gather(*(client.match(f"query {number}") for number in range(20)))
        assert time.monotonic() - started < 3
    assert [one.query for one in results] == [f"query {number}" for number in range(20)]


async def test_a_cancelled_call_of_the_asyncio_client_is_cancelled(
    matcher_server: RunningServer, matcher: ScriptedMatcher
):
    matcher.delay_seconds = 30
    async with AsyncTextMatchClient(matcher_server.address) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.match("slow")
        waiting = asyncio.ensure_future(client.match("slow"))
        await asyncio.sleep(0.2)
        await client.close()
        with pytest.raises(DependencyUnavailable, match="the connection to the matcher was closed"):
            await waiting
        with pytest.raises(ValueError, match="closed"):
            await client.match("late")
