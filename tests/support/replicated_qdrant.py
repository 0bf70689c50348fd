"""Collections with two copies: two real servers behind a proxy that behaves like a cluster of two nodes.

Every write goes to both copies, every read to one. A copy can refuse writes: then the call fails, as with
`write_consistency_factor: 2`, but the write stays on the copy that took it. A read with the consistency
"all" returns what both copies have alike, and fails while one refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from qdrant_client import grpc as qdrant

from tests.support.grpc_proxy import ForwardingHandler

_POINT_WRITES = {
    "/qdrant.Points/Upsert": qdrant.UpsertPoints,
    "/qdrant.Points/Delete": qdrant.DeletePoints,
    "/qdrant.Points/UpdateBatch": qdrant.UpdateBatchPoints,
}
_GET = "/qdrant.Points/Get"
# Collections and payload indexes are agreed on by all nodes.
_COLLECTION_WRITES = (
    "/qdrant.Points/CreateFieldIndex",
    "/qdrant.Collections/Create",
    "/qdrant.Collections/Update",
    "/qdrant.Collections/Delete",
)
_SHARDS = 2
_REFUSAL = (
    "Service internal error: {} out of {} shards failed to apply operation. First error captured:"
    " Service internal error: The service is currently unavailable"
)
_TOO_FEW_REPLICAS = (
    "Service internal error: The replica set for shard 0 on peer 1 does not have enough active replicas"
)


def shard_of(point: str) -> int:
    """The shard of a point, by its id."""
    return int(point[-1], 16) % _SHARDS


class ReplicatedQdrant(ForwardingHandler):
    """Listens on a free port of 127.0.0.1 from `start` to `stop`.

    Args:
        ports: the gRPC ports of the two copies.
    """

    def __init__(self, ports: tuple[int, int]) -> None:
        # The copy that answers reads: 0 or 1.
        self.read_from = 0
        # Whether a copy refuses a write of points to a collection.
        self.refuses: Callable[[int, str], bool] = lambda copy, collection: False
        # The shards that copy 1 lacks. Points of other shards are written to both copies.
        self.missing_shards: set[int] = set()
        self.url = ""
        self._ports = ports
        self._channels: list[grpc.aio.Channel] = []
        self._server = grpc.aio.server()

    async def start(self) -> None:
        self._channels = [grpc.aio.insecure_channel(f"127.0.0.1:{port}") for port in self._ports]
        self._server.add_generic_rpc_handlers([self])
        self.url = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(grace=None)
        for channel in self._channels:
            await channel.close()

    async def answer(
        self, method: str, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> bytes:
        """Writes go to both copies, reads to one or, as asked, to all."""
        if method in _POINT_WRITES:
            return await self._write(method, _POINT_WRITES[method].FromString(request), context)
        if method.startswith(_COLLECTION_WRITES):
            return [await self._call(copy, method, request) for copy in (0, 1)][self.read_from]
        if method == _GET:
            read = qdrant.GetPoints.FromString(request)
            if read.HasField("read_consistency"):
                return await self._read_all(read, context)
        return await self._call(self.read_from, method, request)

    async def _write(self, method: str, write: Any, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        requests = {copy: write for copy in (0, 1) if not self.refuses(copy, write.collection_name)}
        shards = _shards_of(write)
        failed = self.missing_shards & shards
        if 1 in requests and failed:
            requests[1] = _without(write, failed)
        if len(requests) < len(self._channels):
            failed = shards
        answers = {
            copy: await self._call(copy, method, one.SerializeToString()) for copy, one in requests.items()
        }
        if failed:
            await context.abort(grpc.StatusCode.INTERNAL, _REFUSAL.format(len(failed), len(shards)))
        return answers[self.read_from]

    async def _read_all(self, read: Any, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        if self.missing_shards or any(self.refuses(copy, read.collection_name) for copy in (0, 1)):
            await context.abort(grpc.StatusCode.INTERNAL, _TOO_FEW_REPLICAS)
        request = read.SerializeToString()
        answers = [qdrant.GetResponse.FromString(await self._call(copy, _GET, request)) for copy in (0, 1)]
        others = {one.id.uuid: one for one in answers[1].result}
        alike = [one for one in answers[0].result if others.get(one.id.uuid) == one]
        return qdrant.GetResponse(result=alike).SerializeToString()

    async def _call(self, copy: int, method: str, request: bytes) -> bytes:
        answer: bytes = await self._channels[copy].unary_unary(method)(request)
        return answer


def _shards_of(write: Any) -> set[int]:
    """The shards to which a write is sent; a delete by a filter is sent to all."""
    points = [point for points in _upserts(write) for point in points]
    return {shard_of(point.id.uuid) for point in points} or set(range(_SHARDS))


def _without(write: Any, shards: set[int]) -> Any:
    """A copy of a write without the points of these shards."""
    rest = type(write)()
    rest.CopyFrom(write)
    for points in _upserts(rest):
        kept = [point for point in points if shard_of(point.id.uuid) not in shards]
        del points[:]
        points.extend(kept)
    return rest


def _upserts(write: Any) -> list[Any]:
    """The lists of points in it."""
    if isinstance(write, qdrant.UpdateBatchPoints):
        return [one.upsert.points for one in write.operations if one.HasField("upsert")]
    return [write.points] if isinstance(write, qdrant.UpsertPoints) else []
