"""Jobs, and which of their texts go into the next forward pass.

There is no timer: a batch is chosen from what is queued when the inference thread is free. It always contains
the next text. A packed batch continues with the texts that follow, of any length. A padded batch contains
texts of similar length.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from services.encoder.fair_queue import AnyItem, DeficitRoundRobinQueue
from textmatch.errors import InvalidInput, TextMatchError, Violation
from textmatch.models.fast_tokenizer import TokenizedText
from textmatch.v1 import error_reason_pb2

# Below this, the fixed cost of a pass is most of its time.
_MIN_BUDGET_TOKENS = 256
# Small: a single text waits for a part of a batch only. Large enough that not all calls end at once.
_QUANTA_PER_BATCH = 4

# What a model returns: one row per text.
Rows: TypeAlias = NDArray[np.float32]
Outcome = TypeVar("Outcome")


@dataclass(frozen=True)
class CallContext:
    """The caller of a call, its lane, and its deadline (`time.monotonic`; None: no deadline)."""

    caller: str
    is_bulk: bool
    deadline: float | None


@dataclass(frozen=True, eq=False)
class EngineModel:
    """The interface of a model for the inference thread.

    `forward` turns a batch into (count, columns) float32. `sample` is a text that the model works on.
    If `is_packed`, texts of any lengths can share a batch without padding. `tokens_per_second` is its speed
    in full batches, measured before it serves; 0: unknown.
    """

    model_id: str
    forward: Callable[[Sequence[TokenizedText]], Rows]
    sample: TokenizedText
    is_packed: bool = False
    tokens_per_second: float = 0.0


class CallLoad:
    """The tokens of an admitted call that are in no batch yet; estimated until they are counted."""

    __slots__ = ("caller", "model", "tokens")

    def __init__(self, model: EngineModel, caller: str) -> None:
        self.model = model
        self.caller = caller
        self.tokens = 0


class Job:
    """The texts of one call for one model. Made in the event loop, computed by the inference thread.

    `queued_texts` and `queued_tokens` count the texts that are not in a batch yet. `is_over` is set once
    no more texts must be computed.

    Args:
        name_item: the name of the text at a position in the caller's request: "texts[3]".
        load: that of the admitted call, of which the job is a part; None: the job was not announced.
        estimated_tokens: what the job counts for in `load` until it is queued.
    """

    def __init__(
        self,
        model: EngineModel,
        texts: Sequence[TokenizedText],
        call: CallContext,
        name_item: Callable[[int], str],
        load: CallLoad | None = None,
        estimated_tokens: int = 0,
    ) -> None:
        self.model = model
        self.texts = texts
        self.call = call
        self.load = load or CallLoad(model, call.caller)
        self.estimated_tokens = estimated_tokens
        self.loop = asyncio.get_running_loop()
        self.added_at = time.perf_counter()
        self.queued_texts = len(texts)
        self.queued_tokens = sum(text.token_count for text in texts)
        self.is_over = False
        self._name_item = name_item
        self._result: asyncio.Future[Rows] = self.loop.create_future()
        self._rows: Rows | None = None
        self._error: TextMatchError | None = None
        self._violations: dict[int, Violation] = {}
        self._missing = len(texts)

    async def result(self) -> Rows:
        """(count, columns), in the order of the texts.

        Raises:
            InvalidInput: naming every text that the model failed on.
            TextMatchError: the error that the job was ended with.
        """
        return await self._result

    def put(self, position: int, row: Rows) -> None:
        """Set the row of one text."""
        if self._rows is None:
            self._rows = np.empty((len(self.texts), row.shape[0]), dtype=np.float32)
        self._rows[position] = row
        self._count_down()

    def put_failure(self, position: int) -> None:
        """Record that the model failed on this text."""
        reason = error_reason_pb2.ERROR_REASON_TEXT_FAILED
        description = "the model failed on this text; other texts work"
        self._violations[position] = Violation(self._name_item(position), reason, description)
        self._count_down()

    def end(self, error: TextMatchError) -> None:
        """Fail the whole job."""
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
        """Hand the result to the caller, unless the caller has gone. Runs in the event loop."""
        if self._result.done():
            return
        if self._error is not None:
            self._result.set_exception(self._error)
        elif self._rows is not None:
            self._result.set_result(self._rows)


def deliver(jobs: Sequence[Job]) -> None:
    """Settle jobs that are over, from any thread; all jobs belong to one event loop."""
    if jobs:
        jobs[0].loop.call_soon_threadsafe(_settle_all, jobs)


def _settle_all(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job.settle()


class EngineTask(Generic[Outcome]):
    """A function to be called in the inference thread, between two batches."""

    def __init__(self, function: Callable[[], Outcome]) -> None:
        self._function = function
        self._outcome: Future[Outcome] = Future()

    def run(self) -> None:
        """Call the function and keep its result or its exception."""
        try:
            self._outcome.set_result(self._function())
        except Exception as error:  # noqa: BLE001 -- models fail in any way
            self._outcome.set_exception(error)

    def end(self, error: TextMatchError) -> None:
        """Fail the task without running it."""
        self._outcome.set_exception(error)

    def wait(self) -> Outcome:
        """Block until the task has run; returns the function's result, or raises its exception."""
        return self._outcome.result()


