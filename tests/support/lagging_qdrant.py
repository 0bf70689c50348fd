"""A cluster whose nodes learn of collections, metadata and aliases one after the other.

One real server behind one proxy for each node. A node shows what was true some seconds ago, but never less
than what was changed through it. It refuses to read and write points of a collection that it does not know
yet. The points themselves are those of the real server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc
from qdrant_client import grpc as qdrant

from tests.support.grpc_proxy import ForwardingHandler

_ALIASES = "/qdrant.Collections/ListAliases"
_LIST = "/qdrant.Collections/List"
_GET = "/qdrant.Collections/Get"
_UPDATE = "/qdrant.Collections/Update"
# What all nodes agree on. The node that is asked knows all earlier changes when it answers.
_CHANGES = (
    "/qdrant.Collections/Create",
    _UPDATE,
    "/qdrant.Collections/Delete",
    "/qdrant.Collections/UpdateAliases",
    "/qdrant.Points/CreateFieldIndex",
)
_POINTS = "/qdrant.Points/"


@dataclass(frozen=True)
class _State:
    """What a node may show. `collections` has the answers to Get by name."""

    since: float
    aliases: bytes = b""
    collections: dict[str, bytes] = field(default_factory=dict)


class LaggingQdrant:
    """Listens on one free port of 127.0.0.1 for each node, from `start` to `stop`.

    Attributes:
        lags: how many seconds each node is behind. Tests may change them.
        urls: of the nodes.
    """

    def __init__(self, port: int, lags: Sequence[float]) -> None:
        self.lags = list(lags)
        self.urls: list[str] = []
        self._port = port
        self._servers: list[grpc.aio.Server] = []
        self._history: list[_State] = []
        self._change = asyncio.Lock()

    async def start(self) -> None:
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{self._port}")
        await self._record()
        for number in range(len(self.lags)):
            server = grpc.aio.server()
            server.add_generic_rpc_handlers([_Node(self, number)])
            self.urls.append(f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
            await server.start()
            self._servers.append(server)

    async def stop(self) -> None:
        for server in self._servers:
            await server.stop(grace=None)
        await self._channel.close()

    def state_for(self, number: int, newest_known: int) -> int:
        """The number of the state that a node shows now."""
        until = time.monotonic() - self.lags[number]
        shown = [at for at, state in enumerate(self._history) if state.since <= until]
        return max(newest_known, *shown, 0)

    def state(self, at: int) -> _State:
        return self._history[at]

    async def change(self, method: str, request: bytes) -> tuple[bytes, int]:
        """Make a change; returns the answer and the number of the new state."""
        async with self._change:
            answer = await self.call(method, request)
            await self._record()
            return answer, len(self._history) - 1

    async def call(self, method: str, request: bytes) -> bytes:
        answer: bytes = await self._channel.unary_unary(method)(request)
        return answer

    async def _record(self) -> None:
        aliases = await self.call(_ALIASES, b"")
        listed = qdrant.ListCollectionsResponse.FromString(await self.call(_LIST, b""))
        found = {}
        for one in listed.collections:
            request = qdrant.GetCollectionInfoRequest(collection_name=one.name)
            found[one.name] = await self.call(_GET, request.SerializeToString())
        self._history.append(_State(time.monotonic(), aliases, found))


class _Node(ForwardingHandler):
    def __init__(self, cluster: LaggingQdrant, number: int) -> None:
        self._cluster = cluster
        self._number = number
        self._known = 0

    async def answer(
        self, method: str, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> bytes:
        self._known = self._cluster.state_for(self._number, self._known)
        shown = self._cluster.state(self._known)
        if method == _ALIASES:
            return shown.aliases
        if method in (_GET, _UPDATE) or method.startswith(_POINTS):
            # The name is the first field of all these requests.
            name = qdrant.GetCollectionInfoRequest.FromString(request).collection_name
            if name not in shown.collections:
                details = f"Not found: Collection `{name}` doesn't exist!"
                await context.abort(grpc.StatusCode.NOT_FOUND, details)
            if method == _GET:
                return shown.collections[name]
        if method not in _CHANGES:
            return await self._cluster.call(method, request)
        # A caller that goes away does not end a change.
        answer, known = await asyncio.shield(self._cluster.change(method, request))
        self._known = max(self._known, known)
        return answer
