"""The texts of one priority that wait for the engine: by model, and by caller."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from services.encoder import metrics
from services.encoder.batching import BatchPolicy, take_packed_batch, take_padded_batch
from services.encoder.jobs import EngineModel, Job
from services.encoder.turns import TurnQueue
from textmatch.models.tokens import TokenizedText

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
        self._queues: dict[EngineModel, TurnQueue[Item]] = {}
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
            queue = TurnQueue(self._policy.turn_tokens, lambda item: self._is_over(item.job))
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

    def _take_padded(self, queue: TurnQueue[Item]) -> list[Item]:
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
