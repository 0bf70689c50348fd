"""A try whose answer was lost is repeated: the second one must change nothing that came in between."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis

from services.matcher.documents import DocumentsHandler
from services.matcher.ingest import IngestHandler
from services.matcher.servicer import METHOD_LIMITS, MatcherServicer
from tests.integration.ingest.document_calls import DocumentCalls
from tests.integration.ingest.indexing import IngestState, make_ingest_state
from tests.support.collections import STATE, FixedStore
from tests.support.queue import take_queued
from tests.support.wrong_clock import WrongClock
from textmatch.client import AsyncTextMatchClient, FieldMatch, TextMatchClient
from textmatch.client import batches as batches_module
from textmatch.documents import Document
from textmatch.errors import InvalidInput, NotReady
from textmatch.filters import Filter
from textmatch.index.index import Index
from textmatch.runtime.channel import MAX_MESSAGE_BYTES
from textmatch.runtime.server import GrpcServer
from textmatch.v1 import matcher_service_pb2 as pb
from textmatch.v1.matcher_service_pb2_grpc import add_MatcherServiceServicer_to_server
from workers.indexer import IndexerDependencies, index_documents

RED = pb.Filter(must=[pb.Condition(match=pb.FieldMatch(field="colour", values=[{"string_value": "red"}]))])
HOUR_S = 3_600


async def write(handler: DocumentCalls, text: str, request_id: str = "", **fields: Any) -> int:
    """Write the document "a"; returns its version."""

    async def requests() -> AsyncIterator[pb.IngestDocumentsRequest]:
        document = pb.Document(id="a", text=text, attributes={"colour": "red"}, **fields)
        yield pb.IngestDocumentsRequest(documents=[document], request_id=request_id)

    [response] = [one async for one in handler.ingest(requests())]
    [result] = response.results
    assert result.outcome == pb.INGEST_OUTCOME_ACCEPTED
    return result.version


async def delete(handler: DocumentCalls, request_id: str = "", *, by_filter: bool = False) -> int:
    what: dict[str, Any] = {"filter": RED} if by_filter else {"ids": ["a"]}
    return (await handler.delete(pb.DeleteDocumentsRequest(**what, request_id=request_id))).deleted_count


async def stored(deps: IndexerDependencies, redis: Redis) -> str | None:
    """The text of the document "a" after a worker has done all that is queued."""
    if documents := await take_queued(redis):
        await index_documents(documents, deps)
    found = await deps.collection.index.fetch(["a"])
    return found["a"].document.text if found else None


@pytest.fixture
def request_id() -> str:
    return str(uuid.uuid4())


async def test_a_retried_write_keeps_the_version_of_its_first_try(
    handler: DocumentCalls, deps: IndexerDependencies, redis: Redis, request_id: str
):
    first = await write(handler, "first", request_id)
    second = await write(handler, "second")
    assert await write(handler, "first", request_id) == first < second
    assert await stored(deps, redis) == "second"
    assert await write(handler, "first", request_id.upper()) == first
    assert await stored(deps, redis) == "second"
    assert await write(handler, "third", str(uuid.uuid4())) > second
    assert await stored(deps, redis) == "third"


async def test_without_an_id_a_retry_is_a_new_write(
    handler: DocumentCalls, deps: IndexerDependencies, redis: Redis
):
    await write(handler, "first")
    await write(handler, "second")
    await write(handler, "first")
    assert await stored(deps, redis) == "first"


@pytest.mark.parametrize("by_filter", [False, True])
async def test_a_retried_write_restores_nothing_that_was_deleted(
    handler: DocumentCalls, deps: IndexerDependencies, redis: Redis, request_id: str, by_filter: bool
):
    await write(handler, "first", request_id)
    assert await stored(deps, redis) == "first"
    assert await delete(handler, by_filter=by_filter) == 1
    await write(handler, "first", request_id)
    assert await stored(deps, redis) is None


@pytest.mark.parametrize("by_filter", [False, True])
async def test_a_retried_delete_keeps_what_was_written_in_between(
    handler: DocumentCalls, deps: IndexerDependencies, redis: Redis, request_id: str, by_filter: bool
):
    await write(handler, "first")
    assert await stored(deps, redis) == "first"
    assert await delete(handler, request_id, by_filter=by_filter) == 1
    await write(handler, "second")
    if by_filter:  # also while the second write is still queued
        await delete(handler, request_id, by_filter=True)
    assert await stored(deps, redis) == "second"
    assert await delete(handler, request_id, by_filter=by_filter) == 0
    assert await stored(deps, redis) == "second"
    assert await delete(handler, by_filter=by_filter) == 1


async def test_a_version_of_the_client_counts_more(handler: DocumentCalls, request_id: str):
    first = await write(handler, "first", request_id)
    assert await write(handler, "other", request_id, version=first + 5) == first + 5


@pytest.fixture(params=[-HOUR_S, HOUR_S])
def other(
    request: pytest.FixtureRequest, index: Index, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> DocumentCalls:
    """A matcher whose clock is wrong by an hour: from now on it is asked after another time than before."""
    clock = WrongClock()
    clock.shift_seconds = request.param
    clock.install(monkeypatch.setattr)
    return DocumentCalls(make_ingest_state(redis, index))


async def test_a_retry_at_another_matcher_has_the_same_version(
    handler: DocumentCalls, other: DocumentCalls, deps: IndexerDependencies, redis: Redis, request_id: str
):
    first = await write(handler, "first", request_id)
    await write(handler, "second")
    assert await write(other, "first", request_id) == first
    assert await stored(deps, redis) == "second"


@pytest.mark.parametrize("shift_seconds", [0.2, HOUR_S])
@pytest.mark.parametrize("by_filter", [False, True])
async def test_the_order_of_calls_is_the_order_of_versions_however_the_matchers_clocks_differ(
    handler: DocumentCalls,
    deps: IndexerDependencies,
    index: Index,
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
    shift_seconds: float,
    by_filter: bool,
):
    """Versions came from each matcher's own clock: what came second was dropped or deleted nothing."""
    clock, late = WrongClock(), DocumentCalls(make_ingest_state(redis, index))
    clock.install(monkeypatch.setattr)

    async def at(shift: float, coroutine: Any) -> Any:
        clock.shift_seconds = shift
        return await coroutine

    old = await at(shift_seconds, write(handler, "old"))
    assert await at(-shift_seconds, write(late, "new")) > old
    assert await at(0.0, stored(deps, redis)) == "new"
    await at(shift_seconds, write(handler, "newer"))
    assert await at(0.0, stored(deps, redis)) == "newer"
    assert await at(-shift_seconds, delete(late, by_filter=by_filter)) == 1
    assert await at(0.0, stored(deps, redis)) is None
    await at(shift_seconds, write(handler, "queued"))
    await at(-shift_seconds, delete(late, by_filter=by_filter))
    assert await at(0.0, stored(deps, redis)) is None
    await at(shift_seconds, delete(handler, by_filter=by_filter))
    await at(-shift_seconds, write(late, "again"))
    assert await at(0.0, stored(deps, redis)) == "again"


