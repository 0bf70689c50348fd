"""What waits for the engine: two lanes of texts, with limits on what is let in, and errands."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from services.encoder import metrics
from services.encoder.batching import BatchPolicy, BulkCredit, take_packed_batch, take_padded_batch
from services.encoder.jobs import EngineModel, Errand, Job
from textmatch.errors import DeadlinePassed, DeadlineTooShort, NotReady, Overloaded, TextMatchError
from textmatch.models.tokens import TokenizedText

# Texts that a batch is chosen from: enough to find some of like length, few enough to sort in no time.
_WINDOW_TEXTS = 256
# The speed is taken from batches that fill this part of the budget; small ones are slow for other reasons.
_TELLING_PART = 0.25
_SPEED_SMOOTHING = 0.2
_DELAY_WHILE_SPEED_UNKNOWN_SECONDS = 1.0
# How much longer than estimated the work ahead of a call may take before its answer is late.
_CAUTION = 2.5


class Item(NamedTuple):
    """One text of a job."""

    job: Job
    position: int
    tokens: int

    @property
    def text(self) -> TokenizedText:
        """What the model reads."""
        return self.job.texts[self.position]


@dataclass
class _Lane:
    """Jobs of one priority, and their texts by model, each in the order they came."""

    name: str
    queues: dict[EngineModel, deque[Item]] = field(default_factory=dict)
    texts: int = 0
    tokens: int = 0
    # Of calls that were let in and are still being tokenized.
    reserved_tokens: int = 0

    def add(self, job: Job) -> None:
        queue = self.queues.setdefault(job.model, deque())
        queue.extend(Item(job, position, text.token_count) for position, text in enumerate(job.texts))
        self._count(job.waiting_texts, job.waiting_tokens)

    def forget(self, job: Job) -> None:
        """Stop counting a job that is over; its items are thrown away when they come up."""
        self._count(-job.waiting_texts, -job.waiting_tokens)
        job.waiting_texts = job.waiting_tokens = 0

    def take(self, batch: Sequence[Item]) -> int:
        """Stop counting what the engine has taken; returns its tokens."""
        taken_tokens = 0
        for item in batch:
            item.job.waiting_texts -= 1
            item.job.waiting_tokens -= item.tokens
            taken_tokens += item.tokens
        self._count(-len(batch), -taken_tokens)
        return taken_tokens

    def drop(self, is_over: Callable[[Job], bool]) -> None:
        """Throw away items whose jobs are over, and with its last item a model: it may be served no more."""
        for queue in self.queues.values():
            while queue and is_over(queue[0].job):
                queue.popleft()
        self.queues = {model: queue for model, queue in self.queues.items() if queue}

    def oldest_queue(self) -> deque[Item] | None:
        """The queue of the model whose turn it is."""
        heads = [queue for queue in self.queues.values() if queue]
        return min(heads, key=lambda queue: queue[0].job.sequence, default=None)

    def _count(self, texts: int, tokens: int) -> None:
        self.texts += texts
        self.tokens += tokens
        metrics.QUEUE_TEXTS.labels(self.name).set(self.texts)
        metrics.QUEUE_TOKENS.labels(self.name).set(self.tokens)


class WaitingTexts:
    """Jobs come in from the event loop, batches go out to the engine's thread."""

    def __init__(self, policy: BatchPolicy, *, limit_tokens: int) -> None:
        self._policy = policy
        self._limit_tokens = limit_tokens
        self._interactive = _Lane("interactive")
        self._bulk = _Lane("bulk")
        self._credit = BulkCredit(policy)
        self._errands: deque[Errand[Any]] = deque()
        self._is_errand_turn = True
        self._changed = threading.Condition()
        self._running_tokens = 0
        self._tokens_per_second: float | None = None
        self._closed_with: TextMatchError | None = None

    @contextmanager
    def admitted(self, tokens: int, *, is_bulk: bool, deadline: float | None) -> Iterator[None]:
        """Keep a place for a call of about so many tokens; its job is added inside.

        Raises:
            Overloaded: too much waits already. A call is let into an empty lane whatever its size.
            DeadlineTooShort: what waits ahead takes longer than the caller does.
        """
        lane = self._lane(is_bulk)
        with self._changed:
            self._check(lane, tokens, deadline)
            lane.reserved_tokens += tokens
        try:
            yield
        finally:
            with self._changed:
                lane.reserved_tokens -= tokens

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

    def add_errand(self, errand: Errand[Any]) -> None:
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

    def take(self) -> list[Item] | Errand[Any]:
        """Wait for work and take the next batch, all of one model, or an errand; empty once it is closed.

        While texts wait, errands and batches take turns, so that no batch waits for more than one errand.
        """
        with self._changed:
            while self._closed_with is None:
                lane = self._next_lane()
                queue = lane.oldest_queue()
                if self._errands and (queue is None or self._is_errand_turn):
                    self._is_errand_turn = False
                    return self._errands.popleft()
                if queue is None:
                    self._changed.wait()
                elif batch := self._take(lane, queue):
                    self._is_errand_turn = True
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
                for job in {item.job for queue in lane.queues.values() for item in queue}:
                    if not job.is_over:
                        job.end(self._closed_with)
                        lane.forget(job)
                lane.queues.clear()
            for errand in self._errands:
                errand.end(self._closed_with)
            self._errands.clear()
            self._changed.notify_all()

    def _lane(self, is_bulk: bool) -> _Lane:
        return self._bulk if is_bulk else self._interactive

    def _check(self, lane: _Lane, tokens: int, deadline: float | None) -> None:
        in_lane = lane.tokens + lane.reserved_tokens
        ahead = self._running_tokens + self._interactive.tokens + self._interactive.reserved_tokens
        if lane is self._bulk:
            ahead += in_lane
        speed = self._tokens_per_second
        delay_seconds = ahead / speed if speed else _DELAY_WHILE_SPEED_UNKNOWN_SECONDS
        if in_lane and in_lane + tokens > self._limit_tokens:
            metrics.REJECTIONS_TOTAL.labels("overloaded").inc()
            message = f"{in_lane:,} {lane.name} tokens wait already; the limit is {self._limit_tokens:,}"
            raise Overloaded(message, retry_delay_seconds=delay_seconds)
        if speed and ahead and deadline is not None:
            self._check_deadline(deadline, (ahead + tokens) / speed, delay_seconds)

    def _check_deadline(self, deadline: float, work_seconds: float, delay_seconds: float) -> None:
        """Refuse what would be computed for nobody: the caller has gone when it is done.

        The estimate is of full speed; batches in a hurry are slower, so that there must be time to spare.
        """
        if time.monotonic() + _CAUTION * work_seconds > deadline:
            metrics.REJECTIONS_TOTAL.labels("deadline_too_short").inc()
            message = f"the work ahead takes about {delay_seconds:.2f} s, longer than the call waits"
            raise DeadlineTooShort(message, retry_delay_seconds=delay_seconds)

    def _next_lane(self) -> _Lane:
        for lane in (self._interactive, self._bulk):
            lane.drop(self._is_over)
        is_bulk_turn = self._credit.is_bulk_turn(
            interactive_waits=self._interactive.oldest_queue() is not None,
            bulk_waits=self._bulk.oldest_queue() is not None,
        )
        return self._lane(is_bulk_turn)

    def _take(self, lane: _Lane, queue: deque[Item]) -> list[Item]:
        """The next batch; empty if the last deadline in the queue passed just now."""
        window: list[Item] = []
        while queue and len(window) < _WINDOW_TEXTS:
            item = queue.popleft()
            if not self._is_over(item.job):
                window.append(item)
        if not window:
            return []
        take_batch = take_packed_batch if window[0].job.model.is_packed else take_padded_batch
        chosen = take_batch([item.tokens for item in window], self._policy)
        batch = [window[position] for position in chosen]
        for position in sorted(chosen, reverse=True):
            del window[position]
        queue.extendleft(reversed(window))
        self._running_tokens = lane.take(batch)
        self._credit.account(
            self._running_tokens, is_bulk=lane is self._bulk, bulk_waits=self._bulk.oldest_queue() is not None
        )
        return batch

    def _is_over(self, job: Job) -> bool:
        """Whether nobody waits for a job any more; notices here when its deadline has passed."""
        if not job.is_over and job.deadline is not None and time.monotonic() > job.deadline:
            job.end(DeadlinePassed("the deadline passed while the texts waited"))
            self._lane(job.is_bulk).forget(job)
            metrics.DROPPED_TOTAL.labels("late").inc()
        return job.is_over
