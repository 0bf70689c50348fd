"""How much has been written since the index was built.

The engine does not tell: a changed point leaves the HNSW graph for a segment that is scanned, but stays in
the count of indexed vectors.
"""

from __future__ import annotations

from collections.abc import Iterable

from standalone.qdrant_edge.points import EdgeId

_MAX_IDS = 100_000


class Backlog:
    """Counts points, one that is written again only once as long as not too many come in between."""

    def __init__(self, carried: int) -> None:
        """Go on from the number that a former process left."""
        self._carried = carried
        self._ids: set[EdgeId] = set()

    def add(self, ids: Iterable[EdgeId]) -> None:
        """These points have been written."""
        self._ids.update(ids)
        if len(self._ids) >= _MAX_IDS:
            self._carried += len(self._ids)
            self._ids = set()

    def __len__(self) -> int:
        return self._carried + len(self._ids)

    def take(self) -> int:
        """Start at zero again; returns the number so far."""
        taken = len(self)
        self._carried = 0
        self._ids = set()
        return taken

    def give_back(self, taken: int) -> None:
        """What was taken has not been indexed after all."""
        self._carried += taken
