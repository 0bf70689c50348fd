"""Answers a Match: plan the query, embed it, find candidates, score the best ones, fuse the scores."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from cachetools import TTLCache

from services.matcher import metrics
from services.matcher.deadlines import TimeBudget
from services.matcher.ranking import (
    Candidate,
    FoundCandidate,
    QueryPart,
    RerankRule,
    Shortlist,
    classified,
    combine,
    ranked,
)
from services.matcher.reranker import Reranker, RerankResult
from services.matcher.retriever import EmbeddedQuery, FoundHits, QueryPlan, Retriever, effective_recall
from textmatch.collection_store import Collection
from textmatch.errors import DocumentNotFound, ModelMismatch, TextMatchError
from textmatch.filters import Filter, HasId
from textmatch.index.aliases import CollectionInfo
from textmatch.index.bm25 import query_vector
from textmatch.index.client import CollectionGone
from textmatch.index.schema import StoredDocument
from textmatch.score_fusion import fusion_of
from textmatch.types import DegradedReason, MatchOptions, MatchResult, Recall, Rerank, StageTimings

# Filters that match nothing, whose warnings are kept, and for how long.
_KNOWN_WARNINGS = 100
_WARNINGS_SECONDS = 60.0


@dataclass(frozen=True)
class _Query:
    """What is asked: a text, or the id of a stored document."""

    text: str
    document_id: str
    options: MatchOptions
    is_bulk: bool

    def condition(self) -> Filter | None:
        """Which documents can be returned; None: all."""
        excluded = self.options.exclude_ids
        if self.document_id:
            excluded = (*excluded, self.document_id)
        if not excluded:
            return self.options.where
        must = () if self.options.where is None else (self.options.where,)
        return Filter(must=must, must_not=(HasId(excluded),))


@dataclass
class _Flight:
    task: asyncio.Task[MatchResult]
    budget: TimeBudget
    waiting: int = 0


class SingleFlight:
    """Answers identical concurrent matches once. A match is cancelled when its last caller is cancelled."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, _Flight] = {}

    async def run(
        self,
        key: tuple[Collection, Hashable],
        budget: TimeBudget,
        start: Callable[[], Awaitable[MatchResult]],
    ) -> MatchResult:
        """The result of the running match with this key, or of a new one if none fits the time budget."""
        # The metric is there from the first match on.
        shared_total = metrics.SHARED_TOTAL.labels(key[0].name)
        flight = self._flights.get(key)
        if flight is None or not budget.may_join(flight.budget):
            flight = _Flight(asyncio.ensure_future(start()), budget)
            self._flights[key] = flight
        else:
            shared_total.inc()
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if flight.waiting == 0:
                flight.task.cancel()
            if self._flights.get(key) is flight and (flight.task.done() or flight.waiting == 0):
                del self._flights[key]


@contextmanager
def timed(timings: StageTimings, stage: str, part: str = "") -> Iterator[None]:
    """Add to the time of a stage. The metric counts the parts of a stage separately."""
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - started
        setattr(timings, f"{stage}_ms", getattr(timings, f"{stage}_ms") + seconds * 1e3)
        metrics.MATCH_STAGE_SECONDS.labels(part or stage).observe(seconds)


