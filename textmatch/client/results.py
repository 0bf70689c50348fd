"""Results of methods that answer many items: nothing is sent until they are read, and unread ones warn."""

from __future__ import annotations

import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Generic, Self, TypeVar

from textmatch.client.connection import run

Result = TypeVar("Result")


class ResultsNotRead(RuntimeWarning):
    """A method that sends nothing until its results are read was called, and they were never read.

    As for a coroutine that is never awaited, Python shows it by default.
    """


class AsyncResults(AsyncIterator[Result], Generic[Result]):
    """The results of one call; iterate once over them.

    Args:
        method: the name of the client's method.
    """

    def __init__(self, results: AsyncGenerator[Result, None], method: str) -> None:
        self._results = results
        self._method = method
        self._is_read = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Result:
        self._is_read = True
        return await self._results.__anext__()

    async def aclose(self) -> None:
        """End early: nothing more is sent, and running calls are cancelled."""
        self._is_read = True
        await self._results.aclose()

    def __del__(self) -> None:
        if not self._is_read:
            message = f"nothing was sent: the results of {self._method}() were not read; iterate over them"
            warnings.warn(message, ResultsNotRead, stacklevel=2, source=self)


class Results(Iterator[Result], Generic[Result]):
    """The results of one call; iterate once over them."""

    def __init__(self, results: AsyncResults[Result]) -> None:
        self._results = results

    def __next__(self) -> Result:
        try:
            return run(self._results.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> None:
        """End early: nothing more is sent, and running calls are cancelled."""
        run(self._results.aclose())
