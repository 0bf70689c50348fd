"""The best answer when there is hardly time for one search: nearest embeddings, or else shared words."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace

from services.matcher.answers import MatchOptions, Recall
from services.matcher.recalling import NOT_EMBEDDED, EmbeddedQuery, Recaller
from textmatch.index.recall import Hit

# Kept back for the ways of the query and of the answer, besides the time of a quick search: both are long
# while processors are busy.
_ANSWER_RESERVE_SECONDS = 0.003


@dataclass(frozen=True)
class Found:
    """Hits that bring their documents, in no particular order; by words if the query has no embedding."""

    query: EmbeddedQuery
    recall: Recall
    hits: list[Hit]


class Hurry:
    """Searches once for what is shown, by words meanwhile in case that the embedding is late."""

    def __init__(self, recaller: Recaller) -> None:
        self._recaller = recaller

    async def find(self, query: str, options: MatchOptions, *, deadline: float, is_bulk: bool) -> Found:
        """What can be found before the deadline.

        Raises:
            DependencyUnavailable, ModelMismatch: as for Recaller.embed.
            DeadlinePassed, DeadlineTooShort, Overloaded: the query is not embedded in time, or refused, and
                words will not do.
        """
        collection = await self._recaller.collection(deadline)
        if not await self._recaller.words_will_do(collection, options, deadline):
            return await self._find_nearest(query, options, deadline, deadline, is_bulk)
        finish = deadline - self._recaller.quick_search_seconds - _ANSWER_RESERVE_SECONDS
        nearest = asyncio.create_task(self._find_nearest(query, options, finish, deadline, is_bulk))
        by_words = asyncio.create_task(
            self.search(EmbeddedQuery(query, collection, collection, None), options, deadline=deadline)
        )
        try:
            await asyncio.wait({nearest}, timeout=finish - time.monotonic())
            if nearest.done() and not isinstance(nearest.exception(), NOT_EMBEDDED):
                return nearest.result()
            found = await by_words
            return found if found.hits or nearest.done() else await nearest
        finally:
            nearest.cancel()
            by_words.cancel()
            await asyncio.gather(nearest, by_words, return_exceptions=True)

    async def search(self, query: EmbeddedQuery, options: MatchOptions, *, deadline: float) -> Found:
        """What one search finds, by the embedding if there is one."""
        recall = options.recall if query.embedding is None else Recall.DENSE
        quick = replace(options, candidate_count=min(options.candidate_count, options.top_k), recall=recall)
        hits = await self._recaller.find(query, quick, deadline=deadline, with_documents=True)
        return Found(query, recall, hits)

    async def _find_nearest(
        self, query: str, options: MatchOptions, finish: float, deadline: float, is_bulk: bool
    ) -> Found:
        """By an embedding that comes early enough for the search to end before `finish`."""
        embed_before = finish - self._recaller.quick_search_seconds
        embedded = await self._recaller.embed(query, deadline=embed_before, is_bulk=is_bulk)
        return await self.search(embedded, options, deadline=deadline)