@pytest.mark.parametrize("by_filter", [False, True])
async def test_a_retried_write_of_own_versions_restores_nothing_that_was_deleted(
    handler: DocumentCalls, deps: IndexerDependencies, redis: Redis, request_id: str, by_filter: bool
):
    await write(handler, "first", request_id, version=7)
    await delete(handler, by_filter=by_filter)
    assert await write(handler, "first", request_id, version=7) == 7
    assert await stored(deps, redis) is None
    assert await write(handler, "second", version=8) == 8
    assert await stored(deps, redis) == "second"


async def test_tries_at_the_same_time_have_one_version(handler: DocumentCalls, request_id: str):
    versions = await asyncio.gather(*(write(handler, "first", request_id) for _ in range(20)))
    assert len(set(versions)) == 1


async def test_a_request_is_remembered_for_minutes(handler: DocumentCalls, redis: Redis, request_id: str):
    first = await write(handler, "first", request_id)
    key = STATE.request(request_id)
    assert 300 < await redis.ttl(key) <= 3_900
    await redis.expire(key, 5)
    assert await write(handler, "first", request_id) == first
    assert await redis.ttl(key) > 300
    assert [key async for key in redis.scan_iter(STATE.request("*"))] == [key]


@pytest.mark.parametrize(
    "wrong", ["7", "no uuid", "x" * 36, "\0" * 36, "1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed "]
)
async def test_the_id_of_a_request_is_a_uuid(handler: DocumentCalls, wrong: str):
    for act in (lambda: write(handler, "text", wrong), lambda: delete(handler, wrong)):
        with pytest.raises(InvalidInput, match="request_id: is not a UUID"):
            await act()


