"""The asyncio client, for tests that call it as the synchronous one."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, Self

from textmatch.client import AsyncResults, AsyncTextMatchClient

_CALL_SECONDS = 60


class LoopClient:
    """Runs every method of an AsyncTextMatchClient in an event loop of its own, in another thread."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._client = AsyncTextMatchClient(*arguments, **options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*arguments: Any, **options: Any) -> Any:
            answer = method(*arguments, **options)
            if isinstance(answer, AsyncResults):
                return LoopResults(answer, self)
            if isinstance(answer, AsyncTextMatchClient):
                return self._with_client(answer)
            return self.run(answer) if inspect.isawaitable(answer) else answer

        return call

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self, **options: Any) -> None:
        """Close the client and its loop."""
        self.run(self._client.close(**options))
        self.run(self._loop.shutdown_asyncgens())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _with_client(self, client: AsyncTextMatchClient) -> Self:
        """Another client over the same connections, in the same loop."""
        other = object.__new__(type(self))
        vars(other).update(vars(self), _client=client)
        return other

    def run(self, steps: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in the loop."""
        return asyncio.run_coroutine_threadsafe(steps, self._loop).result(_CALL_SECONDS)


class LoopResults(Iterator[Any]):
    """Reads asynchronous results one by one."""

    def __init__(self, results: AsyncResults[Any], client: LoopClient) -> None:
        self._results = results
        self._client = client

    def __next__(self) -> Any:
        async def following() -> list[Any]:
            return [one async for one in _first(self._results)]

        if not (found := self._client.run(following())):
            raise StopIteration
        return found[0]

    def close(self) -> None:
        """End early."""
        self._client.run(self._results.aclose())


async def _first(results: AsyncResults[Any]) -> Any:
    try:
        yield await anext(results)
    except StopAsyncIteration:
        return
