from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Iterator, Sequence

import pytest

from services.encoder.batching import CallContext
from services.encoder.tokenizer_pool import TokenizerPool
from tests.support.length_model import texts_of
from textmatch.errors import DeadlinePassed, NotReady
from textmatch.models.fast_tokenizer import TokenizedText

_LARGE = 32_768


class Tokenizer:
    """Records which rows of which call are tokenized, and in which order.

    Each piece of the held call waits for a permit for its thread.
    """

    def __init__(self, held: str = "") -> None:
        self.pieces: list[tuple[str, int, int]] = []
        self.entered = threading.Event()
        self._permits = {f"tokenize-{number}": threading.Semaphore(0) for number in range(4)}
        self._held = held

    def of(self, name: str, error: Exception | None = None) -> Call:
        return Call(self, name, error)

    def note(self, name: str, start: int, stop: int) -> None:
        self.pieces.append((name, start, stop))
        if name == self._held:
            self.entered.set()
            assert self._permits[threading.current_thread().name].acquire(timeout=60)

    def open(self) -> None:
        for permits in self._permits.values():
            permits.release(10_000)

    def open_once(self, thread: int) -> None:
        self._permits[f"tokenize-{thread}"].release()

    async def wait_entered(self) -> None:
        assert await asyncio.to_thread(self.entered.wait, 30)


class Call:
    """The function of a call: the text of row 3 has 4 tokens."""

    def __init__(self, tokenizer: Tokenizer, name: str, error: Exception | None) -> None:
        self._tokenizer = tokenizer
        self._name = name
        self._error = error

    def __call__(self, start: int, stop: int) -> Sequence[TokenizedText]:
        self._tokenizer.note(self._name, start, stop)
        if self._error is not None:
            raise self._error
        return texts_of(*range(start + 1, stop + 1))


@pytest.fixture
def pool() -> Iterator[TokenizerPool]:
    pool = TokenizerPool(2)
    yield pool
    pool.close()


def _call(*, caller: str = "anyone", is_bulk: bool = False, deadline: float | None = None) -> CallContext:
    return CallContext(caller, is_bulk, deadline)


def _start(
    pool: TokenizerPool, call: Call, row_bytes: Sequence[int], context: CallContext
) -> asyncio.Task[list[TokenizedText]]:
    return asyncio.create_task(pool.tokenize(call, range(len(row_bytes)), row_bytes, context))


async def _until_queued(pool: TokenizerPool, text_bytes: int, *, is_bulk: bool) -> None:
    async with asyncio.timeout(30):
        while pool._waiting[is_bulk].tokens != text_bytes:  # noqa: ASYNC110 -- it changes in threads
            await asyncio.sleep(0.002)


async def test_texts_come_back_in_the_order_of_the_rows(pool: TokenizerPool):
    row_bytes = [5_000, 100, _LARGE, 20, 3_000, 6_000] * 20
    texts = await pool.tokenize(Tokenizer().of("any"), range(len(row_bytes)), row_bytes, _call())
    assert [text.token_count for text in texts] == list(range(1, len(row_bytes) + 1))


async def test_some_rows_of_a_call(pool: TokenizerPool):
    for size in (10, _LARGE):
        texts = await pool.tokenize(Tokenizer().of("any"), range(7, 12), [size] * 20, _call())
        assert [text.token_count for text in texts] == [8, 9, 10, 11, 12]


async def test_pieces_are_small(pool: TokenizerPool):
    tokenizer = Tokenizer()
    row_bytes = [_LARGE, 4_000, 4_000, 500, 8_000, 9_000, 100]
    await pool.tokenize(tokenizer.of("any"), range(len(row_bytes)), row_bytes, _call())
    assert sorted((start, stop) for _, start, stop in tokenizer.pieces) == [
        (0, 1), (1, 3), (3, 4), (4, 5), (5, 6), (6, 7),
    ]  # fmt: skip


async def test_a_small_call_is_tokenized_without_a_thread(pool: TokenizerPool):
    threads: list[str] = []

    def tokenize(start: int, stop: int) -> list[TokenizedText]:
        threads.append(threading.current_thread().name)
        return texts_of(1)

    await pool.tokenize(tokenize, range(1), [100], _call())
    await pool.tokenize(tokenize, range(1), [2_200], _call())
    assert threads[0] == threading.main_thread().name
    assert threads[1].startswith("tokenize-")


async def test_an_interactive_call_does_not_wait_for_bulk(pool: TokenizerPool):
    """Beside four bulk calls of 256 texts of 32 KB, one of which is being tokenized."""
    tokenizer = Tokenizer(held="bulk")
    bulk = [
        _start(pool, tokenizer.of("bulk"), [_LARGE] * 256, _call(caller=str(number), is_bulk=True))
        for number in range(4)
    ]
    await tokenizer.wait_entered()
    await _until_queued(pool, 1_023 * _LARGE, is_bulk=True)
    texts = await asyncio.wait_for(_start(pool, tokenizer.of("interactive"), [2_200], _call()), 30)
    assert len(texts) == 1
    assert tokenizer.pieces == [("bulk", 0, 1), ("interactive", 0, 1)]
    tokenizer.open()
    await asyncio.gather(*bulk)


