"""The queue in front of the inference thread: admission control, two lanes of texts, and tasks.

Interactive texts go ahead of bulk texts. Within a lane, models alternate batch by batch. Within a model,
callers share the tokens fairly.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from services.encoder import metrics
from services.encoder.batching import (
    BatchPolicy,
    BulkCredit,
    CallContext,
    CallLoad,
    EngineModel,
    EngineTask,
    Job,
    take_packed_batch,
    take_padded_batch,
)
from services.encoder.fair_queue import CallerTotals, DeficitRoundRobinQueue
from services.encoder.throughput import ModelSpeeds
from textmatch.errors import (
    DeadlinePassed,
    DeadlineTooShort,
    InvalidInput,
    NotReady,
    Overloaded,
    TextMatchError,
    Violation,
)
from textmatch.models.fast_tokenizer import TokenizedText
from textmatch.v1 import error_reason_pb2

# Texts that a padded batch is chosen from: enough to find similar lengths, few enough to sort quickly.
_WINDOW_TEXTS = 256
_RETRY_DELAY_BEFORE_FIRST_MEASUREMENT_SECONDS = 1.0
# A call is refused if queued work, taking this many times its estimate, would make the answer late.
_SAFETY_FACTOR = 2.5


@dataclass(frozen=True)
class CallSize:
    """What a call asks for: about so many tokens of a model, from texts of so many bytes of UTF-8.

    `tokenize_seconds` is about how long it takes until all of them are tokenized.
    """

    model: EngineModel
    tokens: int
    text_bytes: int = 0
    tokenize_seconds: float = 0.0


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
    """The queued texts of one priority, by model and by caller, and the calls that will queue texts.

    Args:
        part_tokens: the most that a call occupies. A larger call is queued part by part.
        is_over: whether a job no longer needs to be computed.
    """

    def __init__(self, name: str, *, is_bulk: bool, part_tokens: int, is_over: Callable[[Job], bool]) -> None:
        self.name = name
        self.is_bulk = is_bulk
        self.texts = 0
        # Occupied by admitted calls, tokenized or not.
        self.tokens = 0
        self.text_bytes = CallerTotals()
        self._part_tokens = part_tokens
        self._is_over = is_over
        # The first model is next.
        self._queues: dict[EngineModel, DeficitRoundRobinQueue[Item]] = {}
        self._queued_tokens = 0
        self._callers = CallerTotals()
        # Tokens that are to be computed for admitted calls, by model and caller.
        self._loads: dict[EngineModel, CallerTotals] = {}

    def has_room(self, caller: str, tokens: int, limit_tokens: int) -> bool:
        """Whether a call is within the limit, or within its caller's equal part of the same amount again."""
        occupied = min(tokens, self._part_tokens)
        if not self.tokens or self.tokens + occupied <= limit_tokens:
            return True
        is_small = self._callers.of(caller) + tokens <= limit_tokens // self._count_with(caller)
        return is_small and self.tokens + occupied <= 2 * limit_tokens

    def has_room_for_bytes(self, caller: str, text_bytes: int, limit_bytes: int) -> bool:
        """As `has_room`, for the texts that calls hold in memory until they are answered."""
        held = self.text_bytes.tokens
        if not held or held + text_bytes <= limit_bytes:
            return True
        is_small = self.text_bytes.of(caller) + text_bytes <= limit_bytes // self._count_with(caller)
        return is_small and held + text_bytes <= 2 * limit_bytes

    def tokens_until_room(self, tokens: int, limit_tokens: int) -> int:
        """How many tokens must be computed until a call is within the limit."""
        return max(0, self.tokens + min(tokens, self._part_tokens) - limit_tokens)

    def seconds_ahead(self, size: CallSize, caller: str, speeds: ModelSpeeds) -> float:
        """How long the lane computes other calls, of this caller too, before a new one is done.

        Other callers of the model get as much as this caller, other models as many batches as this model.
        """
        quantum = speeds.policy(size.model, is_bulk=self.is_bulk).quantum_tokens
        of_model = self._loads.get(size.model)
        tokens = of_model.ahead_of(caller, size.tokens, quantum) if of_model else 0
        ahead_seconds = speeds.seconds(size.model, tokens, is_bulk=self.is_bulk)
        own_seconds = speeds.seconds(size.model, size.tokens, is_bulk=self.is_bulk)
        others_seconds = 0.0
        for model, load in self._loads.items():
            if model is not size.model:
                share = max(own_seconds + ahead_seconds, speeds.batch_seconds(model, is_bulk=self.is_bulk))
                others_seconds += min(share, speeds.seconds(model, load.tokens, is_bulk=self.is_bulk))
        return ahead_seconds + others_seconds

    def seconds(self, speeds: ModelSpeeds) -> float:
        """How long all admitted calls of the lane take."""
        loads = self._loads.items()
        return sum(speeds.seconds(model, load.tokens, is_bulk=self.is_bulk) for model, load in loads)

    def count(self, load: CallLoad, tokens: int) -> None:
        """Change the tokens that are to be computed for a call."""
        before = min(load.tokens, self._part_tokens)
        load.tokens += tokens
        self.tokens += min(load.tokens, self._part_tokens) - before
        self._callers.add(load.caller, tokens)
        of_model = self._loads.setdefault(load.model, CallerTotals())
        of_model.add(load.caller, tokens)
        if not of_model:
            del self._loads[load.model]

    def count_bytes(self, caller: str, text_bytes: int) -> None:
        """Change the bytes of the texts of admitted calls."""
        self.text_bytes.add(caller, text_bytes)
        metrics.QUEUE_BYTES.labels(self.name).set(self.text_bytes.tokens)

    def add(self, job: Job, policy: BatchPolicy) -> None:
        """Queue the texts of a job."""
        queue = self._queues.get(job.model)
        if queue is None:
            queue = DeficitRoundRobinQueue(policy.quantum_tokens, lambda item: self._is_over(item.job))
            self._queues[job.model] = queue
        items = (Item(job, position, text.token_count) for position, text in enumerate(job.texts))
        queue.add(job.call.caller, items)
        self._count_queued(job.queued_texts, job.queued_tokens)
        self.count(job.load, job.queued_tokens - job.estimated_tokens)

    def forget(self, job: Job) -> None:
        """Stop counting a job that is over; its items are dropped when they reach the front."""
        self._count_queued(-job.queued_texts, -job.queued_tokens)
        self.count(job.load, -job.queued_tokens)
        job.queued_texts = job.queued_tokens = 0

    def next_model(self) -> EngineModel | None:
        """The model of the next batch; None if no text is queued.

        Drops models without texts: a reload may have replaced them.
        """
        self._queues = {model: queue for model, queue in self._queues.items() if queue.peek() is not None}
        return next(iter(self._queues), None)

    def take(self, model: EngineModel, policy: BatchPolicy) -> list[Item]:
        """The next batch, of the model that is next; empty if all deadlines passed just now."""
        queue = self._queues[model]
        queue.quantum_tokens = policy.quantum_tokens
        batch = take_packed_batch(queue, policy) if model.is_packed else _take_padded(queue, policy)
        self._queues[model] = self._queues.pop(model)
        for item in batch:
            item.job.queued_texts -= 1
            item.job.queued_tokens -= item.tokens
            self.count(item.job.load, -item.tokens)
        self._count_queued(-len(batch), -sum(item.tokens for item in batch))
        return batch

    def clear(self) -> list[Job]:
        """Drop all items; returns the jobs that were queued."""
        jobs = {item.job: None for queue in self._queues.values() for item in queue}
        self._queues.clear()
        return [job for job in jobs if not job.is_over]

    def _count_with(self, caller: str) -> int:
        """Callers with tokens, this one included."""
        return len(self._callers) + (caller not in self._callers)

    def _count_queued(self, texts: int, tokens: int) -> None:
        self.texts += texts
        self._queued_tokens += tokens
        metrics.QUEUE_TEXTS.labels(self.name).set(self.texts)
        metrics.QUEUE_TOKENS.labels(self.name).set(self._queued_tokens)


