"""A proxy before a gRPC server: it answers as a real Qdrant (1.18.3) or a mesh was seen to, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from grpc import StatusCode

WRITES = (
    "/qdrant.Points/Upsert",
    "/qdrant.Points/UpdateBatch",
    "/qdrant.Points/Delete",
    "/qdrant.Points/CreateFieldIndex",
    "/qdrant.Collections/Create",
    "/qdrant.Collections/UpdateAliases",
)


@dataclass(frozen=True)
class Refusal:
    """An answer that only an operator can change, and the methods that are answered so; () means all.

    Attributes:
        reason: of the error that textmatch must make of it.
    """

    code: StatusCode
    details: str
    reason: str
    methods: tuple[str, ...] = ()

    def concerns(self, method: str) -> bool:
        return not self.methods or method in self.methods


NO_KEY = Refusal(
    StatusCode.UNAUTHENTICATED,
    "Must provide an API key or an Authorization bearer token",
    "STORE_ACCESS_DENIED",
)
WRONG_KEY = Refusal(StatusCode.UNAUTHENTICATED, "Invalid API key or JWT", "STORE_ACCESS_DENIED")
READ_ONLY_KEY = Refusal(
    StatusCode.PERMISSION_DENIED,
    "Forbidden: Global manage access is required",
    "STORE_ACCESS_DENIED",
    WRITES,
)
DISK_FULL = Refusal(
    StatusCode.INTERNAL,
    "Service internal error: No space left on device: WAL buffer size exceeds available disk space",
    "STORE_FULL",
    WRITES,
)
QUOTA = Refusal(StatusCode.RESOURCE_EXHAUSTED, "Storage quota exceeded", "STORE_FULL", WRITES)
STRICT_MODE = Refusal(
    StatusCode.INVALID_ARGUMENT,
    'Bad request: Index required but not found for "version" of one of the following types: [integer]. Help:'
    " Create an index for this key or use a different filter.",
    "STORE_MISCONFIGURED",
    WRITES,
)
STRICT_LIMIT = Refusal(
    StatusCode.INVALID_ARGUMENT,
    'Bad request: Limit exceeded 3 > 2 for "upsert limit". Help: Reduce the "upsert limit" parameter to 2.',
    "STORE_MISCONFIGURED",
    ("/qdrant.Points/UpdateBatch", "/qdrant.Points/Upsert"),
)
PRECONDITION = Refusal(
    StatusCode.FAILED_PRECONDITION,
    "Pre-condition failure: the collection is being resharded",
    "STORE_MISCONFIGURED",
    WRITES,
)
REFUSALS = {
    "no key": NO_KEY,
    "wrong key": WRONG_KEY,
    "read-only key": READ_ONLY_KEY,
    "disk full": DISK_FULL,
    "quota": QUOTA,
    "strict mode": STRICT_MODE,
    "strict limit": STRICT_LIMIT,
    "precondition": PRECONDITION,
}


# What a proxy answers while the server behind it restarts.
NO_UPSTREAM = Refusal(
    StatusCode.UNAVAILABLE,
    "upstream connect error or disconnect/reset before headers",
    "DEPENDENCY_UNAVAILABLE",
)


class ForwardingHandler(grpc.GenericRpcHandler):
    """Serves every unary method by `answer`. Requests and answers are bytes; errors are passed on."""

    async def answer(
        self, method: str, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> bytes:
        """The answer to a request.

        Raises:
            grpc.aio.AioRpcError: as a server behind it has answered.
        """
        raise NotImplementedError

    def service(self, handler_call_details: Any) -> Any:
        """Called by gRPC for each call."""
        method = handler_call_details.method

        async def forward(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            try:
                return await self.answer(method, request, context)
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details() or "")
                raise AssertionError("abort() always raises") from error

        return grpc.unary_unary_rpc_method_handler(forward)


class GrpcProxy(ForwardingHandler):
    """Listens on a free port of 127.0.0.1 from `start` to `stop`. Requests and answers pass as bytes.

    Args:
        port: the gRPC port of the server.
    """

    def __init__(self, port: int) -> None:
        self.refusal: Refusal | None = None
        # Decides by method and request; instead of `refusal`.
        self.refuses: Callable[[str, bytes], Refusal | None] = lambda method, request: None
        # While it is not set, requests are taken and never answered.
        self.answers = asyncio.Event()
        self.answers.set()
        # The methods that were called, refused ones included.
        self.calls: list[str] = []
        self.url = ""
        self._port = port
        self._server = grpc.aio.server(
            options=[("grpc.so_reuseport", 0), ("grpc.http2.min_ping_interval_without_data_ms", 1_000)]
        )

    async def start(self) -> None:
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{self._port}")
        self._server.add_generic_rpc_handlers([self])
        self.url = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()

    async def stop(self) -> None:
        self.answers.set()
        await self._server.stop(grace=None)
        await self._channel.close()

    async def answer(
        self, method: str, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> bytes:
        """Every method is forwarded, unless it is refused or held."""
        self.calls.append(method)
        await self.answers.wait()
        refusal = self.refusal or self.refuses(method, request)
        if refusal and refusal.concerns(method):
            await context.abort(refusal.code, refusal.details)
        answer: bytes = await self._channel.unary_unary(method)(request)
        return answer
