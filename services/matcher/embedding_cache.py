"""Embeddings of recent queries."""

from __future__ import annotations

from collections import OrderedDict

from services.matcher import metrics
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