class ForgetfulServicer(MatcherServicer):
    """Does what a matcher does, and loses the answer of the next write and of the next delete."""

    def __init__(self, state: IngestState) -> None:
        store: Any = FixedStore(state.collection)
        untouched: Any = None
        super().__init__(
            store,
            untouched,
            IngestHandler(state.shared),
            DocumentsHandler(state.shared),
            untouched,
            match_timeout_seconds=10,
            batch_match_concurrency=1,
        )
        # What somebody else does before the next try.
        self.in_between: Callable[[], Any] | None = None

    async def IngestDocuments(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async for response in super().IngestDocuments(request_iterator, context):
            await self._maybe_lose()
            yield response

    async def DeleteDocuments(self, request: Any, context: Any) -> Any:  # noqa: N802
        response = await super().DeleteDocuments(request, context)
        await self._maybe_lose()
        return response

    async def _maybe_lose(self) -> None:
        if self.in_between is not None:
            in_between, self.in_between = self.in_between, None
            await in_between()
            raise NotReady("the answer is lost")


@asynccontextmanager
async def serving(servicer: MatcherServicer) -> AsyncIterator[str]:
    server = GrpcServer("127.0.0.1", 0, MAX_MESSAGE_BYTES, method_limits=METHOD_LIMITS)
    server.add(add_MatcherServiceServicer_to_server, servicer, "textmatch.v1.MatcherService")
    yield await server.start()
    await server.drain(1.0)


class Caller:
    """Calls methods of either client."""

    def __init__(self, address: str, *, is_async: bool) -> None:
        self._client: Any = AsyncTextMatchClient(address) if is_async else TextMatchClient(address)
        self._is_async = is_async

    async def call(self, method: str, *values: Any) -> Any:
        act = getattr(self._client, method)
        return await act(*values) if self._is_async else await asyncio.to_thread(act, *values)

    async def close(self) -> None:
        await self.call("close")


@pytest.mark.parametrize("is_async", [False, True])
async def test_both_clients_retry_without_overwriting_or_restoring_or_removing_anything(
    index: Index,
    state: IngestState,
    deps: IndexerDependencies,
    redis: Redis,
    handler: DocumentCalls,
    monkeypatch: pytest.MonkeyPatch,
    is_async: bool,
):
    monkeypatch.setattr(batches_module, "_MAX_BACKOFF_SECONDS", 0.05)
    servicer = ForgetfulServicer(state)
    async with serving(servicer) as address:
        caller = Caller(address, is_async=is_async)
        # Another client overwrites what this one wrote.
        servicer.in_between = lambda: write(handler, "of another")
        document = Document("a", "of this client", {"colour": "red"})
        assert (await caller.call("ingest_all", [document])).accepted == 1
        assert await stored(deps, redis) == "of another"
        # Another client deletes what this one wrote.
        servicer.in_between = lambda: delete(handler)
        await caller.call("ingest_all", [document])
        assert await stored(deps, redis) is None
        # Another client writes again what this one deleted.
        red = Filter(must=(FieldMatch("colour", ("red",)),))
        for arguments in (("delete", ["a"]), ("delete_where", red)):
            await write(handler, "to be deleted")
            assert await stored(deps, redis) == "to be deleted"
            servicer.in_between = lambda: write(handler, "again")
            await caller.call(*arguments)
            assert await stored(deps, redis) == "again"
        await caller.close()
