"""One Match: embed the query, recall candidates, score the best of them, combine."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np

from services.matcher import metrics
from services.matcher.answers import (
    Degraded,
    MatchOptions,
    MatchResult,
    Recall,
    Rerank,
    ScoredDocument,
    Timings,
)
from services.matcher.recalling import EmbeddedQuery, Recaller, before, recall_mode
from services.matcher.reranking import Reranker, Scores
from services.matcher.single_flight import SingleFlight
from textmatch.combination import (
    WEIGHTS_NOTE,
    Parts,
    Weights,
    calibrated,
    combined_score,
    from_mapping,
    recall_score,
)
from textmatch.documents import Document
from textmatch.errors import InvalidInput
from textmatch.index.connection import CollectionGone
from textmatch.index.recall import Hit
from textmatch.index.store import Index

_log = logging.getLogger(__name__)

# Looked for when time is short.
_HURRIED_CANDIDATES = 20


@dataclass(frozen=True)
class Candidate:
    """A hit with its recall score and, after a classifier stage, that score."""

    hit: Hit
    recall_score: float
    pair_classifier_score: float | None = None


class Matcher:
    """Answers queries; holds nothing that another could not do without."""

    def __init__(
        self, recaller: Recaller, reranker: Reranker, index: Index, weights: Weights, rerank_depth: int
    ) -> None:
        self._recaller = recaller
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
        return await self._running.run(
            (query, options, is_bulk), deadline, lambda: self._match(query, options, deadline, is_bulk)
        )

    async def _match(self, query: str, options: MatchOptions, deadline: float, is_bulk: bool) -> MatchResult:
        result = MatchResult()
        with _timed(result.timings, "total"):
            try:
                await self._answer(result, query, options, deadline, is_bulk)
            except CollectionGone:
                # It was dropped after the alias was read: the next reading finds its successor.
                await self._answer(result, query, options, deadline, is_bulk)
        if result.degraded:
            metrics.DEGRADED_TOTAL.labels(result.degraded.value).inc()
        if result.matches:
            metrics.TOP_SCORE.observe(result.matches[0].score)
        return result

    async def _answer(
        self, result: MatchResult, query: str, options: MatchOptions, deadline: float, is_bulk: bool
    ) -> None:
        with _timed(result.timings, "encode"):
            embedded = await self._recaller.embed(query, options, deadline=deadline, is_bulk=is_bulk)
        result.bi_encoder_model_id = embedded.model_id
        if not embedded.collection:
            return
        is_pressed = self._recaller.is_pressed(deadline)
        if is_pressed:
            options = _hurried(options, has_embedding=embedded.embedding is not None)
        with _timed(result.timings, "recall"):
            candidates = await self._candidates(result, embedded, options, deadline)
        depth = self._depth(options)
        if embedded.embedding is None:
            result.degraded = Degraded.ENCODE_LATE
        elif is_pressed:
            result.degraded = Degraded.RECALL_LATE
        elif options.rerank is Rerank.CASCADE and len(candidates) > depth:
            with _timed(result.timings, "rerank", "classify"):
                candidates = await self._classified(result, embedded, candidates, deadline, is_bulk)
        with _timed(result.timings, "recall", "read"):
            found = await self._documents(embedded.collection, candidates[:depth], deadline)
        scores = Scores()
        if options.rerank is not Rerank.NONE and embedded.embedding is not None and found:
            with _timed(result.timings, "rerank"):
                texts = [document.text for _, document in found]
                scores = await self._reranker.score(query, texts, deadline=deadline, is_bulk=is_bulk)
            metrics.SCORED_CANDIDATES.observe(len(scores.values))
        result.degraded = result.degraded or scores.degraded
        result.scored_count = len(scores.values)
        result.cross_encoder_model_id = scores.model_id
        matches = combine(found, scores.values, result.weights)
        result.matches = [match for match in matches if match.score >= options.min_score][: options.top_k]

    async def _candidates(
        self, result: MatchResult, query: EmbeddedQuery, options: MatchOptions, deadline: float
    ) -> list[Candidate]:
        """Best first; equal ones in an order that is always the same."""
        traits = await self._recaller.traits(query.collection, deadline)
        result.recall = recall_mode(options.recall, traits, query.collection)
        result.weights = weights_of(traits.notes, self._weights)
        hits = await self._recaller.find(query, options, deadline=deadline)
        metrics.CANDIDATES.observe(len(hits))
        result.candidate_count = len(hits)
        candidates = [Candidate(hit, _recall_score(hit, result.weights)) for hit in hits]
        return sorted(candidates, key=lambda one: (-one.recall_score, str(one.hit.point)))

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


def _hurried(options: MatchOptions, *, has_embedding: bool) -> MatchOptions:
    """The same question for a quick answer: one search for few candidates, none of which is scored."""
    count = min(options.candidate_count, max(options.top_k, _HURRIED_CANDIDATES))
    recall = Recall.DENSE if has_embedding else options.recall
    return replace(options, candidate_count=count, recall=recall, rerank=Rerank.NONE)


def weights_of(notes: Mapping[str, object], default: Weights) -> Weights:
    """The weights that were tuned for a collection, or else the default."""
    noted = notes.get(WEIGHTS_NOTE)
    if not isinstance(noted, Mapping):
        return default
    try:
        return from_mapping(noted)
    except InvalidInput as error:
        _log.warning("the weights noted beside the collection are not used", extra={"error": str(error)})
        return default


def combine(
    found: Sequence[tuple[Candidate, Document]], scores: Sequence[float], weights: Weights
) -> list[ScoredDocument]:
    """All candidates, best first, of which the first have been scored.

    Scoring lifts or lowers most scores alike. So that a candidate gains nothing from not being scored, it is
    given what scoring did to the others on average. Equal scores are in the order of recall, then of ids.
    """
    recalled = [candidate.recall_score for candidate, _ in found]
    combined = [
        combined_score(recall, score, weights) for recall, score in zip(recalled, scores, strict=False)
    ]
    mean_raise = (sum(combined) - sum(recalled[: len(combined)])) / max(len(combined), 1)
    combined += [recall + mean_raise for recall in recalled[len(combined) :]]
    matches = [
        _scored_document(candidate, document, one, score, weights)
        for (candidate, document), one, score in zip_longest(found, combined, scores)
    ]
    return sorted(matches, key=lambda match: (-match.combined_score, -match.recall_score, match.document.id))


def _scored_document(
    candidate: Candidate, document: Document, combined: float, rerank: float | None, weights: Weights
) -> ScoredDocument:
    combined = min(max(combined, 0.0), 1.0)
    return ScoredDocument(
        document=document,
        score=calibrated(combined, weights),
        recall_score=candidate.recall_score,
        combined_score=combined,
        rerank_score=rerank,
        parts=_parts(candidate.hit),
        pair_classifier_score=candidate.pair_classifier_score,
    )


def _recall_score(hit: Hit, weights: Weights) -> float:
    if hit.fused_ranks is not None:
        return min(hit.fused_ranks, 1.0)
    return recall_score(_parts(hit), weights)


def _parts(hit: Hit) -> Parts:
    return Parts(hit.cosine, hit.bm25)


@contextmanager
def _timed(timings: Timings, stage: str, part: str = "") -> Iterator[None]:
    """Adds to the time of a stage; the metric has its parts apart."""
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - started
        setattr(timings, f"{stage}_ms", getattr(timings, f"{stage}_ms") + seconds * 1e3)
        metrics.MATCH_STAGE_SECONDS.labels(part or stage).observe(seconds)