@dataclass(frozen=True)
class BatchPolicy:
    """How texts become batches.

    `token_budget` limits a batch as it is computed: if padded, longest text x texts. `bulk_share` is the
    smallest share of the engine's time for bulk jobs while interactive jobs are queued. The fixed cost of a
    forward pass is `forward_cost_tokens`: less padding than that is cheaper than another pass.
    `target_seconds` is how long a pass should take; None: passes have `token_budget`, however long they take.
    """

    token_budget: int
    bulk_share: float
    forward_cost_tokens: int
    target_seconds: float | None = None

    @property
    def quantum_tokens(self) -> int:
        """How many tokens of one caller are taken before the next caller's."""
        return max(1, self.token_budget // _QUANTA_PER_BATCH)

    def limited(self, token_budget: int) -> BatchPolicy:
        """The same with no larger budget than this."""
        return replace(self, token_budget=min(self.token_budget, token_budget))

    def for_speed(self, tokens_per_second: float) -> BatchPolicy:
        """The same with the budget that a model of this speed computes in `target_seconds`.

        `token_budget` is the most. Some hundred tokens are always allowed, however slow the model is.
        """
        if self.target_seconds is None:
            return self
        return self.limited(max(_MIN_BUDGET_TOKENS, int(tokens_per_second * self.target_seconds)))


def padded_tokens(token_counts: Sequence[int]) -> int:
    """Tokens that are computed for a padded batch."""
    return max(token_counts) * len(token_counts)


def take_packed_batch(queue: DeficitRoundRobinQueue[AnyItem], policy: BatchPolicy) -> list[AnyItem]:
    """Take the next items up to the token budget; the first is taken even if it alone exceeds the budget.

    Returns:
        Items in the order of the queue; empty if the queue is.
    """
    batch: list[AnyItem] = []
    room_tokens = policy.token_budget
    while (item := queue.peek()) is not None and (not batch or item.tokens <= room_tokens):
        batch.append(queue.take())
        room_tokens -= item.tokens
    return batch


def take_padded_batch(token_counts: Sequence[int], policy: BatchPolicy) -> list[int]:
    """Choose a batch of texts of similar length that contains the first text.

    Args:
        token_counts: of the queued texts, the next one first; at least one.
        policy: its `token_budget` is kept, unless the first text alone exceeds it.

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
    """Chooses between the lanes; bulk work advances under any interactive load.

    Interactive batches go first and earn credit for queued bulk work. The credit that a bulk batch costs buys
    one. Costs are in seconds of the engine, so that a slow model gets no more than its share.
    """

    def __init__(self, bulk_share: float) -> None:
        self._earned_per_cost = bulk_share / (1 - bulk_share)
        self._credit = 0.0

    def is_bulk_next(self, *, interactive_queued: bool, bulk_queued: bool, bulk_cost: float) -> bool:
        """Whether the next batch comes from the bulk lane, whose next batch costs `bulk_cost`."""
        return bulk_queued and (not interactive_queued or self._credit >= bulk_cost)

    def account(self, cost: float, *, is_bulk: bool, bulk_queued: bool) -> None:
        """Record a batch: its cost, its lane, and whether bulk work is still queued."""
        if is_bulk:
            self._credit -= cost
        else:
            self._credit += cost * self._earned_per_cost
        if self._credit < 0 or not bulk_queued:
            self._credit = 0.0
