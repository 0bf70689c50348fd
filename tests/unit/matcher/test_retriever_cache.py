"""The cache of query embeddings is limited in bytes, whatever the queries are."""

from __future__ import annotations

import tracemalloc

import pytest

from tests.unit.matcher.scripted import ScriptedEncoder, matcher, soon
from textmatch.types import MatchOptions, Rerank

RECALL_ONLY = MatchOptions(rerank=Rerank.NONE)


async def test_long_queries_do_not_fill_the_memory():
    answering = matcher(ScriptedEncoder(), cache_bytes=10_000_000)
    tracemalloc.start()
    for number in range(300):
        await answering.match(f"{number} " + "x" * 32_000, RECALL_ONLY, deadline=soon(10))
    kept_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept_bytes < 1_000_000


@pytest.mark.parametrize(("cache_bytes", "encoded"), [(10_000, 3), (0, 4), (100, 4)])
async def test_what_fits_is_embedded_once(cache_bytes: int, encoded: int):
    encoder = ScriptedEncoder()
    answering = matcher(encoder, cache_bytes=cache_bytes)
    for query in ("a", "b", "c", "a"):
        await answering.match(query, RECALL_ONLY, deadline=soon())
    assert encoder.encode_count == encoded


async def test_the_oldest_are_dropped_when_the_bytes_are_used_up():
    encoder = ScriptedEncoder()
    answering = matcher(encoder, cache_bytes=10_000)
    for number in range(100):
        await answering.match(f"query {number}", RECALL_ONLY, deadline=soon())
    for query, is_known in (("query 99", True), ("query 0", False)):
        before = encoder.encode_count
        await answering.match(query, RECALL_ONLY, deadline=soon())
        assert (encoder.encode_count == before) is is_known
