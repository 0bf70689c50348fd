"""The queue in front of the inference thread: admission control, two lanes of texts, and tasks.

Interactive texts go ahead of bulk texts. Within a lane, models alternate batch by batch. Within a model,
callers share the tokens fairly.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
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

# Texts that a padded batch is chosen from: enough to find similar lengths, few enough to sort quickly.
_WINDOW_TEXTS = 256
# The speed is measured on batches that fill this share of the token budget; small batches are less efficient.
_MEASURED_BATCH_SHARE = 0.25
_SPEED_SMOOTHING = 0.2
_RETRY_DELAY_BEFORE_FIRST_MEASUREMENT_SECONDS = 1.0
# A call is refused if queued work, taking this many times its estimate, would make the answer late.
_SAFETY_FACTOR = 2.5


class Item(NamedTuple):
    """One queued text of a job."""

    job: Job
    position: int
    tokens: int

    @property
    def caller(self) -> str:
        """The caller of its job."""
        return self.job.call.caller

    @property
    def text(self) -> TokenizedText:
        """The input of the model."""
        return self.job.texts[self.position]


class Lane:
    """The queued texts of one priority, by model and by caller.

    Args:
        is_over: whether a job no longer needs to be computed.
    """

    def __init__(self, name: str, policy: BatchPolicy, is_over: Callable[[Job], bool]) -> None:
        self.name = name
        self.texts = 0
        self._policy = policy
        self._is_over = is_over
        # Token budgets of models that ran out of memory.
        self._budgets: weakref.WeakKeyDictionary[EngineModel, int] = weakref.WeakKeyDictionary()
        # The first model is next.
        self._queues: dict[EngineModel, DeficitRoundRobinQueue[Item]] = {}
        self._queued_tokens = 0
        self._reserved_tokens = 0
        # Queued and reserved tokens by caller; callers without tokens are removed.
        self._tokens_of_caller: dict[str, int] = {}

    @property
    def tokens(self) -> int:
        """Tokens that are queued or reserved."""
        return self._queued_tokens + self._reserved_tokens

    def has_room(self, caller: str, tokens: int, limit_tokens: int) -> bool:
        """Whether a call is within the limit, or within its caller's equal part of the same amount again."""
        if not self.tokens or self.tokens + tokens <= limit_tokens:
            return True
        callers = len(self._tokens_of_caller) + (caller not in self._tokens_of_caller)
        is_small = self._tokens_of_caller.get(caller, 0) + tokens <= limit_tokens // callers
        return is_small and self.tokens + tokens <= 2 * limit_tokens

    def tokens_ahead(self, caller: str, tokens: int) -> int:
        """Tokens that are computed before the last text of a new call of `tokens`.

        Until then every other caller gets at most as many quanta as this one.
        """
        share = max(self._tokens_of_caller.get(caller, 0) + tokens, self._policy.quantum_tokens)
        return sum(min(queued, share) for queued in self._tokens_of_caller.values())

    def reserve(self, caller: str, tokens: int) -> None:
        """Count a call that is being tokenised; negative tokens release the reservation."""
        self._reserved_tokens += tokens
        self._count_caller(caller, tokens)

    def add(self, job: Job) -> None:
        """Queue the texts of a job."""
        queue = self._queues.get(job.model)
        if queue is None:
            queue = DeficitRoundRobinQueue(self._policy.quantum_tokens, lambda item: self._is_over(item.job))
            self._queues[job.model] = queue
        items = (Item(job, position, text.token_count) for position, text in enumerate(job.texts))
        queue.add(job.call.caller, items)
        self._count(job.queued_texts, job.queued_tokens)
        self._count_caller(job.call.caller, job.queued_tokens)

    def forget(self, job: Job) -> None:
        """Stop counting a job that is over; its items are dropped when they reach the front."""
        self._count(-job.queued_texts, -job.queued_tokens)
        self._count_caller(job.call.caller, -job.queued_tokens)
        job.queued_texts = job.queued_tokens = 0

    def has_work(self) -> bool:
        """Whether any text is queued. Drops models without texts: a reload may have replaced them."""
        self._queues = {model: queue for model, queue in self._queues.items() if queue.peek() is not None}
        return bool(self._queues)

    def take(self) -> list[Item]:
        """The next batch, all of one model, after `has_work`; empty if all deadlines passed since then."""
        model, queue = next(iter(self._queues.items()))
        policy = self._policy
        if (lowered := self._budgets.get(model)) is not None:
            policy = replace(policy, token_budget=min(lowered, policy.token_budget))
        batch = take_packed_batch(queue, policy) if model.is_packed else self._take_padded(queue, policy)
        self._queues[model] = self._queues.pop(model)
        for item in batch:
            item.job.queued_texts -= 1
            item.job.queued_tokens -= item.tokens
            self._count_caller(item.caller, -item.tokens)
        self._count(-len(batch), -sum(item.tokens for item in batch))
        return batch

    def clear(self) -> list[Job]:
        """Drop all items; returns the jobs that were queued."""
        jobs = {item.job: None for queue in self._queues.values() for item in queue}
        self._queues.clear()
        return [job for job in jobs if not job.is_over]

    def lower_budget(self, model: EngineModel, tokens: int) -> None:
        """Limit later batches of a model to fewer tokens than the policy does."""
        self._budgets[model] = min(tokens, self._budgets.get(model, tokens))

    def _take_padded(self, queue: DeficitRoundRobinQueue[Item], policy: BatchPolicy) -> list[Item]:
        window: list[Item] = []
        while len(window) < _WINDOW_TEXTS and queue.peek() is not None:
            window.append(queue.take())
        if not window:
            return []
        chosen = take_padded_batch([item.tokens for item in window], policy)
        batch = [window[position] for position in chosen]
        for position in sorted(chosen, reverse=True):
            del window[position]
        queue.put_back(window)
        return batch

    def _count(self, texts: int, tokens: int) -> None:
        self.texts += texts
        self._queued_tokens += tokens
        metrics.QUEUE_TEXTS.labels(self.name).set(self.texts)
        metrics.QUEUE_TOKENS.labels(self.name).set(self._queued_tokens)

    def _count_caller(self, caller: str, tokens: int) -> None:
        if counted := self._tokens_of_caller.get(caller, 0) + tokens:
            self._tokens_of_caller[caller] = counted
        else:
            self._tokens_of_caller.pop(caller, None)


