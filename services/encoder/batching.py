"""Which of the waiting texts go into the next forward pass.

There is no timer: a batch is chosen from what waits at the moment the engine is free. It always holds the
text that is next. Where texts are packed it holds those that follow, whatever their lengths; where all are
padded to the longest it holds texts of about the same length.

What goes through the engine: texts of calls, split over batches and joined again, and errands.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from services.encoder.fair_queue import DeficitRoundRobinQueue, Text
from textmatch.errors import InvalidInput, TextMatchError, Violation
from textmatch.models.fast_tokenizer import TokenizedText
from textmatch.v1 import error_reason_pb2

# Small enough that single texts wait for a part of a batch, large enough that calls do not all end together.
_TURNS_PER_BATCH = 4


@dataclass(frozen=True)
class BatchPolicy:
    """How texts become batches.

    `token_budget` limits a batch, counted as it is computed: if padded, longest text x texts. `bulk_share` is
    the part of the tokens that bulk work gets at least while interactive work waits. `forward_cost_tokens` is
    how many tokens could be computed in the time that a forward pass takes before its first token: less
    padding than that is cheaper than another pass.
    """

    token_budget: int
    bulk_share: float
    forward_cost_tokens: int

    @property
    def turn_tokens(self) -> int:
        """How many tokens of one caller go before those of another who waits."""
        return max(1, self.token_budget // _TURNS_PER_BATCH)


def padded_tokens(token_counts: Sequence[int]) -> int:
    """Tokens that are computed for a batch."""
    return max(token_counts) * len(token_counts)


def take_packed_batch(queue: DeficitRoundRobinQueue[Text], policy: BatchPolicy) -> list[Text]:
    """Take the texts that are next, as many as the budget holds; the first goes even if it alone is larger.

    Returns:
        In the order of the queue; empty if nothing waits.
    """
    batch: list[Text] = []
    room_tokens = policy.token_budget
    while (text := queue.peek()) is not None and (not batch or text.tokens <= room_tokens):
        batch.append(queue.take())
        room_tokens -= text.tokens
    return batch


def take_padded_batch(token_counts: Sequence[int], policy: BatchPolicy) -> list[int]:
    """Choose a batch of texts of about the same length that holds the first text.

    Args:
        token_counts: of the waiting texts, the next one first; at least one.
        policy: its `token_budget` is kept, unless the first text alone is larger.

    Returns:
        Positions in `token_counts`, longest text first.
    """
    group: list[int] = []
    longest = padding = 0
    for position in sorted(range(len(token_counts)), key=lambda at: (-token_counts[at], at)):
        tokens = token_counts[position]
        is_full = longest * (len(group) + 1) > policy.token_budget
        if group and (is_full or padding + longest - tokens > policy.forward_cost_tokens):
            if 0 in group:
                return group
            group = []
        if not group:
            longest, padding = tokens, 0
        padding += longest - tokens
        group.append(position)
    return group


class BulkCredit:
    """Whose turn it is, so that bulk work advances however much interactive work comes.

    Interactive work goes first and thereby earns credit for the bulk work that waits; a batch's worth of
    credit buys one bulk batch.
    """

    def __init__(self, policy: BatchPolicy) -> None:
        self._cost_tokens = policy.token_budget
        self._earned_per_token = policy.bulk_share / (1 - policy.bulk_share)
        self._tokens = 0.0

    def is_bulk_turn(self, *, interactive_waits: bool, bulk_waits: bool) -> bool:
        """Whether the next batch is of bulk work."""
        return bulk_waits and (not interactive_waits or self._tokens >= self._cost_tokens)

    def account(self, tokens: int, *, is_bulk: bool, bulk_waits: bool) -> None:
        """Note what a batch took: its tokens, and whether bulk work is waiting still."""
        if is_bulk:
            self._tokens -= tokens
        else:
            self._tokens += tokens * self._earned_per_token
        if self._tokens < 0 or not bulk_waits:
            self._tokens = 0.0


# What a model returns: one row a text.
Rows: TypeAlias = NDArray[np.float32]

Outcome = TypeVar("Outcome")
# Has work done in the thread that runs models; the work returns the seconds it took.
RunPass: TypeAlias = Callable[[Callable[[], float]], float]


@dataclass(frozen=True, eq=False)
class EngineModel:
    """A model as the engine sees it.

    `forward` turns a batch into (count, columns) float32. `sample` is a text that it is known to work on.
    `is_packed` says that texts of any lengths go into one batch without padding.
    """

    model_id: str
    forward: Callable[[Sequence[TokenizedText]], Rows]
    sample: TokenizedText
    is_packed: bool = False


@dataclass(frozen=True)
class CallContext:
    """Which lane a call is in, and until when its answer is of use (`time.monotonic`; None: for ever).

    Callers share the engine, however much one of them asks for.
    """

    caller: str
    is_bulk: bool
    deadline: float | None


class Job:
    """The texts of one call for one model. Made in the event loop; the engine fills it from its own thread.

    Args:
        name_item: what the caller calls the text at a position: "texts[3]".
    """

    def __init__(
        self,
        model: EngineModel,
        texts: Sequence[TokenizedText],
        urgency: CallContext,
        name_item: Callable[[int], str],
    ) -> None:
        self.model = model
        self.texts = texts
        self.caller = urgency.caller
        self.is_bulk = urgency.is_bulk
        self.deadline = urgency.deadline
        self.added_at = time.perf_counter()
        self.waiting_tokens = sum(text.token_count for text in texts)
        self.waiting_texts = len(texts)
        self.is_over = False
        self._name_item = name_item
        self.loop = asyncio.get_running_loop()
        self._result: asyncio.Future[Rows] = self.loop.create_future()
        self._rows: Rows | None = None
        self._error: TextMatchError | None = None
        self._violations: dict[int, Violation] = {}
        self._missing = len(texts)

    async def result(self) -> Rows:
        """(count, columns), in the order of the texts.

        Raises:
            InvalidInput: naming every text that the model failed on.
            TextMatchError: whatever the job was ended with.
        """
        return await self._result

    def put(self, position: int, row: Rows) -> None:
        """Note the result for one text."""
        if self._rows is None:
            self._rows = np.empty((len(self.texts), row.shape[0]), dtype=np.float32)
        self._rows[position] = row
        self._count_down()

    def put_failure(self, position: int) -> None:
        """Note that the model failed on this one text."""
        reason = error_reason_pb2.ERROR_REASON_TEXT_FAILED
        description = "the model failed on this text; it works on others"
        self._violations[position] = Violation(self._name_item(position), reason, description)
        self._count_down()

    def end(self, error: TextMatchError) -> None:
        """Give up on all its texts."""
        self._error = error
        self.is_over = True
        deliver([self])

    def _count_down(self) -> None:
        self._missing -= 1
        if self._missing:
            return
        if self._violations:
            self._error = InvalidInput([self._violations[position] for position in sorted(self._violations)])
        self.is_over = True

    def settle(self) -> None:
        """Hand the result to the caller, if there still is one. Runs in the event loop."""
        if self._result.done():
            return
        if self._error is not None:
            self._result.set_exception(self._error)
        elif self._rows is not None:
            self._result.set_result(self._rows)


class EngineTask(Generic[Outcome]):
    """Something other than a batch that has to be done in the engine's thread."""

    def __init__(self, work: Callable[[], Outcome]) -> None:
        self._work = work
        self._outcome: Future[Outcome] = Future()

    def do(self) -> None:
        """Do it; what it raises is its outcome."""
        try:
            self._outcome.set_result(self._work())
        except Exception as error:  # noqa: BLE001 -- models fail in any way
            self._outcome.set_exception(error)

    def end(self, error: TextMatchError) -> None:
        """It will not be done."""
        self._outcome.set_exception(error)

    def wait(self) -> Outcome:
        """Block until it is done, and return or raise what it did."""
        return self._outcome.result()


def run_inline(work: Callable[[], float]) -> float:
    """Do it in this thread: no engine runs models yet."""
    return work()


def deliver(jobs: Sequence[Job]) -> None:
    """Wake the callers of jobs that are over, from any thread; all are of one event loop."""
    if jobs:
        jobs[0].loop.call_soon_threadsafe(_settle_all, jobs)


def _settle_all(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job.settle()