async def test_bulk_waits_for_the_running_piece_of_interactive_calls_only(pool: TokenizerPool):
    tokenizer = Tokenizer(held="interactive")
    interactive = _start(pool, tokenizer.of("interactive"), [_LARGE] * 10, _call())
    # Each of the two threads holds a piece.
    await _until_queued(pool, 8 * _LARGE, is_bulk=False)
    bulk = _start(pool, tokenizer.of("bulk"), [_LARGE] * 3, _call(is_bulk=True))
    await _until_queued(pool, 3 * _LARGE, is_bulk=True)
    tokenizer.open_once(thread=1)
    assert len(await asyncio.wait_for(bulk, 30)) == 3
    assert not interactive.done()
    tokenizer.open()
    await interactive


async def test_callers_are_served_in_turn(pool: TokenizerPool):
    held, tokenizer = Tokenizer(held="first"), Tokenizer()
    first = _start(pool, held.of("first"), [_LARGE], _call(is_bulk=True))
    await held.wait_entered()
    many = _start(pool, tokenizer.of("many"), [8_192] * 100, _call(caller="many", is_bulk=True))
    await _until_queued(pool, 100 * 8_192, is_bulk=True)
    few = _start(pool, tokenizer.of("few"), [8_192] * 2, _call(caller="few", is_bulk=True))
    await _until_queued(pool, 102 * 8_192, is_bulk=True)
    held.open()
    await asyncio.gather(first, many, few)
    names = [name for name, _, _ in tokenizer.pieces]
    assert [at for at, name in enumerate(names) if name == "few"] == [1, 3]


async def test_a_cancelled_call_is_not_tokenized(pool: TokenizerPool):
    held, tokenizer = Tokenizer(held="first"), Tokenizer()
    first = _start(pool, held.of("first"), [_LARGE], _call(is_bulk=True))
    await held.wait_entered()
    cancelled = _start(pool, tokenizer.of("cancelled"), [_LARGE] * 3, _call(is_bulk=True))
    await _until_queued(pool, 3 * _LARGE, is_bulk=True)
    cancelled.cancel()
    await _until_queued(pool, 0, is_bulk=True)
    held.open()
    await first
    await pool.tokenize(tokenizer.of("later"), range(1), [_LARGE], _call(is_bulk=True))
    assert [name for name, _, _ in tokenizer.pieces] == ["later"]


async def test_a_call_whose_deadline_passed_is_not_tokenized(pool: TokenizerPool):
    tokenizer = Tokenizer()
    late = _call(deadline=time.monotonic() - 1.0)
    with pytest.raises(DeadlinePassed):
        await asyncio.wait_for(pool.tokenize(tokenizer.of("late"), range(3), [_LARGE] * 3, late), 30)
    assert tokenizer.pieces == []
    assert pool._waiting[False].tokens == 0


@pytest.mark.parametrize("size", [10, _LARGE])
async def test_an_error_ends_the_call_and_nothing_else(pool: TokenizerPool, size: int):
    failing = Tokenizer().of("bad", ValueError("cannot read this"))
    with pytest.raises(ValueError, match="cannot read this"):
        await asyncio.wait_for(pool.tokenize(failing, range(5), [size] * 5, _call()), 30)
    assert len(await pool.tokenize(Tokenizer().of("good"), range(5), [size] * 5, _call())) == 5


async def test_closing_fails_what_is_queued():
    pool, tokenizer = TokenizerPool(2), Tokenizer(held="first")
    first = _start(pool, tokenizer.of("first"), [_LARGE] * 5, _call())
    await tokenizer.wait_entered()
    closing = asyncio.create_task(asyncio.to_thread(pool.close))
    with pytest.raises(NotReady, match="shutting down"):
        await asyncio.wait_for(first, 30)
    tokenizer.open()
    await closing
    with pytest.raises(NotReady, match="shutting down"):
        await pool.tokenize(tokenizer.of("later"), range(1), [_LARGE], _call())


async def test_the_time_until_a_call_is_tokenized_is_that_of_the_bytes_ahead(pool: TokenizerPool):
    assert pool.seconds(_LARGE, _call()) == 0.0
    pool._bytes_per_second = 1_000_000.0
    assert pool.seconds(50_000, _call()) == pytest.approx(0.05)
    tokenizer = Tokenizer(held="bulk")
    bulk = _start(pool, tokenizer.of("bulk"), [10_000] * 21, _call(caller="bulk", is_bulk=True))
    await tokenizer.wait_entered()
    assert pool.seconds(50_000, _call()) == pytest.approx(0.05)
    # Another caller's work is ahead up to as much as this caller's.
    assert pool.seconds(50_000, _call(is_bulk=True)) == pytest.approx(0.1)
    assert pool.seconds(50_000, _call(caller="bulk", is_bulk=True)) == pytest.approx(0.25)
    tokenizer.open()
    await bulk
    assert pool._bytes_per_second != 1_000_000.0


async def test_an_idle_thread_keeps_no_model(pool: TokenizerPool):
    def tokenize(start: int, stop: int) -> list[TokenizedText]:
        return texts_of(1)

    kept = weakref.ref(tokenize)
    await pool.tokenize(tokenize, range(1), [_LARGE], _call())
    del tokenize
    async with asyncio.timeout(30):
        while kept() is not None:  # noqa: ASYNC110 -- the thread lets go of it
            await asyncio.sleep(0.002)


async def test_more_threads_serve_interactive_calls_first():
    pool, tokenizer = TokenizerPool(4), Tokenizer(held="interactive")
    interactive = [_start(pool, tokenizer.of("interactive"), [_LARGE], _call()) for _ in range(6)]
    # Each of the four threads took one.
    await _until_queued(pool, 2 * _LARGE, is_bulk=False)
    tokenizer.open()
    await asyncio.gather(*interactive)
    pool.close()
