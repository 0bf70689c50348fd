"""From the plan of a query to its candidates: embed the query and search."""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import dataclass
from typing import TypeAlias

from cachetools import LRUCache

from services.matcher import metrics
from services.matcher.deadlines import SearchTime, TimeBudget
from services.matcher.ranking import QueryPart, RerankRule
from textmatch.collection_store import Collection
from textmatch.documents import Passage, document_key
from textmatch.encoder_client import EncoderClient
from textmatch.errors import DeadlinePassed, DeadlineTooShort, LexicalIndexMissing, Overloaded
from textmatch.filters import Filter
from textmatch.index.aliases import CollectionInfo
from textmatch.index.bm25 import QueryVector, query_vector
from textmatch.index.search import Hit, SearchQuery
from textmatch.index.term_statistics import TermStatistics
from textmatch.passages import DividedText, EncodedPassage
from textmatch.retry import RETRY_OVERLOADED
from textmatch.time_slices import in_slices
from textmatch.types import MAX_CANDIDATES, EncodeResult, Recall, Rerank
from textmatch.vectors import Embeddings

# The query is not embedded in time, or the encoder refuses it.
_NOT_EMBEDDED = (DeadlinePassed, DeadlineTooShort, Overloaded)
_TIMED_COLLECTIONS = 1_000
# So many times as many, if there are too few groups among the candidates.
_MORE_CANDIDATES = 4

# What an entry of the cache takes next to its numbers: the key, the array, and three dictionary entries.
_ENTRY_BYTES = 800


@dataclass(frozen=True)
class QueryPlan:
    """All decisions about a query before it is answered. No later stage reads the collection's state again.

    Attributes:
        collection: where the query is answered, and the models that are asked for.
        model_id: the bi-encoder in use; "" while nothing is stored.
        recall: how the collection is searched.
        terms: what BM25 searches for; None with dense recall, or if the query has no terms.
        statistics: weigh the terms of passages of the query; None with dense recall.
        stored: the (dimension,) embedding of the document whose text is the query; None for other queries.
        rule: which candidates are read and which of them get pair scores.
    """

    query: str
    is_bulk: bool
    budget: TimeBudget
    collection: Collection
    model_id: str
    recall: Recall
    terms: QueryVector | None
    statistics: TermStatistics | None
    candidate_count: int
    where: Filter | None
    group_by: str
    rerank: Rerank
    rule: RerankRule
    stored: Embeddings | None = None

    @property
    def bi_encoder(self) -> str:
        """The model that embeds the query, by id or name; "" means the encoder's default one."""
        return self.model_id or self.collection.config.bi_encoder

    @property
    def supports_lexical_fallback(self) -> bool:
        """Whether BM25 alone can answer."""
        return self.recall is not Recall.DENSE


@dataclass(frozen=True)
class EmbeddedPart:
    """A part of a query with its (dimension,) embedding, and what BM25 searches for."""

    part: QueryPart
    embedding: Embeddings
    terms: QueryVector | None


@dataclass(frozen=True)
class EmbeddedQuery:
    """A query is one part, or several if it is longer than the model reads.

    `parts` is empty if they were not embedded in time and BM25 must answer.
    """

    model_id: str
    parts: tuple[EmbeddedPart, ...] = ()


# Hits, each with the part of the query that it was found by.
FoundHits: TypeAlias = list[tuple[QueryPart, Hit]]
# As in the cache: the passages of the query, with their (dimension,) embeddings.
_EmbeddedPassages: TypeAlias = tuple[tuple[Passage | None, Embeddings], ...]


