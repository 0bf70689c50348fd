"""What has to happen from time to time: syncing logs, flushing, rebuilding indexes."""

from __future__ import annotations

import asyncio
import logging
import time

from standalone.qdrant_edge.catalog import Catalog
from standalone.qdrant_edge.collection import Collection
from standalone.qdrant_edge.rebuild import rebuild

_log = logging.getLogger(__name__)

_INTERVAL_SECONDS = 1.0
_RETRY_REBUILD_SECONDS = 60.0


class Maintenance:
    """Looks after all collections until it is cancelled; rebuilds one at a time."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._no_rebuild_before = 0.0

    async def run(self) -> None:
        """Never ends by itself: a collection that fails is logged and tried again."""
        while True:
            await asyncio.sleep(_INTERVAL_SECONDS)
            for collection in self._catalog.collections:
                try:
                    await self._tend(collection)
                except Exception:  # noqa: BLE001 (a failing collection must not stop the others' care)
                    _log.exception("cannot look after collection %s", collection.name)

    async def _tend(self, collection: Collection) -> None:
        await collection.sync_log()
        if collection.is_flush_due():
            collection.flush()
        is_busy = any(one.rebuild_task is not None for one in self._catalog.collections)
        if not is_busy and time.monotonic() >= self._no_rebuild_before and collection.needs_rebuild():
            collection.rebuild_task = asyncio.create_task(self._rebuild(collection))

    async def _rebuild(self, collection: Collection) -> None:
        try:
            await rebuild(collection)
        except Exception:  # noqa: BLE001 (the collection works without)
            _log.exception("cannot rebuild the index of %s", collection.name)
            self._no_rebuild_before = time.monotonic() + _RETRY_REBUILD_SECONDS
        finally:
            collection.rebuild_task = None
