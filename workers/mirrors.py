"""Keeping the collections beside the one in use equal to it: the one being built, the one kept to go back to.

Ingest must not stand still because of them. If the encoder does not serve a mirror's model, batches wait for
it a while, as other encoders may serve it; then the mirror loses its role, and an operator learns of it. From
then on it lacks writes, so that it cannot be put to use before `textmatch reindex` has completed it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from textmatch.errors import ModelMismatch
from textmatch.index.collections import Role, Roles
from textmatch.index.store import Index
from textmatch.reindexing.copying import Copier
from workers import metrics

_log = logging.getLogger(__name__)


class Mirrors:
    """Shared by all batches of a worker."""

    def __init__(self, index: Index, copier: Copier, patience_seconds: float) -> None:
        self._index = index
        self._copier = copier
        self._patience_seconds = patience_seconds
        # Since when no batch could be written, on the monotonic clock, by collection.
        self._failing_since: dict[str, float] = {}

    async def update(self, ids: Sequence[str], roles: Roles) -> None:
        """Make the mirrors hold what the collection in use holds of these documents.

        Raises:
            ModelMismatch: a mirror's model is not served, and it may be tried again.
            TextMatchError: it must be tried again.
        """
        metrics.ABANDONED_COLLECTIONS.set(1 if roles.abandoned else 0)
        for role, mirror in ((Role.NEXT, roles.next), (Role.PREVIOUS, roles.previous)):
            if mirror:
                await self._update(ids, role, source=roles.in_use, mirror=mirror)

    async def _update(self, ids: Sequence[str], role: Role, *, source: str, mirror: str) -> None:
        try:
            copied = await self._copier.copy(ids, source=source, target=mirror)
        except ModelMismatch as error:
            since = self._failing_since.setdefault(mirror, time.monotonic())
            if time.monotonic() - since < self._patience_seconds:
                raise
            await self._index.succession.abandon(role)
            _log.error(
                "collection abandoned: its model is not served",
                extra={"collection": mirror, "error": str(error)},
            )
            return
        for letter in copied.refused.values():
            _log.warning(
                "document missing in the mirror",
                extra={"document_id": letter.key, "collection": mirror, "error": letter.error},
            )
        self._failing_since.pop(mirror, None)
