"""A call's way through the service: let in, tokenised, computed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from services.encoder import metrics
from services.encoder.jobs import EngineModel, Job, Rows, Urgency
from services.encoder.waiting import WaitingTexts
from textmatch.models.tokens import TokenizedText

# Two keep the engine fed: while one batch is computed the next calls are tokenised.
_TOKENISER_THREADS = 2
# Fewer characters than this are tokenised faster than a thread is woken.
_INLINE_CHARACTERS = 2_000
_BYTES_PER_TOKEN = 4


@dataclass(frozen=True)
class Work:
    """What to compute for a call.

    `texts` are all its texts, to judge how large it is; `tokenize` turns them into what the model reads, one
    for each row wanted; `name_item` says what the caller calls the text at a position.
    """

    model: EngineModel
    texts: Sequence[str]
    max_tokens: int
    tokenize: Callable[[], list[TokenizedText]]
    name_item: Callable[[int], str]


@dataclass(frozen=True)
class Computed:
    """`rows` is (count, columns); `texts` is what the model read."""

    rows: Rows
    texts: Sequence[TokenizedText]


class Pipeline:
    """Runs in the event loop, which it never holds up: tokenisers and models run in threads."""

    def __init__(self, waiting: WaitingTexts) -> None:
        self._waiting = waiting
        self._tokenisers = ThreadPoolExecutor(_TOKENISER_THREADS, thread_name_prefix="tokenise")

    async def compute(self, work: Work, urgency: Urgency) -> Computed:
        """Compute a call's texts together with those of other calls.

        Raises:
            Overloaded: too much waits already.
            DeadlineTooShort: the answer would come too late.
            DeadlinePassed: it did not come in time.
            InvalidInput: naming the texts that the model failed on.
            NotReady: the encoder is ending.
        """
        size_tokens = sum(min(work.max_tokens, _estimate_tokens(text)) for text in work.texts)
        with self._waiting.admitted(size_tokens, urgency):
            texts = await self._tokenize(work)
            job = Job(work.model, texts, urgency, work.name_item)
            self._waiting.add(job)
        try:
            return Computed(await job.result(), texts)
        except asyncio.CancelledError:
            self._waiting.discard(job)
            raise

    def close(self) -> None:
        """End the threads."""
        self._tokenisers.shutdown(cancel_futures=True)

    async def _tokenize(self, work: Work) -> list[TokenizedText]:
        started = time.perf_counter()
        if sum(map(len, work.texts)) <= _INLINE_CHARACTERS:
            texts = work.tokenize()
        else:
            texts = await asyncio.get_running_loop().run_in_executor(self._tokenisers, work.tokenize)
        metrics.STAGE_SECONDS.labels("tokenise").observe(time.perf_counter() - started)
        metrics.TRUNCATED_TOTAL.inc(sum(text.truncated for text in texts))
        return texts


def _estimate_tokens(text: str) -> int:
    return len(text.encode()) // _BYTES_PER_TOKEN + 2