class Retriever:
    """Embeds queries and finds their candidates.

    Args:
        cache_bytes: memory for the embeddings of recent queries; 0 keeps none.
    """

    def __init__(self, encoder: EncoderClient, cache_bytes: int) -> None:
        self._encoder = encoder
        # By a digest: the texts of queries may be much larger than their embeddings.
        self._cache: LRUCache[bytes, _EmbeddedPassages] = LRUCache(cache_bytes, getsizeof=_cached_bytes)
        # Collections differ in size.
        self._search_times: LRUCache[Collection, SearchTime] = LRUCache(_TIMED_COLLECTIONS)

    async def embed(self, plan: QueryPlan) -> EmbeddedQuery:
        """Embed the query by the model in use, or by the one that the first document will be embedded by.

        A query that is longer than the model reads is divided into passages, and each is embedded.

        Raises:
            DependencyUnavailable: the encoder does not answer.
            ModelMismatch: the encoder does not serve that model.
            DeadlinePassed, DeadlineTooShort, Overloaded: late or refused, and BM25 cannot answer instead.
        """
        if plan.stored is not None:
            return EmbeddedQuery(plan.model_id, await _parts(plan, ((None, plan.stored),)))
        embed_by = plan.budget.deadline
        if plan.supports_lexical_fallback:
            embed_by = plan.budget.fallback_at(self._search_time(plan))
        try:
            return await self._embed(plan, embed_by)
        except _NOT_EMBEDDED:
            if not plan.supports_lexical_fallback:
                raise
            return EmbeddedQuery(plan.model_id)

    def is_deadline_tight(self, plan: QueryPlan, query: EmbeddedQuery) -> bool:
        """Whether full searches and the stages after them may be late."""
        return plan.budget.is_tight(self._search_time(plan), len(query.parts))

    async def search(self, plan: QueryPlan, query: EmbeddedQuery) -> FoundHits:
        """The `candidate_count` best hits of each kind of search for each part, in no particular order.

        More of them, up to MAX_CANDIDATES, while they have fewer than `top_k` groups.
        """
        found: FoundHits = []
        for one in query.parts:
            found += [(one.part, hit) for hit in await self._search_groups(plan, one)]
        return found

    async def quick_search(self, plan: QueryPlan, query: EmbeddedQuery) -> FoundHits:
        """The `top_k` nearest embeddings for each part, or the best by BM25 if there are no embeddings.

        They come with their documents.
        """
        count = plan.candidate_count if plan.group_by else plan.rule.top_k
        if not query.parts:
            hits = await self._search(plan, count, None, plan.terms, with_documents=True)
            return [(QueryPart(plan.query), hit) for hit in hits]
        found: FoundHits = []
        for one in query.parts:
            hits = await self._search(plan, count, one.embedding, None, with_documents=True)
            found += [(one.part, hit) for hit in hits]
        return found

    async def _search_groups(self, plan: QueryPlan, one: EmbeddedPart) -> list[Hit]:
        count = plan.candidate_count
        while True:
            hits = await self._search(plan, count, one.embedding, one.terms)
            groups = {hit.group or document_key(str(hit.point)) for hit in hits}
            if len(groups) >= plan.rule.top_k or len(hits) < count or count == MAX_CANDIDATES:
                return hits
            count = min(count * _MORE_CANDIDATES, MAX_CANDIDATES)

    async def _search(
        self,
        plan: QueryPlan,
        count: int,
        embedding: Embeddings | None,
        terms: QueryVector | None,
        *,
        with_documents: bool = False,
    ) -> list[Hit]:
        query = SearchQuery(
            count=count,
            embedding=embedding,
            terms=terms,
            condition=plan.where,
            with_documents=with_documents,
            group_by=plan.group_by,
        )
        started = time.monotonic()
        try:
            found = plan.collection.index.search(query, model_id=plan.model_id)
            return await plan.budget.within_deadline(found)
        finally:
            self._search_time(plan).observe(count, time.monotonic() - started)

    def _search_time(self, plan: QueryPlan) -> SearchTime:
        return self._search_times.setdefault(plan.collection, SearchTime())

    async def _embed(self, plan: QueryPlan, embed_by: float) -> EmbeddedQuery:
        # Without a model in use, the model's id is known only after the answer.
        cached = self._cache.get(_cache_key(plan.model_id, plan.query))
        metrics.EMBEDDING_CACHE_TOTAL.labels("miss" if cached is None else "hit").inc()
        if cached is not None:
            return EmbeddedQuery(plan.model_id, await _parts(plan, cached))
        encoded = await self._encode(plan, [plan.query], embed_by)
        embedded: _EmbeddedPassages = ((None, encoded.embeddings[0]),)
        if encoded.truncated[0]:
            embedded = await self._embed_passages(plan, encoded.token_counts[0], embed_by)
        if _cached_bytes(embedded) <= self._cache.maxsize:
            self._cache[_cache_key(encoded.model_id, plan.query)] = embedded
            metrics.EMBEDDING_CACHE_ENTRIES.set(len(self._cache))
        return EmbeddedQuery(encoded.model_id, await _parts(plan, embedded))

    async def _embed_passages(self, plan: QueryPlan, read_tokens: int, embed_by: float) -> _EmbeddedPassages:
        """The passages of a query of which the model reads so many tokens at once."""
        max_tokens = min(read_tokens, plan.collection.config.passage_tokens or read_tokens)
        text = await DividedText.of(plan.query, max_tokens, 0)
        while spans := text.take():
            encoded = await self._encode(plan, [plan.query[one.start : one.end] for one in spans], embed_by)
            rows = zip(encoded.embeddings, encoded.token_counts, encoded.truncated, strict=True)
            for span, row in zip(spans, rows, strict=True):
                text.put(span, EncodedPassage(*row))
        embedded = text.embedded()
        return tuple(zip(embedded.passages, embedded.embeddings, strict=True))

    async def _encode(self, plan: QueryPlan, texts: list[str], embed_by: float) -> EncodeResult:
        if embed_by <= time.monotonic():
            raise DeadlinePassed("there is no time to embed the query")
        # Interactive work is not retried, because its caller waits.
        return await RETRY_OVERLOADED.call_until(
            embed_by if plan.is_bulk else 0.0,
            lambda: self._encoder.encode(
                texts,
                is_query=True,
                is_bulk=plan.is_bulk,
                timeout_seconds=embed_by - time.monotonic(),
                model=plan.bi_encoder,
            ),
        )


