"""Collections with two copies: two real servers behind a proxy that behaves like a cluster of two nodes.

Every write goes to both copies, every read to one. A copy can refuse writes: then the call fails, as with
`write_consistency_factor: 2`, but the write stays on the copy that took it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from qdrant_client import grpc as qdrant

_POINT_WRITES = {
    "/qdrant.Points/Upsert": qdrant.UpsertPoints,
    "/qdrant.Points/Delete": qdrant.DeletePoints,
    "/qdrant.Points/UpdateBatch": qdrant.UpdateBatchPoints,
    "/qdrant.Points/CreateFieldIndex": qdrant.CreateFieldIndexCollection,
}
_COLLECTION_WRITES = (
    "/qdrant.Collections/Create",
    "/qdrant.Collections/Update",
    "/qdrant.Collections/Delete",
)
_REFUSAL = (
    "Service internal error: 1 out of 2 shards failed to apply operation. First error captured:"
    " Service internal error: The service is currently unavailable"
)


class ReplicatedQdrant(grpc.GenericRpcHandler):
    """Listens on a free port of 127.0.0.1 from `start` to `stop`.

    Args:
        ports: the gRPC ports of the two copies.
    """

    def __init__(self, ports: tuple[int, int]) -> None:
        # The copy that answers reads: 0 or 1.
        self.read_from = 0
        # Whether a copy refuses a write of points to a collection.
        self.refuses: Callable[[int, str], bool] = lambda copy, collection: False
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

    def service(self, handler_call_details: Any) -> Any:
        """Every method is forwarded as bytes."""
        method = handler_call_details.method

        async def forward(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            return await self._forward(method, request, context)

        return grpc.unary_unary_rpc_method_handler(forward)

    async def _forward(
        self, method: str, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> bytes:
        try:
            if method in _POINT_WRITES:
                collection = _POINT_WRITES[method].FromString(request).collection_name
                answers = [
                    await self._call(copy, method, request)
                    for copy in (0, 1)
                    if not self.refuses(copy, collection)
                ]
                if len(answers) < len(self._channels):
                    await context.abort(grpc.StatusCode.INTERNAL, _REFUSAL)
                return answers[self.read_from]
            if method.startswith(_COLLECTION_WRITES):
                return [await self._call(copy, method, request) for copy in (0, 1)][self.read_from]
            return await self._call(self.read_from, method, request)
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or "")
            raise AssertionError("abort() always raises") from error

    async def _call(self, copy: int, method: str, request: bytes) -> bytes:
        answer: bytes = await self._channels[copy].unary_unary(method)(request)
        return answer