class Scheduler:
    """The event loop adds jobs, the inference thread takes batches and tasks.

    Args:
        policy: how texts become batches.
        limit_tokens: tokens that may be queued in each lane.
    """

    def __init__(self, policy: BatchPolicy, *, limit_tokens: int) -> None:
        self._policy = policy
        self._limit_tokens = limit_tokens
        self._interactive = Lane("interactive", policy, self._is_over)
        self._bulk = Lane("bulk", policy, self._is_over)
        self._credit = BulkCredit(policy)
        self._tasks: deque[EngineTask[Any]] = deque()
        self._is_task_next = True
        self._changed = threading.Condition()
        self._running_tokens = 0
        self._tokens_per_second: float | None = None
        self._closed_with: TextMatchError | None = None

    @contextmanager
    def admitted(self, tokens: int, call: CallContext) -> Iterator[None]:
        """Reserve room for a call of about `tokens`; the caller adds the job in the block.

        Raises:
            Overloaded: the lane is full. An empty lane admits a call of any size.
            DeadlineTooShort: the queued work takes longer than the time until the call's deadline.
        """
        lane = self._lane(call.is_bulk)
        with self._changed:
            self._check_admission(lane, tokens, call)
            lane.reserve(call.caller, tokens)
        try:
            yield
        finally:
            with self._changed:
                lane.reserve(call.caller, -tokens)

    def add(self, job: Job) -> None:
        """Queue a job.

        Raises:
            TextMatchError: the error that the scheduler was closed with.
        """
        with self._opened():
            self._lane(job.call.is_bulk).add(job)

    def add_task(self, task: EngineTask[Any]) -> None:
        """Queue a task: it runs immediately if the inference thread is idle, else between two batches.

        Raises:
            TextMatchError: the error that the scheduler was closed with.
        """
        with self._opened():
            self._tasks.append(task)

    def discard(self, job: Job) -> None:
        """Drop the queued texts of a job whose caller has gone."""
        with self._changed:
            if not job.is_over:
                job.is_over = True
                self._lane(job.call.is_bulk).forget(job)
                metrics.DROPPED_TOTAL.labels("cancelled").inc()

    def take(self) -> list[Item] | EngineTask[Any]:
        """Wait for work and take the next batch, all of one model, or a task; empty once closed.

        While texts are queued, tasks and batches alternate: no batch waits for more than one task.
        """
        with self._changed:
            while self._closed_with is None:
                lane = self._next_lane()
                if self._tasks and (lane is None or self._is_task_next):
                    self._is_task_next = False
                    return self._tasks.popleft()
                if lane is None:
                    self._changed.wait()
                # Empty if the last deadline in the lane passed just now.
                elif batch := lane.take():
                    self._is_task_next = True
                    self._running_tokens = sum(item.tokens for item in batch)
                    is_bulk, bulk_queued = lane is self._bulk, self._bulk.has_work()
                    self._credit.account(self._running_tokens, is_bulk=is_bulk, bulk_queued=bulk_queued)
                    return batch
        return []

    def note_speed(self, tokens: int, seconds: float) -> None:
        """Record a computed batch: its tokens, without padding, and the seconds it took."""
        with self._changed:
            self._running_tokens = 0
            speed = tokens / max(seconds, 1e-6)
            if self._tokens_per_second is None:
                self._tokens_per_second = speed
            elif tokens >= _MEASURED_BATCH_SHARE * self._policy.token_budget:
                self._tokens_per_second += _SPEED_SMOOTHING * (speed - self._tokens_per_second)

    def lower_budget(self, model: EngineModel, tokens: int) -> None:
        """Make later batches of a model smaller; a single text of any length still is a batch."""
        with self._changed:
            for lane in (self._interactive, self._bulk):
                lane.lower_budget(model, max(1, tokens))

    def end(self, job: Job, error: TextMatchError) -> None:
        """Fail a job, and drop its queued texts."""
        with self._changed:
            job.end(error)
            self._lane(job.call.is_bulk).forget(job)

    def close(self, error: TextMatchError | None = None) -> None:
        """Accept no more work, fail what is queued, and let `take` return."""
        with self._changed:
            self._closed_with = error or NotReady("the encoder is shutting down", retry_delay_seconds=1.0)
            for lane in (self._interactive, self._bulk):
                for job in lane.clear():
                    job.end(self._closed_with)
                    lane.forget(job)
            for task in self._tasks:
                task.end(self._closed_with)
            self._tasks.clear()
            self._changed.notify_all()

    @contextmanager
    def _opened(self) -> Iterator[None]:
        """Hold the lock while work is added, then wake the inference thread."""
        with self._changed:
            if self._closed_with is not None:
                raise self._closed_with
            yield
            self._changed.notify()

    def _lane(self, is_bulk: bool) -> Lane:
        return self._bulk if is_bulk else self._interactive

    def _check_admission(self, lane: Lane, tokens: int, call: CallContext) -> None:
        is_full = not lane.has_room(call.caller, tokens, self._limit_tokens)
        if not is_full and self._is_in_time(self._ahead_of(lane, lane.tokens), tokens, call):
            return
        # Exclude texts of other callers that are served after this call, which takes longer to compute.
        ahead_tokens = self._ahead_of(lane, lane.tokens_ahead(call.caller, tokens))
        speed = self._tokens_per_second
        delay_seconds = ahead_tokens / speed if speed else _RETRY_DELAY_BEFORE_FIRST_MEASUREMENT_SECONDS
        if is_full:
            metrics.REJECTIONS_TOTAL.labels("overloaded").inc()
            message = f"{lane.tokens:,} {lane.name} tokens are queued; the limit is {self._limit_tokens:,}"
            raise Overloaded(message, retry_delay_seconds=delay_seconds)
        if not self._is_in_time(ahead_tokens, tokens, call):
            metrics.REJECTIONS_TOTAL.labels("deadline_too_short").inc()
            message = f"the queued work takes about {delay_seconds:.2f} s; the deadline is too short for it"
            raise DeadlineTooShort(message, retry_delay_seconds=delay_seconds)

    def _ahead_of(self, lane: Lane, tokens_in_lane: int) -> int:
        """Tokens computed before a call, given those ahead of it in its own lane."""
        before_lane = self._interactive.tokens if lane is self._bulk else 0
        return self._running_tokens + before_lane + tokens_in_lane

    def _is_in_time(self, ahead_tokens: int, tokens: int, call: CallContext) -> bool:
        """Whether a call is probably computed before its deadline.

        The estimate assumes full batches. Small batches are slower, hence the safety factor.
        """
        if call.deadline is None or not ahead_tokens or not self._tokens_per_second:
            return True
        work_seconds = (ahead_tokens + tokens) / self._tokens_per_second
        return time.monotonic() + _SAFETY_FACTOR * work_seconds <= call.deadline

    def _next_lane(self) -> Lane | None:
        interactive_queued, bulk_queued = self._interactive.has_work(), self._bulk.has_work()
        if not interactive_queued and not bulk_queued:
            return None
        is_bulk = self._credit.is_bulk_next(interactive_queued=interactive_queued, bulk_queued=bulk_queued)
        return self._lane(is_bulk)

    def _is_over(self, job: Job) -> bool:
        """Whether a job no longer needs to be computed; ends it here if its deadline has passed."""
        deadline = job.call.deadline
        if not job.is_over and deadline is not None and time.monotonic() > deadline:
            job.end(DeadlinePassed("the deadline passed while the texts were queued"))
            self._lane(job.call.is_bulk).forget(job)
            metrics.DROPPED_TOTAL.labels("late").inc()
        return job.is_over