async def _parts(plan: QueryPlan, embedded: _EmbeddedPassages) -> tuple[EmbeddedPart, ...]:
    """The parts of the query: itself, or its passages, each with its own terms."""
    if len(embedded) == 1:
        return (EmbeddedPart(QueryPart(plan.query), embedded[0][1], plan.terms),)
    # The terms of the whole query took long too.
    await asyncio.sleep(0)
    parts = list[EmbeddedPart]()
    async for passage, row in in_slices(embedded):
        if passage is not None:
            part = QueryPart(plan.query[passage.start : passage.end], passage)
            terms = query_vector(part.text, plan.statistics) if plan.statistics else None
            parts.append(EmbeddedPart(part, row, terms))
    return tuple(parts)


def _cache_key(model_id: str, query: str) -> bytes:
    return hashlib.blake2b(f"{model_id}\0{query}".encode(), digest_size=16).digest()


def _cached_bytes(embedded: _EmbeddedPassages) -> int:
    return sum(row.nbytes + _ENTRY_BYTES for _, row in embedded)


def effective_recall(wanted: Recall | None, info: CollectionInfo, collection: str) -> Recall:
    """How to search a collection.

    Raises:
        LexicalIndexMissing: hybrid recall was requested, and the collection has no BM25 index.
    """
    if wanted is None:
        return Recall.HYBRID if info.has_lexical else Recall.DENSE
    if wanted is not Recall.DENSE and not info.has_lexical:
        raise LexicalIndexMissing(
            f'the collection "{collection}" was created without a BM25 index; use dense recall'
        )
    return wanted
