"""From a query to candidates: embed it by the model of the collection in use, and search.

Embeddings of recent queries.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

from services.matcher import metrics
from services.matcher.hedging import hedged
from services.matcher.reranker import ANSWER_RESERVE_SECONDS, answer_reserve_seconds
from textmatch.encoder_client import EncoderClient
from textmatch.errors import DeadlinePassed, DeadlineTooShort, LexicalIndexMissing, ModelMismatch, Overloaded
from textmatch.index.collection_info import CollectionInfo
from textmatch.index.index import Index
from textmatch.index.search import Hit, SearchQuery
from textmatch.retry import RETRY_OVERLOADED
from textmatch.types import EncodeResult, MatchOptions, Recall
from textmatch.vectors import Embeddings


class EmbeddingCache:
    """Keeps the (dimension,) embeddings that were used last, by model and text; 0 entries turn it off."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._entries: OrderedDict[tuple[str, str], Embeddings] = OrderedDict()

    def get(self, model_id: str, text: str) -> Embeddings | None:
        """What was kept, if anything."""
        embedding = self._entries.get((model_id, text))
        metrics.EMBEDDING_CACHE_TOTAL.labels("miss" if embedding is None else "hit").inc()
        if embedding is not None:
            self._entries.move_to_end((model_id, text))
        return embedding

    def put(self, model_id: str, text: str, embedding: Embeddings) -> None:
        """Keep one more, and let go of the one that was not used for longest if there are too many."""
        self._entries[model_id, text] = embedding
        self._entries.move_to_end((model_id, text))
        while len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)
        metrics.EMBEDDING_CACHE_ENTRIES.set(len(self._entries))


Answer = TypeVar("Answer")

# The query is not embedded in time, or the encoder refuses to.
NOT_EMBEDDED = (DeadlinePassed, DeadlineTooShort, Overloaded)

# Kept back from embedding, so that searching by words alone still is in time: so many times what a search and
# what goes with it took lately, but never more than this share of the time.
_SEARCH_RESERVE_TIMES = 2.5
_SEARCH_RESERVE_MAX_SHARE = 0.7
_FIRST_SEARCH_SECONDS = 0.005
# What a whole search looks for, and how much longer than a smaller one it takes; larger ones are not counted.
_WHOLE_CANDIDATES = MatchOptions.candidate_count
_WHOLE_BY_SMALL = 2.0
# With less time left than so many searches take, fewer candidates are looked for.
_WHOLE_SEARCH_TIMES = 3.0
_NEWEST_SHARE = 0.1


@dataclass(frozen=True)
class EmbeddedQuery:
    """A query and the collection to look in, "" if there is none; `embedding` is None if time ran out."""

    text: str
    collection: str
    model_id: str
    embedding: Embeddings | None