def _take_padded(queue: DeficitRoundRobinQueue[Item], policy: BatchPolicy) -> list[Item]:
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


class Scheduler:
    """The event loop adds jobs, the inference thread takes batches and tasks.

    Args:
        policy: how texts become batches.
        limit_tokens: tokens that may be queued in each lane.
        limit_bytes: bytes of UTF-8 that the calls of each lane may hold.
    """

    def __init__(self, policy: BatchPolicy, *, limit_tokens: int, limit_bytes: int = sys.maxsize) -> None:
        self._limit_tokens = limit_tokens
        self._limit_bytes = limit_bytes
        # Two callers with calls of any size have room at the same time.
        self.part_tokens = max(1, limit_tokens // 2)
        self._interactive = self._new_lane("interactive", is_bulk=False)
        self._bulk = self._new_lane("bulk", is_bulk=True)
        self._bulk_share = policy.bulk_share
        self._credit = BulkCredit(policy.bulk_share)
        self._speeds = ModelSpeeds(policy)
        self._tasks: deque[EngineTask[Any]] = deque()
        self._is_task_next = True
        self._changed = threading.Condition()
        # When the running batch probably ends.
        self._busy_until = 0.0
        self._closed_with: TextMatchError | None = None

    @contextmanager
    def admitted(self, size: CallSize, call: CallContext) -> Iterator[CallLoad]:
        """Reserve room for a call while it is tokenized, queued and computed in the block.

        A call of more than `part_tokens` is queued in parts, and occupies no more than one.

        Raises:
            InvalidInput: its texts alone are larger than all calls may be together.
            Overloaded: the lane is full. An empty lane admits a call of any number of tokens.
            DeadlineTooShort: the work takes longer than the time until the call's deadline.
        """
        lane = self._lane(call.is_bulk)
        load = CallLoad(size.model, call.caller)
        with self._changed:
            self._check_room(lane, size, call)
            self._check_deadline(lane, size, call)
            lane.count(load, size.tokens)
            lane.count_bytes(call.caller, size.text_bytes)
        try:
            yield load
        finally:
            with self._changed:
                lane.count(load, -load.tokens)
                lane.count_bytes(call.caller, -size.text_bytes)

    def add(self, job: Job) -> None:
        """Queue a job.

        Raises:
            TextMatchError: the error that the scheduler was closed with.
        """
        is_bulk = job.call.is_bulk
        with self._opened():
            self._lane(is_bulk).add(job, self._speeds.policy(job.model, is_bulk=is_bulk))

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
                model, lane = self._next()
                if self._tasks and (model is None or self._is_task_next):
                    self._is_task_next = False
                    return self._tasks.popleft()
                if model is None:
                    self._changed.wait()
                # Empty if the last deadline in the lane passed just now.
                elif batch := lane.take(model, self._speeds.policy(model, is_bulk=lane.is_bulk)):
                    self._is_task_next = True
                    tokens = sum(item.tokens for item in batch)
                    seconds = self._speeds.seconds(model, tokens, is_bulk=lane.is_bulk)
                    self._busy_until = time.monotonic() + seconds
                    bulk_queued = self._bulk.next_model() is not None
                    self._credit.account(seconds, is_bulk=lane.is_bulk, bulk_queued=bulk_queued)
                    return batch
        return []

    def note_speed(self, model: EngineModel, tokens: int, seconds: float, *, is_bulk: bool) -> None:
        """Record a computed batch: its tokens, without padding, and the seconds it took."""
        with self._changed:
            self._busy_until = 0.0
            self._speeds.note(model, tokens, seconds, is_bulk=is_bulk)

    def lower_budget(self, model: EngineModel, token_budget: int) -> None:
        """Make no batches of this model that are larger: such a batch did not fit into memory."""
        with self._changed:
            self._speeds.lower_budget(model, token_budget)

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

    def _new_lane(self, name: str, *, is_bulk: bool) -> Lane:
        return Lane(name, is_bulk=is_bulk, part_tokens=self.part_tokens, is_over=self._is_over)

    def _lane(self, is_bulk: bool) -> Lane:
        return self._bulk if is_bulk else self._interactive

    def _check_room(self, lane: Lane, size: CallSize, call: CallContext) -> None:
        if size.text_bytes > self._limit_bytes:
            problem = f"have {size.text_bytes:,} bytes together; the limit is {self._limit_bytes:,}"
            too_many = error_reason_pb2.ERROR_REASON_TOO_MANY_ITEMS
            raise InvalidInput([Violation("texts", too_many, f"{problem}; send fewer in a call")])
        if not lane.has_room(call.caller, size.tokens, self._limit_tokens):
            problem = f"{lane.tokens:,} {lane.name} tokens are queued; the limit is {self._limit_tokens:,}"
        elif not lane.has_room_for_bytes(call.caller, size.text_bytes, self._limit_bytes):
            held = lane.text_bytes.tokens
            problem = f"{lane.name} calls hold {held:,} bytes of texts; the limit is {self._limit_bytes:,}"
        else:
            return
        metrics.REJECTIONS_TOTAL.labels("overloaded").inc()
        delay_seconds = _RETRY_DELAY_BEFORE_FIRST_MEASUREMENT_SECONDS
        if self._speeds.is_known(size.model, is_bulk=lane.is_bulk):
            excess_tokens = lane.tokens_until_room(size.tokens, self._limit_tokens)
            ahead_seconds = self._running_seconds() + self._queued_seconds(lane, size, call.caller)
            delay_seconds = max(ahead_seconds, self._seconds(lane, size.model, excess_tokens))
        raise Overloaded(problem, retry_delay_seconds=delay_seconds)

    def _check_deadline(self, lane: Lane, size: CallSize, call: CallContext) -> None:
        if call.deadline is None or not self._speeds.is_known(size.model, is_bulk=lane.is_bulk):
            return
        running_seconds = self._running_seconds()
        queued_seconds = self._queued_seconds(lane, size, call.caller)
        own_seconds = size.tokenize_seconds + self._seconds(lane, size.model, size.tokens)
        # New callers delay those that are queued. With nothing queued, the estimate needs no reserve.
        factor = _SAFETY_FACTOR if queued_seconds else 1.0
        expected_seconds = running_seconds + factor * (queued_seconds + own_seconds)
        if time.monotonic() + expected_seconds <= call.deadline:
            return
        metrics.REJECTIONS_TOTAL.labels("deadline_too_short").inc()
        ahead_seconds = running_seconds + queued_seconds
        message = f"the queued work takes about {ahead_seconds:.2f} s and the call {own_seconds:.2f} s"
        raise DeadlineTooShort(
            f"{message}; the deadline is too short for it", retry_delay_seconds=ahead_seconds or None
        )

    def _running_seconds(self) -> float:
        """How long the running batch probably still takes."""
        return max(0.0, self._busy_until - time.monotonic())

    def _queued_seconds(self, lane: Lane, size: CallSize, caller: str) -> float:
        """How long the engine computes queued work for others before it has computed a new call."""
        in_lane = lane.seconds_ahead(size, caller, self._speeds)
        work = in_lane + self._seconds(lane, size.model, size.tokens)
        bulk_per_interactive = self._bulk_share / (1 - self._bulk_share)
        if not lane.is_bulk:
            return in_lane + min(self._bulk.seconds(self._speeds), work * bulk_per_interactive)
        # What is queued goes ahead; as much as came recently will come.
        queued = min(self._interactive.seconds(self._speeds), work / bulk_per_interactive)
        share = min(1 - self._bulk_share, self._speeds.interactive_share())
        return in_lane + max(queued, work * share / (1 - share))

    def _seconds(self, lane: Lane, model: EngineModel, tokens: int) -> float:
        return self._speeds.seconds(model, tokens, is_bulk=lane.is_bulk)

    def _next(self) -> tuple[EngineModel | None, Lane]:
        """The model and the lane of the next batch; no model if no text is queued."""
        interactive, bulk = self._interactive.next_model(), self._bulk.next_model()
        if bulk is None:
            return interactive, self._interactive
        is_bulk = self._credit.is_bulk_next(
            interactive_queued=interactive is not None,
            bulk_queued=True,
            bulk_cost=self._speeds.batch_seconds(bulk, is_bulk=True),
        )
        return (bulk, self._bulk) if is_bulk else (interactive, self._interactive)

    def _is_over(self, job: Job) -> bool:
        """Whether a job no longer needs to be computed; ends it here if its deadline has passed."""
        deadline = job.call.deadline
        if not job.is_over and deadline is not None and time.monotonic() > deadline:
            job.end(DeadlinePassed("the deadline passed while the texts were queued"))
            self._lane(job.call.is_bulk).forget(job)
            metrics.DROPPED_TOTAL.labels("late").inc()
        return job.is_over
