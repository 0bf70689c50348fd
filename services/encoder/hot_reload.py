"""Other models without downtime: loaded beside those that serve, which they then replace."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from services.encoder import metrics
from services.encoder.model_registry import ModelRegistry
from textmatch.runtime.process import trim_heap

_log = logging.getLogger(__name__)

# Calls that began with the old models have ended by then.
_RELEASED_AFTER_SECONDS = 60.0


class Reloader:
    """Loads the models once more whenever that is asked for, one reload at a time.

    A worker thread reads files and makes models, and hands each pass that warms a model up to the engine's
    thread, as an errand between two batches. That is no job: a job that fails is halved, blames its texts
    and in the end breaks the engine, and its tokens would count as callers' work.
    """

    def __init__(self) -> None:
        self._wanted = asyncio.Event()

    def request(self) -> None:
        """Ask for a reload. Asked while one runs, however often, it is followed by one more."""
        self._wanted.set()

    async def run(
        self, load: Callable[[], Awaitable[ModelRegistry]], serve: Callable[[ModelRegistry], None]
    ) -> None:
        """Reload when asked to, until cancelled; what was asked for before it runs is not lost.

        Args:
            load: finds, loads and warms up the models, without holding up the event loop.
            serve: lets new calls have them.
        """
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            await _reload(load, serve)
            # Parts of models lie in reference cycles, which could wait long for a collection of their own.
            asyncio.get_running_loop().call_later(_RELEASED_AFTER_SECONDS, trim_heap)


async def _reload(
    load: Callable[[], Awaitable[ModelRegistry]], serve: Callable[[ModelRegistry], None]
) -> None:
    started = time.monotonic()
    _log.info("reloading the models")
    try:
        models = await load()
    except Exception as error:  # noqa: BLE001 -- whatever is wrong with the new models, the old ones serve
        metrics.RELOADS_TOTAL.labels("failed").inc()
        reason = " ".join(str(error).split())
        _log.error("cannot reload, the models loaded before keep serving: %s", reason)
        return
    serve(models)
    metrics.RELOADS_TOTAL.labels("done").inc()
    _log.info("reloaded", extra={"reload_seconds": round(time.monotonic() - started, 2)})
