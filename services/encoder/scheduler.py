"""What waits for the engine: two lanes of texts, with limits on what is let in, and errands.

The texts of one priority that wait for the engine: by model, and by caller.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from services.encoder import metrics
from services.encoder.batching import (
    BatchPolicy,
    BulkCredit,
    CallContext,
    EngineModel,
    EngineTask,
    Job,
    take_packed_batch,
    take_padded_batch,
)
from services.encoder.fair_queue import DeficitRoundRobinQueue
from textmatch.errors import DeadlinePassed, DeadlineTooShort, NotReady, Overloaded, TextMatchError
from textmatch.models.fast_tokenizer import TokenizedText

# Texts that a padded batch is chosen from: enough to find some of like length, few enough to sort in no time.
_WINDOW_TEXTS = 256


class Item(NamedTuple):
    """One text of a job."""

    job: Job
    position: int
    tokens: int

    @property
    def caller(self) -> str:
        """Who waits for it."""
        return self.job.caller

    @property
    def text(self) -> TokenizedText:
        """What the model reads."""
        return self.job.texts[self.position]


class Lane:
    """Models take turns, batch by batch; within a model callers do, by tokens.

    Args:
        is_over: whether nobody waits for a job any more.
    """

    def __init__(self, name: str, policy: BatchPolicy, is_over: Callable[[Job], bool]) -> None:
        self.name = name
        self._policy = policy
        self._is_over = is_over
        # The first is the one whose turn it is.
        self._queues: dict[EngineModel, DeficitRoundRobinQueue[Item]] = {}
        self.texts = 0
        self._tokens = 0
        # Of those that wait and of calls that are let in and being tokenized; no zeros.
        self._tokens_of_caller: dict[str, int] = {}
        self._reserved_tokens = 0

    @property
    def tokens(self) -> int:
        """Of all that wait, and of all that are let in and being tokenized."""
        return self._tokens + self._reserved_tokens

    def tokens_of(self, caller: str) -> int:
        """Those of one caller."""
        return self._tokens_of_caller.get(caller, 0)

    def callers_with(self, caller: str) -> int:
        """How many callers have something waiting, once this one has."""
        return len(self._tokens_of_caller) + (caller not in self._tokens_of_caller)

    def tokens_ahead(self, caller: str, tokens: int) -> int:
        """How many go to the engine before the last of a new call of so many tokens.

        No other caller gets more turns until then than this one, if others do not come.
        """
        share = max(self.tokens_of(caller) + tokens, self._policy.turn_tokens)
        return sum(min(waiting, share) for waiting in self._tokens_of_caller.values())

    def reserve(self, caller: str, tokens: int) -> None:
        """Count a call that is being tokenized; with negative tokens, no longer."""
        self._reserved_tokens += tokens
        self._count_caller(caller, tokens)

    def add(self, job: Job) -> None:
        """Let the texts of a job wait."""
        queue = self._queues.get(job.model)
        if queue is None:
            queue = DeficitRoundRobinQueue(self._policy.turn_tokens, lambda item: self._is_over(item.job))
            self._queues[job.model] = queue
        queue.add(
            job.caller, (Item(job, position, text.token_count) for position, text in enumerate(job.texts))
        )
        self._count(job.waiting_texts, job.waiting_tokens)
        self._count_caller(job.caller, job.waiting_tokens)

    def forget(self, job: Job) -> None:
        """Stop counting a job that is over; its items are thrown away when they come up."""
        self._count(-job.waiting_texts, -job.waiting_tokens)
        self._count_caller(job.caller, -job.waiting_tokens)
        job.waiting_texts = job.waiting_tokens = 0

    def has_work(self) -> bool:
        """Whether any text waits; lets go of models of which none does, since they may be served no more."""
        self._queues = {model: queue for model, queue in self._queues.items() if queue.peek() is not None}
        return bool(self._queues)

    def take(self) -> list[Item]:
        """The next batch, all of one model, if `has_work`; empty if the last deadline passed since."""
        model, queue = next(iter(self._queues.items()))
        batch = take_packed_batch(queue, self._policy) if model.is_packed else self._take_padded(queue)
        self._queues[model] = self._queues.pop(model)
        self._stop_counting(batch)
        return batch

    def clear(self) -> list[Job]:
        """Throw all items away; returns the jobs that wait."""
        jobs = {item.job: None for queue in self._queues.values() for item in queue}
        self._queues.clear()
        return [job for job in jobs if not job.is_over]

    def _take_padded(self, queue: DeficitRoundRobinQueue[Item]) -> list[Item]:
        window: list[Item] = []
        while len(window) < _WINDOW_TEXTS and queue.peek() is not None:
            window.append(queue.take())
        if not window:
            return []
        chosen = take_padded_batch([item.tokens for item in window], self._policy)
        batch = [window[position] for position in chosen]
        for position in sorted(chosen, reverse=True):
            del window[position]
        queue.put_back(window)
        return batch

    def _stop_counting(self, batch: Sequence[Item]) -> None:
        taken_tokens = 0
        for item in batch:
            item.job.waiting_texts -= 1
            item.job.waiting_tokens -= item.tokens
            self._count_caller(item.caller, -item.tokens)
            taken_tokens += item.tokens
        self._count(-len(batch), -taken_tokens)

    def _count(self, texts: int, tokens: int) -> None:
        self.texts += texts
        self._tokens += tokens
        metrics.QUEUE_TEXTS.labels(self.name).set(self.texts)
        metrics.QUEUE_TOKENS.labels(self.name).set(self._tokens)

    def _count_caller(self, caller: str, tokens: int) -> None:
        if counted := self._tokens_of_caller.get(caller, 0) + tokens:
            self._tokens_of_caller[caller] = counted
        else:
            self._tokens_of_caller.pop(caller, None)


# The speed is taken from batches that fill this part of the budget; small ones are slow for other reasons.
_TELLING_PART = 0.25
_SPEED_SMOOTHING = 0.2
_DELAY_WHILE_SPEED_UNKNOWN_SECONDS = 1.0
# How much longer than estimated the work ahead of a call may take before its answer is late.
_CAUTION = 2.5


class Scheduler:
    """Jobs come in from the event loop, batches go out to the engine's thread."""

    def __init__(self, policy: BatchPolicy, *, limit_tokens: int) -> None:
        self._policy = policy
        self._limit_tokens = limit_tokens
        self._interactive = Lane("interactive", policy, self._is_over)
        self._bulk = Lane("bulk", policy, self._is_over)
        self._credit = BulkCredit(policy)
        self._errands: deque[EngineTask[Any]] = deque()
        self._is_errand_turn = True
        self._changed = threading.Condition()
        self._running_tokens = 0
        self._tokens_per_second: float | None = None
        self._closed_with: TextMatchError | None = None

    @contextmanager
    def admitted(self, tokens: int, urgency: CallContext) -> Iterator[None]:
        """Keep a place for a call of about so many tokens; its job is added inside.

        Raises:
            Overloaded: too much waits already. A call is let into an empty lane whatever its size.
            DeadlineTooShort: what waits ahead takes longer than the caller does.
        """
        lane = self._lane(urgency.is_bulk)
        with self._changed:
            self._check(lane, tokens, urgency)
            lane.reserve(urgency.caller, tokens)
        try:
            yield
        finally:
            with self._changed:
                lane.reserve(urgency.caller, -tokens)

    def add(self, job: Job) -> None:
        """Let the engine have a job.

        Raises:
            TextMatchError: what it was closed with.
        """
        with self._changed:
            if self._closed_with is not None:
                raise self._closed_with
            self._lane(job.is_bulk).add(job)
            self._changed.notify()

    def add_errand(self, errand: EngineTask[Any]) -> None:
        """Let the engine's thread do something: at once if it is idle, else between two batches.

        Raises:
            TextMatchError: what it was closed with.
        """
        with self._changed:
            if self._closed_with is not None:
                raise self._closed_with
            self._errands.append(errand)
            self._changed.notify()

    def discard(self, job: Job) -> None:
        """The caller has gone: what still waits of its job is not computed."""
        with self._changed:
            if not job.is_over:
                job.is_over = True
                self._lane(job.is_bulk).forget(job)
                metrics.DROPPED_TOTAL.labels("cancelled").inc()

    def take(self) -> list[Item] | EngineTask[Any]:
        """Wait for work and take the next batch, all of one model, or an errand; empty once it is closed.

        While texts wait, errands and batches take turns, so that no batch waits for more than one errand.
        """
        with self._changed:
            while self._closed_with is None:
                lane = self._next_lane()
                if self._errands and (lane is None or self._is_errand_turn):
                    self._is_errand_turn = False
                    return self._errands.popleft()
                if lane is None:
                    self._changed.wait()
                # Empty if the last deadline in the lane passed just now.
                elif batch := lane.take():
                    self._is_errand_turn = True
                    self._account(lane, batch)
                    return batch
        return []

    def note_speed(self, tokens: int, seconds: float) -> None:
        """A batch is computed: so many tokens, without padding, in so many seconds."""
        with self._changed:
            self._running_tokens = 0
            speed = tokens / max(seconds, 1e-6)
            if self._tokens_per_second is None:
                self._tokens_per_second = speed
            elif tokens >= _TELLING_PART * self._policy.token_budget:
                self._tokens_per_second += _SPEED_SMOOTHING * (speed - self._tokens_per_second)

    def close(self, error: TextMatchError | None = None) -> None:
        """Take no more jobs, end those that wait, and let `take` return."""
        with self._changed:
            self._closed_with = error or NotReady("the encoder is shutting down", retry_delay_seconds=1.0)
            for lane in (self._interactive, self._bulk):
                for job in lane.clear():
                    job.end(self._closed_with)
                    lane.forget(job)
            for errand in self._errands:
                errand.end(self._closed_with)
            self._errands.clear()
            self._changed.notify_all()

    def _lane(self, is_bulk: bool) -> Lane:
        return self._bulk if is_bulk else self._interactive

    def _check(self, lane: Lane, tokens: int, urgency: CallContext) -> None:
        is_full = lane.tokens > 0 and not self._has_room(lane, tokens, urgency.caller)
        if not is_full and self._is_in_time(self._ahead_of(lane, lane.tokens), tokens, urgency):
            return
        # Other callers' work that goes behind this call does not count; but to leave it out takes time.
        ahead_tokens = self._ahead_of(lane, lane.tokens_ahead(urgency.caller, tokens))
        speed = self._tokens_per_second
        delay_seconds = ahead_tokens / speed if speed else _DELAY_WHILE_SPEED_UNKNOWN_SECONDS
        if is_full:
            metrics.REJECTIONS_TOTAL.labels("overloaded").inc()
            message = f"{lane.tokens:,} {lane.name} tokens wait already; the limit is {self._limit_tokens:,}"
            raise Overloaded(message, retry_delay_seconds=delay_seconds)
        if not self._is_in_time(ahead_tokens, tokens, urgency):
            metrics.REJECTIONS_TOTAL.labels("deadline_too_short").inc()
            message = f"the work ahead takes about {delay_seconds:.2f} s, longer than the call waits"
            raise DeadlineTooShort(message, retry_delay_seconds=delay_seconds)

    def _has_room(self, lane: Lane, tokens: int, caller: str) -> bool:
        """Whether a call may wait too: within the limit, else within its caller's part of as much again."""
        if lane.tokens + tokens <= self._limit_tokens:
            return True
        part_tokens = self._limit_tokens // lane.callers_with(caller)
        is_small = lane.tokens_of(caller) + tokens <= part_tokens
        return is_small and lane.tokens + tokens <= 2 * self._limit_tokens

    def _ahead_of(self, lane: Lane, tokens_in_lane: int) -> int:
        """What is computed before a call that so many tokens of its own lane go before."""
        before_lane = self._interactive.tokens if lane is self._bulk else 0
        return self._running_tokens + before_lane + tokens_in_lane

    def _is_in_time(self, ahead_tokens: int, tokens: int, urgency: CallContext) -> bool:
        """Whether the caller still waits when its call is computed, as far as can be told.

        The estimate is of full speed; batches in a hurry are slower, so that there must be time to spare.
        """
        if urgency.deadline is None or not ahead_tokens or not self._tokens_per_second:
            return True
        work_seconds = (ahead_tokens + tokens) / self._tokens_per_second
        return time.monotonic() + _CAUTION * work_seconds <= urgency.deadline

    def _next_lane(self) -> Lane | None:
        interactive_waits, bulk_waits = self._interactive.has_work(), self._bulk.has_work()
        if not interactive_waits and not bulk_waits:
            return None
        is_bulk_turn = self._credit.is_bulk_turn(interactive_waits=interactive_waits, bulk_waits=bulk_waits)
        return self._lane(is_bulk_turn)

    def _account(self, lane: Lane, batch: list[Item]) -> None:
        self._running_tokens = sum(item.tokens for item in batch)
        is_bulk = lane is self._bulk
        self._credit.account(self._running_tokens, is_bulk=is_bulk, bulk_waits=self._bulk.has_work())

    def _is_over(self, job: Job) -> bool:
        """Whether nobody waits for a job any more; notices here when its deadline has passed."""
        if not job.is_over and job.deadline is not None and time.monotonic() > job.deadline:
            job.end(DeadlinePassed("the deadline passed while the texts waited"))
            self._lane(job.is_bulk).forget(job)
            metrics.DROPPED_TOTAL.labels("late").inc()
        return job.is_over
