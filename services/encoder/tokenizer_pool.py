"""The threads that tokenize texts, in pieces of some KB, in the order of the lanes.

A call of 256 texts of 32 KB is 8 MB. It is tokenized piece by piece, and others get a piece in between.
One thread tokenizes interactive calls only, another one bulk calls first: a lane waits for at most one piece
of the other one.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from services.encoder import metrics
from services.encoder.batching import CallContext
from services.encoder.fair_queue import CallerTotals, DeficitRoundRobinQueue
from textmatch.errors import DeadlinePassed, NotReady
from textmatch.models.fast_tokenizer import TokenizedText

# Some milliseconds of work. A text is not divided.
_PIECE_BYTES = 8_192
# Less than this is tokenized faster than a thread is woken.
_INLINE_BYTES = 2_000
_SPEED_SMOOTHING = 0.1

# The lanes that a thread serves, `is_bulk`, the first with work first.
_INTERACTIVE_ONLY, _BULK_FIRST, _INTERACTIVE_FIRST = (False,), (True, False), (False, True)


class TokenizerPool:
    """Tokenizes the rows of calls.

    Args:
        threads: at least two.
    """

    def __init__(self, threads: int) -> None:
        self._queues = {is_bulk: DeficitRoundRobinQueue(_PIECE_BYTES, _is_over) for is_bulk in (False, True)}
        self._waiting = {is_bulk: CallerTotals() for is_bulk in (False, True)}
        self._bytes_per_second: float | None = None
        self._is_closed = False
        self._changed = threading.Condition()
        served = [_INTERACTIVE_ONLY, _BULK_FIRST, *[_INTERACTIVE_FIRST] * (threads - 2)]
        self._threads = [
            threading.Thread(target=self._run, args=(lanes,), name=f"tokenize-{number}", daemon=True)
            for number, lanes in enumerate(served)
        ]
        for thread in self._threads:
            thread.start()

    async def tokenize(
        self,
        tokenize: Callable[[int, int], Sequence[TokenizedText]],
        rows: range,
        row_bytes: Sequence[int],
        call: CallContext,
    ) -> list[TokenizedText]:
        """Tokenize rows of a call.

        Args:
            tokenize: tokenizes the rows from a start to an end. Called in a thread, or here if it is little.
            rows: the rows to tokenize.
            row_bytes: bytes of UTF-8 of all rows of the call.
            call: caller, lane and deadline.

        Raises:
            DeadlinePassed: the deadline passed before all rows were tokenized.
            NotReady: the pool is closed.
            Exception: what `tokenize` raised.
        """
        if sum(row_bytes[rows.start : rows.stop]) <= _INLINE_BYTES:
            return list(tokenize(rows.start, rows.stop))
        work = _Rows(tokenize, rows, call)
        pieces = work.pieces(row_bytes)
        with self._changed:
            if self._is_closed:
                raise _closed()
            work.waiting_bytes = sum(piece.tokens for piece in pieces)
            self._queues[call.is_bulk].add(call.caller, pieces)
            self._waiting[call.is_bulk].add(call.caller, work.waiting_bytes)
            self._changed.notify_all()
        try:
            return await work.result
        finally:
            with self._changed:
                work.is_over = True
                self._waiting[call.is_bulk].add(call.caller, -work.waiting_bytes)
                work.waiting_bytes = 0

    def seconds(self, text_bytes: int, call: CallContext) -> float:
        """About how long it takes until a new call of this size is tokenized."""
        with self._changed:
            ahead_bytes = self._waiting[call.is_bulk].ahead_of(call.caller, text_bytes, _PIECE_BYTES)
            return (ahead_bytes + text_bytes) / self._bytes_per_second if self._bytes_per_second else 0.0

    def close(self) -> None:
        """Fail what is queued and end the threads."""
        with self._changed:
            self._is_closed = True
            for queue in self._queues.values():
                for work in {item.work for item in queue}:
                    work.fail(_closed())
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self, lanes: Sequence[bool]) -> None:
        while (piece := self._take(lanes)) is not None:
            started = time.perf_counter()
            piece.work.compute(piece.start, piece.stop)
            self._note_speed(piece.tokens, time.perf_counter() - started)
            # An idle thread must not keep a replaced model in memory.
            del piece

    def _take(self, lanes: Sequence[bool]) -> _Piece | None:
        """Wait for a piece of these lanes; None once the pool is closed."""
        with self._changed:
            while not self._is_closed:
                for is_bulk in lanes:
                    if self._queues[is_bulk].peek() is not None:
                        piece = self._queues[is_bulk].take()
                        piece.work.waiting_bytes -= piece.tokens
                        self._waiting[is_bulk].add(piece.caller, -piece.tokens)
                        return piece
                self._changed.wait()
        return None

    def _note_speed(self, text_bytes: int, seconds: float) -> None:
        speed = text_bytes / max(seconds, 1e-6)
        with self._changed:
            known = self._bytes_per_second or speed
            self._bytes_per_second = known + _SPEED_SMOOTHING * (speed - known)


class _Rows:
    """Rows of one call; made and settled in the event loop, computed in the threads."""

    def __init__(
        self,
        tokenize: Callable[[int, int], Sequence[TokenizedText]],
        rows: range,
        call: CallContext,
    ) -> None:
        self.call = call
        self.is_over = False
        # Guarded by the pool's lock.
        self.waiting_bytes = 0
        self._loop = asyncio.get_running_loop()
        self.result: asyncio.Future[list[TokenizedText]] = self._loop.create_future()
        self._tokenize = tokenize
        self._rows = rows
        self._texts: list[TokenizedText | None] = [None] * len(rows)
        self._missing = len(rows)

    def pieces(self, row_bytes: Sequence[int]) -> list[_Piece]:
        """The rows in pieces of at most `_PIECE_BYTES`, or of one row."""
        pieces: list[_Piece] = []
        start, size_bytes = self._rows.start, 0
        for row in self._rows:
            if row > start and size_bytes + row_bytes[row] > _PIECE_BYTES:
                pieces.append(_Piece(self, start, row, size_bytes))
                start, size_bytes = row, 0
            size_bytes += row_bytes[row]
        return [*pieces, _Piece(self, start, self._rows.stop, size_bytes)]

    def compute(self, start: int, stop: int) -> None:
        try:
            texts = self._tokenize(start, stop)
        except Exception as error:  # noqa: BLE001 -- the caller gets it
            self.fail(error)
        else:
            self._loop.call_soon_threadsafe(self._put, start, texts)

    def fail(self, error: Exception) -> None:
        self.is_over = True
        self._loop.call_soon_threadsafe(self._settle, error)

    def _put(self, start: int, texts: Sequence[TokenizedText]) -> None:
        place = start - self._rows.start
        self._texts[place : place + len(texts)] = texts
        self._missing -= len(texts)
        if not self._missing:
            self._settle(None)

    def _settle(self, error: Exception | None) -> None:
        if self.result.done():
            return
        if error is not None:
            self.result.set_exception(error)
        else:
            self.result.set_result([text for text in self._texts if text is not None])


class _Piece(NamedTuple):
    """Rows from `start` to `stop` of a call; its cost is in bytes of text."""

    work: _Rows
    start: int
    stop: int
    tokens: int

    @property
    def caller(self) -> str:
        return self.work.call.caller


def _is_over(piece: _Piece) -> bool:
    """Whether a piece is no longer needed; fails its call here if the deadline has passed."""
    work = piece.work
    if not work.is_over and work.call.deadline is not None and time.monotonic() > work.call.deadline:
        work.fail(DeadlinePassed("the deadline passed while the texts were queued"))
        metrics.DROPPED_TOTAL.labels("late").inc()
    return work.is_over


def _closed() -> NotReady:
    return NotReady("the encoder is shutting down", retry_delay_seconds=1.0)
