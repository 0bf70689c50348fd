"""Wait for a Redis and a Qdrant that somebody else runs, and say what is missing.

    waiting for Qdrant at http://10.0.0.5:6334: Qdrant does not answer: connection refused
    using Qdrant at http://10.0.0.5:6334

Refused credentials end the command: waiting would not help.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import urlsplit

from standalone.stack import ExternalStores
from textmatch.errors import DependencyUnavailable, StoreAccessDenied, TextMatchError
from textmatch.index.client import connect as connect_qdrant
from textmatch.index.client import translated_errors as qdrant_errors
from textmatch.queue.redis_client import connect as connect_redis
from textmatch.queue.redis_client import translated_errors as redis_errors
from textmatch.runtime.settings import StoreSettings, load

_POLL_SECONDS = 1.0
_ANSWER_SECONDS = 5.0

Report = Callable[[str], None]


class StoreUnusable(TextMatchError):
    """A store that was named cannot be used."""


async def wait_for_stores(stores: ExternalStores, environment: Mapping[str, str], report: Report) -> None:
    """Wait until the stores that are named answer; report what they are waited for.

    Args:
        environment: with the settings of the connection to Qdrant.
        report: called with one line for each change.

    Raises:
        StoreUnusable: a store refuses the credentials.
        InvalidInput: a URL cannot be used.
    """
    if stores.redis_url:
        await _wait("Redis", stores.redis_url, lambda: _ask_redis(stores.redis_url), report)
    if stores.qdrant_url:
        settings = load(StoreSettings, environment)
        await _wait("Qdrant", stores.qdrant_url, lambda: _ask_qdrant(stores.qdrant_url, settings), report)


async def _wait(name: str, url: str, ask: Callable[[], Awaitable[str]], report: Report) -> None:
    place = f"{name} at {_shown(url)}"
    reported = ""
    while True:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                warning = await ask()
        except StoreAccessDenied as error:
            raise StoreUnusable(f"{place} cannot be used: {error}") from error
        except (DependencyUnavailable, TimeoutError) as error:
            problem = str(error) or f"no answer within {_ANSWER_SECONDS:g} s"
            if problem != reported:
                report(f"waiting for {place}: {problem}")
            reported = problem
            await asyncio.sleep(_POLL_SECONDS)
        else:
            report(f"using {place}")
            if warning:
                report(f"warning: {warning}")
            return


async def _ask_redis(url: str) -> str:
    """A warning, if documents that it accepts may be lost."""
    redis = connect_redis(url)
    try:
        with redis_errors():
            persistence = await redis.info("persistence")
            memory = await redis.info("memory")
    finally:
        await redis.aclose()
    if not persistence.get("aof_enabled"):
        return "this Redis has no append-only file; accepted documents are lost when it ends (appendonly yes)"
    if memory.get("maxmemory_policy", "noeviction") != "noeviction":
        return "this Redis may evict accepted documents; set maxmemory-policy to noeviction"
    return ""


async def _ask_qdrant(url: str, settings: StoreSettings) -> str:
    qdrant = connect_qdrant(
        url,
        settings.qdrant_api_key,
        ca=settings.qdrant_ca,
        cert=settings.tls_cert,
        key=settings.tls_key,
    )
    try:
        async with qdrant_errors():
            await qdrant.get_aliases()
    finally:
        await qdrant.close()
    return ""


def _shown(url: str) -> str:
    """The URL without user and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