class Retriever:
    """Embeds queries and finds candidates."""

    def __init__(
        self, encoder: EncoderClient, index: Index, cache: EmbeddingCache, hedge_seconds: float = 0.0
    ) -> None:
        self._encoder = encoder
        self._index = index
        self._cache = cache
        self._hedge_seconds = hedge_seconds
        self._search_seconds = _FIRST_SEARCH_SECONDS

    @property
    def quick_search_seconds(self) -> float:
        """How long one search for few candidates takes just now."""
        return self._search_seconds / _WHOLE_BY_SMALL

    async def collection(self, deadline: float) -> str:
        """The collection in use; "" if there is none."""
        return await before(deadline, self._index.collection())

    async def embed(self, query: str, *, deadline: float, is_bulk: bool) -> EmbeddedQuery:
        """Embed the query by the model of the collection in use.

        Raises:
            DependencyUnavailable: the encoder or Qdrant does not answer.
            ModelMismatch: the encoder does not serve that model.
            DeadlinePassed, DeadlineTooShort, Overloaded: not in time, or refused.
        """
        collection = await self.collection(deadline)
        try:
            return await self._embed(query, collection, deadline, is_bulk)
        except ModelMismatch:
            # The alias may have been switched, and the old model taken away, since it was read.
            latest = await before(deadline, self._index.refresh_collection())
            if latest == collection:
                raise
            return await self._embed(query, latest, deadline, is_bulk)

    async def embed_or_give_up(
        self, query: str, options: MatchOptions, *, deadline: float, is_bulk: bool
    ) -> EmbeddedQuery:
        """The same, but without an embedding if it is late and words will do."""
        collection = await self.collection(deadline)
        if not await self.words_will_do(collection, options, deadline):
            return await self.embed(query, deadline=deadline, is_bulk=is_bulk)
        seconds_left = deadline - time.monotonic()
        reserve_seconds = self._search_seconds * _SEARCH_RESERVE_TIMES + answer_reserve_seconds(deadline)
        finish = deadline - min(reserve_seconds, seconds_left * _SEARCH_RESERVE_MAX_SHARE)
        try:
            return await self.embed(query, deadline=finish, is_bulk=is_bulk)
        except NOT_EMBEDDED:
            return EmbeddedQuery(query, collection, collection, None)

    async def find(
        self,
        query: EmbeddedQuery,
        options: MatchOptions,
        *,
        deadline: float,
        with_documents: bool = False,
    ) -> list[Hit]:
        """The candidates, in no particular order.

        Raises:
            CollectionGone: the collection has been dropped.
            LexicalIndexMissing: hybrid recall was asked for in a collection without BM25.
        """
        if not query.collection:
            return []
        traits = await self.traits(query.collection, deadline)
        mode = recall_mode(options.recall, traits, query.collection)
        search = SearchQuery(
            count=options.candidate_count,
            embedding=query.embedding,
            text="" if mode is Recall.DENSE else query.text,
            condition=options.where,
            fuse_ranks=mode is Recall.HYBRID_RRF,
            with_documents=with_documents,
        )
        started = time.monotonic()
        try:
            return await before(deadline, self._index.recall(search, model_id=query.collection))
        finally:
            self._observe_search(options.candidate_count, time.monotonic() - started)

    def is_too_short_to_wait(self, deadline: float) -> bool:
        """Whether little time would be left to search by words after waiting for an embedding in vain."""
        seconds_for_words = (deadline - time.monotonic()) * _SEARCH_RESERVE_MAX_SHARE
        return seconds_for_words < self._search_seconds + ANSWER_RESERVE_SECONDS

    def is_pressed(self, deadline: float) -> bool:
        """Whether a whole search and what comes after it may not end in time."""
        return (
            deadline - time.monotonic() < self._search_seconds * _WHOLE_SEARCH_TIMES + ANSWER_RESERVE_SECONDS
        )

    async def words_will_do(self, collection: str, options: MatchOptions, deadline: float) -> bool:
        """Whether the collection can be searched without an embedding.

        Raises:
            CollectionGone: it has been dropped.
        """
        if not collection or options.recall is Recall.DENSE:
            return False
        return (await self.traits(collection, deadline)).has_lexical

    async def traits(self, collection: str, deadline: float) -> CollectionInfo:
        """What the collection can do.

        Raises:
            CollectionGone: it has been dropped.
        """
        return await before(deadline, self._index.traits(collection))

    def _observe_search(self, count: int, seconds: float) -> None:
        if count > _WHOLE_CANDIDATES:
            return
        whole_seconds = seconds * (1.0 if count == _WHOLE_CANDIDATES else _WHOLE_BY_SMALL)
        self._search_seconds += _NEWEST_SHARE * (whole_seconds - self._search_seconds)

    async def _embed(self, query: str, collection: str, deadline: float, is_bulk: bool) -> EmbeddedQuery:
        cached = self._cache.get(collection, query) if collection else None
        if cached is not None:
            return EmbeddedQuery(query, collection, collection, cached)
        if deadline <= time.monotonic():
            raise DeadlinePassed("there is no time to embed the query")

        async def encode() -> EncodeResult:
            return await self._encoder.encode(
                [query],
                is_query=True,
                is_bulk=is_bulk,
                timeout_seconds=deadline - time.monotonic(),
                model=collection,
            )

        # Interactive work is not tried again: its caller waits.
        encoded = await RETRY_OVERLOADED.call_until(
            deadline if is_bulk else 0.0, hedged, encode, 0.0 if is_bulk else self._hedge_seconds
        )
        self._cache.put(encoded.model_id, query, encoded.embeddings[0])
        return EmbeddedQuery(query, collection, encoded.model_id, encoded.embeddings[0])


def recall_mode(wanted: Recall | None, traits: CollectionInfo, collection: str) -> Recall:
    """How to search a collection.

    Raises:
        LexicalIndexMissing: what is wanted needs BM25, and the collection has none.
    """
    if wanted is None:
        return Recall.HYBRID if traits.has_lexical else Recall.DENSE
    if wanted is not Recall.DENSE and not traits.has_lexical:
        raise LexicalIndexMissing(
            f"the collection {collection} was made without BM25; rebuild it with `textmatch reindex`, or use"
            " dense recall"
        )
    return wanted


async def before(deadline: float, answer: Awaitable[Answer]) -> Answer:
    """What the index says.

    Raises:
        DeadlinePassed: it does not say it in time.
    """
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            return await answer
    except TimeoutError:
        raise DeadlinePassed("the index did not answer before the deadline") from None
