"""One Match: embed the query, recall candidates, score the best of them, combine.

Identical work that is asked for while it is being done is done once.

How long the stages of a Match take.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np

from services.matcher import metrics
from services.matcher.lexical_fallback import Found, Hurry
from services.matcher.ranking import Candidate, combine, ranked, weights_of
from services.matcher.reranker import Reranker, RerankResult
from services.matcher.retriever import EmbeddedQuery, Retriever, before, recall_mode
from textmatch.documents import Document
from textmatch.index.client import CollectionGone
from textmatch.index.index import Index
from textmatch.index.search import Hit
from textmatch.score_fusion import Weights
from textmatch.types import DegradedReason, MatchOptions, MatchResult, Recall, Rerank, StageTimings

Answer = TypeVar("Answer")

# Who has more than twice as much time as running work was given can hope for a better answer.
_MIN_TIME_SHARE = 0.5


@dataclass
class _Flight(Generic[Answer]):
    task: asyncio.Task[Answer]
    deadline: float
    waiting: int = 0


class SingleFlight(Generic[Answer]):
    """Work goes on as long as anybody waits for it: a caller who leaves takes nothing from the others."""

    def __init__(self, on_shared: Callable[[], None]) -> None:
        self._on_shared = on_shared
        self._flights: dict[Hashable, _Flight[Answer]] = {}

    async def run(self, key: Hashable, deadline: float, start: Callable[[], Awaitable[Answer]]) -> Answer:
        """The answer of the work with this key, started if none runs that fits the deadline.

        Args:
            deadline: by `time.monotonic()`; work that may end later is not waited for.
        """
        flight = self._flights.get(key)
        if flight is None or not _fits(flight.deadline, deadline):
            flight = _Flight(asyncio.ensure_future(start()), deadline)
            self._flights[key] = flight
        else:
            self._on_shared()
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if flight.waiting == 0:
                flight.task.cancel()
            if self._flights.get(key) is flight and (flight.task.done() or flight.waiting == 0):
                del self._flights[key]


def _fits(flight_deadline: float, own_deadline: float) -> bool:
    now = time.monotonic()
    return (own_deadline - now) * _MIN_TIME_SHARE <= flight_deadline - now <= own_deadline - now


@contextmanager
def timed(timings: StageTimings, stage: str, part: str = "") -> Iterator[None]:
    """Adds to the time of a stage; the metric has its parts apart."""
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - started
        setattr(timings, f"{stage}_ms", getattr(timings, f"{stage}_ms") + seconds * 1e3)
        metrics.MATCH_STAGE_SECONDS.labels(part or stage).observe(seconds)


class Matcher:
    """Answers queries; holds nothing that another could not do without."""

    def __init__(
        self, recaller: Retriever, reranker: Reranker, index: Index, weights: Weights, rerank_depth: int
    ) -> None:
        self._recaller = recaller
        self._hurry = Hurry(recaller)
        self._reranker = reranker
        self._index = index
        self._weights = weights
        self._rerank_depth = rerank_depth
        self._running: SingleFlight[MatchResult] = SingleFlight(metrics.SHARED_TOTAL.inc)

    async def match(
        self, query: str, options: MatchOptions, *, deadline: float, is_bulk: bool = False
    ) -> MatchResult:
        """The stored texts that mean the same as the query. Identical queries at one time are one.

        Args:
            deadline: when the caller stops waiting, by `time.monotonic()`.

        Raises:
            DependencyUnavailable: the query cannot be embedded, or Qdrant does not answer.
            ModelMismatch: the encoder does not serve the model that the index was built by.
            LexicalIndexMissing: hybrid recall was asked for in a collection without BM25.
        """
        # What is shown of a document makes no difference to the work.
        work = replace(options, explain=False, omit_text=False, omit_attributes=False)
        return await self._running.run(
            (query, work, is_bulk), deadline, lambda: self._match(query, options, deadline, is_bulk)
        )

    async def _match(self, query: str, options: MatchOptions, deadline: float, is_bulk: bool) -> MatchResult:
        result = MatchResult(query)
        with timed(result.timings, "total"):
            try:
                await self._answer(result, query, options, deadline, is_bulk)
            except CollectionGone:
                # It was dropped after the alias was read: the next reading finds its successor.
                await self._answer(result, query, options, deadline, is_bulk)
        if result.degraded:
            metrics.DEGRADED_TOTAL.labels(result.degraded.removeprefix("RERANK_").lower()).inc()
        if result.matches:
            metrics.TOP_SCORE.observe(result.matches[0].score)
        return result

    async def _answer(
        self, result: MatchResult, query: str, options: MatchOptions, deadline: float, is_bulk: bool
    ) -> None:
        if self._recaller.is_too_short_to_wait(deadline):
            finding = self._hurry.find(query, options, deadline=deadline, is_bulk=is_bulk)
            await self._answer_hurriedly(result, finding, options, deadline)
            return
        with timed(result.timings, "encode"):
            embedded = await self._recaller.embed_or_give_up(
                query, options, deadline=deadline, is_bulk=is_bulk
            )
        if embedded.embedding is None or self._recaller.is_pressed(deadline):
            finding = self._hurry.search(embedded, options, deadline=deadline)
            await self._answer_hurriedly(result, finding, options, deadline)
            return
        result.bi_encoder_model_id = embedded.model_id
        if embedded.collection:
            await self._answer_whole(result, embedded, options, deadline, is_bulk)

    async def _answer_hurriedly(
        self, result: MatchResult, finding: Awaitable[Found], options: MatchOptions, deadline: float
    ) -> None:
        """What is found, unscored."""
        with timed(result.timings, "recall"):
            found = await finding
            query = found.query
            result.bi_encoder_model_id = query.model_id
            if not query.collection:
                return
            result.degraded = (
                DegradedReason.ENCODE_LATE if query.embedding is None else DegradedReason.RECALL_LATE
            )
            candidates, weights = await self._ranked(
                result, query.collection, found.recall, found.hits, deadline
            )
        shown = [(candidate, candidate.hit.document) for candidate in candidates if candidate.hit.document]
        _choose(result, shown, [], weights, options)

    async def _answer_whole(
        self,
        result: MatchResult,
        query: EmbeddedQuery,
        options: MatchOptions,
        deadline: float,
        is_bulk: bool,
    ) -> None:
        with timed(result.timings, "recall"):
            hits = await self._recaller.find(query, options, deadline=deadline)
            candidates, weights = await self._ranked(result, query.collection, options.recall, hits, deadline)
        depth = self._depth(options)
        if options.rerank is Rerank.CASCADE and len(candidates) > depth:
            with timed(result.timings, "rerank", "classify"):
                candidates = await self._classified(result, query, candidates, deadline, is_bulk)
        with timed(result.timings, "recall", "read"):
            found = await self._documents(query.collection, candidates[:depth], deadline)
        scores = RerankResult()
        if options.rerank is not Rerank.NONE and found:
            with timed(result.timings, "rerank"):
                texts = [document.text for _, document in found]
                scores = await self._reranker.score(query.text, texts, deadline=deadline, is_bulk=is_bulk)
            metrics.SCORED_CANDIDATES.observe(len(scores.values))
        result.degraded = result.degraded or scores.degraded
        result.scored_count = len(scores.values)
        result.cross_encoder_model_id = scores.model_id or None
        _choose(result, found, scores.values, weights, options)

    async def _ranked(
        self,
        result: MatchResult,
        collection: str,
        recall: Recall | None,
        hits: Sequence[Hit],
        deadline: float,
    ) -> tuple[list[Candidate], Weights]:
        """The candidates, best first by the weights of the collection, and these weights."""
        traits = await self._recaller.traits(collection, deadline)
        result.recall = recall_mode(recall, traits, collection)
        weights = weights_of(traits.notes, self._weights)
        metrics.CANDIDATES.observe(len(hits))
        result.candidate_count = len(hits)
        return ranked(hits, weights), weights

    def _depth(self, options: MatchOptions) -> int:
        """How many candidates go on to be scored."""
        if options.rerank is Rerank.NONE:
            return options.top_k
        return min(
            max(options.rerank_depth or self._rerank_depth, options.top_k), 2 * options.candidate_count
        )

    async def _classified(
        self,
        result: MatchResult,
        query: EmbeddedQuery,
        candidates: Sequence[Candidate],
        deadline: float,
        is_bulk: bool,
    ) -> list[Candidate]:
        """The candidates, those first that the pair classifier finds most alike; as they were without it."""
        points = [candidate.hit.point for candidate in candidates]
        embeddings = await before(deadline, self._index.embeddings(points, model_id=query.collection))
        stored = [candidate for candidate in candidates if candidate.hit.point in embeddings]
        if not stored:
            return []
        scores = await self._reranker.classify(
            query.text,
            np.stack([embeddings[candidate.hit.point] for candidate in stored]),
            deadline=deadline,
            is_bulk=is_bulk,
            model=query.model_id,
        )
        if scores.degraded:
            result.degraded = scores.degraded
            return stored
        classified = [
            replace(candidate, pair_classifier_score=score)
            for candidate, score in zip(stored, scores.values, strict=True)
        ]
        return sorted(classified, key=lambda one: -(one.pair_classifier_score or 0.0))

    async def _documents(
        self, collection: str, candidates: Sequence[Candidate], deadline: float
    ) -> list[tuple[Candidate, Document]]:
        """What of the candidates is still stored, in their order."""
        points = [candidate.hit.point for candidate in candidates]
        documents = await before(deadline, self._index.documents(points, model_id=collection))
        return [
            (candidate, documents[candidate.hit.point])
            for candidate in candidates
            if candidate.hit.point in documents
        ]


def _choose(
    result: MatchResult,
    found: Sequence[tuple[Candidate, Document]],
    scores: Sequence[float],
    weights: Weights,
    options: MatchOptions,
) -> None:
    matches = combine(found, scores, weights)
    good = [match for match in matches if match.score >= options.min_score]
    result.matches = tuple(good[: options.top_k])