class Matcher:
    """Answers queries. Its only state are caches and measured speeds, so any matcher can answer any query.

    Args:
        rerank_depth: for options that do not set it.
    """

    def __init__(self, retriever: Retriever, reranker: Reranker, rerank_depth: int) -> None:
        self._retriever = retriever
        self._reranker = reranker
        self._rerank_depth = rerank_depth
        self._running = SingleFlight()
        self._known_warnings: TTLCache[tuple[str, Filter], tuple[str, ...]] = TTLCache(
            _KNOWN_WARNINGS, _WARNINGS_SECONDS
        )

    async def match(
        self,
        collection: Collection,
        query: str,
        options: MatchOptions,
        *,
        deadline: float,
        is_bulk: bool = False,
        document_id: str = "",
    ) -> MatchResult:
        """Find the texts of a collection that mean the same as the query.

        Identical concurrent queries run once.

        Args:
            query: "" if there is a `document_id`.
            deadline: when the caller stops waiting, by `time.monotonic()`.
            document_id: of a stored document that is the query. It is not among the matches.

        Raises:
            DocumentNotFound: that document is not stored.
            DependencyUnavailable: the query cannot be embedded, or Qdrant does not answer.
            ModelMismatch: the encoder does not serve the model of the collection.
            LexicalIndexMissing: hybrid recall was requested, and the collection has no BM25 index.
            DeadlinePassed: Qdrant is late, or the query is not embedded in time and BM25 cannot answer.
            DeadlineTooShort, Overloaded: the encoder refuses the query, and BM25 cannot answer.
        """
        budget = TimeBudget.until(deadline)
        # These options only change how the answer is shown.
        options = replace(
            options, explain=False, omit_text=False, omit_attributes=False, require_complete=False
        )
        asked = _Query(query, document_id, options, is_bulk)
        return await self._running.run(
            (collection, asked), budget, lambda: self._match(collection, asked, budget)
        )

    async def _match(self, collection: Collection, asked: _Query, budget: TimeBudget) -> MatchResult:
        result = MatchResult(asked.text or asked.document_id)
        with timed(result.timings, "total"):
            try:
                await self._answer(result, await self._plan(collection, asked, budget))
            except (CollectionGone, ModelMismatch) as error:
                # The alias may have been switched since it was read, and the old collection or model removed.
                roles = await budget.within_deadline(collection.index.collections.refresh_roles())
                if isinstance(error, ModelMismatch) and error.index_model_id == roles.in_use:
                    raise
                await self._answer(result, await self._plan(collection, asked, budget))
        if result.degraded:
            reason = result.degraded.removeprefix("RERANK_").lower()
            metrics.DEGRADED_TOTAL.labels(collection.name, reason).inc()
        if result.matches:
            metrics.TOP_SCORE.observe(result.matches[0].score)
        return result

    async def _plan(self, collection: Collection, asked: _Query, budget: TimeBudget) -> QueryPlan:
        collections, options = collection.index.collections, asked.options
        model_id = await budget.within_deadline(collections.in_use())
        query, stored = asked.text, None
        if asked.document_id:
            found = await budget.within_deadline(_read_stored(collection, model_id, asked.document_id))
            query, stored = found.document.text, found.embedding
        info, recall, terms, statistics = CollectionInfo(), Recall.DENSE, None, None
        if model_id:
            info = await budget.within_deadline(collections.info(model_id))
            recall = effective_recall(options.recall, info, collection.name)
        if recall is Recall.HYBRID:
            timeout_seconds = budget.term_statistics_timeout_seconds()
            statistics = await collection.index.term_statistics.get(model_id, timeout_seconds)
            terms = query_vector(query, statistics)
        return QueryPlan(
            query=query,
            is_bulk=asked.is_bulk,
            budget=budget,
            collection=collection,
            model_id=model_id,
            recall=recall,
            terms=terms,
            statistics=statistics,
            candidate_count=options.candidate_count,
            where=asked.condition(),
            group_by=options.group_by,
            rerank=options.rerank,
            stored=stored,
            rule=RerankRule.of(options, self._rerank_depth, fusion_of(info.notes, model_id)),
        )

    async def _answer(self, result: MatchResult, plan: QueryPlan) -> None:
        with timed(result.timings, "encode"):
            embedded = await self._retriever.embed(plan)
        result.bi_encoder_model_id = embedded.model_id
        if not plan.model_id:
            return
        result.recall = plan.recall
        result.query_passage_count = max(1, len(embedded.parts))
        if not embedded.parts or self._retriever.is_deadline_tight(plan, embedded):
            await self._answer_quickly(result, plan, embedded)
        else:
            await self._answer_fully(result, plan, embedded)
        if plan.where and not result.candidate_count:
            result.filter_warnings = await self._filter_warnings(plan, plan.where)

    async def _answer_quickly(self, result: MatchResult, plan: QueryPlan, query: EmbeddedQuery) -> None:
        """Answer with the candidates of a quick search, without scoring."""
        result.degraded = DegradedReason.ENCODE_LATE
        if query.parts:
            result.degraded, result.recall = DegradedReason.RECALL_LATE, Recall.DENSE
        with timed(result.timings, "recall"):
            hits = await self._retriever.quick_search(plan, query)
            candidates = _ranked(result, plan, hits)
        found = [(candidate, candidate.hit.document) for candidate in candidates if candidate.hit.document]
        _choose(result, plan, found)

    async def _answer_fully(self, result: MatchResult, plan: QueryPlan, query: EmbeddedQuery) -> None:
        with timed(result.timings, "recall"):
            hits = await self._retriever.search(plan, query)
            candidates = _ranked(result, plan, hits)
        if plan.rerank is Rerank.CASCADE and len(candidates) > plan.rule.depth:
            with timed(result.timings, "rerank", "classify"):
                candidates = await self._classified(result, plan, candidates)
        with timed(result.timings, "recall", "read"):
            shortlist = Shortlist(plan.rule, await self._read(plan, plan.rule.shortlisted(candidates)))
        if plan.rerank is not Rerank.NONE:
            await self._score(result, plan, shortlist)
        _choose(result, plan, shortlist.found)

    async def _score(self, result: MatchResult, plan: QueryPlan, shortlist: Shortlist) -> None:
        scores = RerankResult()
        if shortlist.to_score():
            with timed(result.timings, "rerank"):
                scores = await self._reranker.score(
                    shortlist,
                    budget=plan.budget,
                    is_bulk=plan.is_bulk,
                    model=plan.collection.config.cross_encoder,
                )
        metrics.SELECTED_CANDIDATES.observe(shortlist.selected_count)
        metrics.SCORED_CANDIDATES.observe(len(scores.values))
        if shortlist.undecided():
            result.degraded = result.degraded or scores.degraded
        result.scored_count = len(scores.values)
        result.cross_encoder_model_id = scores.model_id or None

    async def _filter_warnings(self, plan: QueryPlan, where: Filter) -> tuple[str, ...]:
        """What is suspicious about a filter that matches nothing; empty if there is no time to find out."""
        key = (plan.collection.config.physical(plan.model_id), where)
        known = self._known_warnings.get(key)
        if known is None:
            try:
                async with asyncio.timeout_at(plan.budget.answer_by):
                    known = await plan.collection.index.filter_warnings(where, model_id=plan.model_id)
            except (TextMatchError, TimeoutError):
                return ()
            self._known_warnings[key] = known
        return known

    async def _classified(
        self, result: MatchResult, plan: QueryPlan, candidates: Sequence[Candidate]
    ) -> list[Candidate]:
        """The candidates by descending score of the pair classifier, or in the same order if it fails."""
        points = [candidate.hit.point for candidate in candidates]
        embeddings = await plan.budget.within_deadline(
            plan.collection.index.embeddings(points, model_id=plan.model_id)
        )
        stored = [candidate for candidate in candidates if candidate.hit.point in embeddings]
        by_query: dict[QueryPart, list[Candidate]] = {}
        for candidate in stored:
            by_query.setdefault(candidate.query, []).append(candidate)
        scored: list[tuple[Candidate, float]] = []
        for query, some in by_query.items():
            scores = await self._reranker.classify(
                query.text,
                np.stack([embeddings[candidate.hit.point] for candidate in some]),
                budget=plan.budget,
                is_bulk=plan.is_bulk,
                model=plan.model_id,
            )
            if scores.degraded:
                result.degraded = scores.degraded
                return stored
            scored += zip(some, scores.values, strict=True)
        return classified(scored)

    async def _read(self, plan: QueryPlan, candidates: Sequence[Candidate]) -> list[FoundCandidate]:
        """The candidates that are still stored, with their documents, in the same order."""
        points = [candidate.hit.point for candidate in candidates]
        documents = await plan.budget.within_deadline(
            plan.collection.index.documents(points, model_id=plan.model_id)
        )
        return [(one, documents[one.hit.point]) for one in candidates if one.hit.point in documents]


async def _read_stored(collection: Collection, model_id: str, document_id: str) -> StoredDocument:
    """A document with its embedding; of one with several passages, the first.

    Raises:
        DocumentNotFound: it is not stored.
    """
    found: dict[str, StoredDocument] = {}
    if model_id:
        points = collection.index.points(model_id)
        found = await points.fetch([document_id], with_embeddings=True, is_whole=False)
    if document_id not in found:
        raise DocumentNotFound(document_id)
    return found[document_id]


def _ranked(result: MatchResult, plan: QueryPlan, hits: FoundHits) -> list[Candidate]:
    candidates = ranked(hits, plan.rule.fusion)
    metrics.CANDIDATES.observe(len(candidates))
    result.candidate_count = len(candidates)
    return candidates


def _choose(result: MatchResult, plan: QueryPlan, found: Sequence[FoundCandidate]) -> None:
    rule = plan.rule
    matches = combine(found, rule.fusion)
    result.matches = tuple([match for match in matches if match.score >= rule.min_score][: rule.top_k])
