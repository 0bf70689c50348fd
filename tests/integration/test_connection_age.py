"""Connections are reopened regularly: clients find new replicas, and running calls are not affected."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.name_server import NameServer
from tests.support.scripted_servicer import RunningServer, ScriptedMatcher
from textmatch.client import TextMatchClient
from textmatch.runtime.channel import MAX_MESSAGE_BYTES, open_aio_channel, open_channel
from textmatch.runtime.server import GrpcServer
from textmatch.runtime.settings import ServerSettings, load
from textmatch.v1 import matcher_service_pb2 as pb
from textmatch.v1 import matcher_service_pb2_grpc as pb_grpc

AGE_SECONDS = 0.5
LOAD_SECONDS = 8 * AGE_SECONDS
# gRPC does not ask a name server more often.
MIN_RESOLUTION_SECONDS = 30


class PeerMatcher(ScriptedMatcher):
    """Notes over which connections it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.peers: list[str] = []

    async def GetIngestStatus(  # noqa: N802
        self, request: pb.GetIngestStatusRequest, context: Any
    ) -> pb.GetIngestStatusResponse:
        self.peers.append(context.peer())
        return await super().GetIngestStatus(request, context)


def test_servers_have_clients_connect_anew_unless_told_otherwise():
    assert load(ServerSettings, {}).connection_age_seconds > MIN_RESOLUTION_SECONDS
    assert load(ServerSettings, {"TEXTMATCH_CONNECTION_AGE_SECONDS": "0"}).connection_age_seconds == 0


def test_no_call_fails_and_no_stream_ends_when_a_connection_is_renewed():
    matcher = PeerMatcher()
    server = RunningServer.of_matcher(matcher, connection_age_seconds=AGE_SECONDS)
    until = time.monotonic() + LOAD_SECONDS
    streamed: list[str] = []

    def stream() -> None:
        with open_channel(server.address) as channel:
            answers = pb_grpc.MatcherServiceStub(channel).IngestDocuments(_documents_until(until), timeout=60)
            streamed.extend(result.id for answer in answers for result in answer.results)

    thread = threading.Thread(target=stream)
    thread.start()
    calls = 0
    with TextMatchClient(server.address, timeout_seconds=30) as client:
        while time.monotonic() < until:
            client.ingest_status()
            calls += 1
    thread.join(60)
    server.stop()
    assert len(set(matcher.peers)) > 3
    assert calls == len(matcher.peers), "a call was tried twice"
    assert streamed == [str(number) for number in range(len(streamed))]
    assert len(streamed) > LOAD_SECONDS / AGE_SECONDS


@pytest.mark.slow
async def test_a_new_replica_gets_calls_from_clients_that_were_there_before():
    old, new = PeerMatcher(), PeerMatcher()
    servers, port = [], 0
    for host, matcher in (("127.0.0.1", old), ("127.0.0.2", new)):
        server = GrpcServer(host, port, MAX_MESSAGE_BYTES, connection_age_seconds=1)
        server.add(pb_grpc.add_MatcherServiceServicer_to_server, matcher, "textmatch.v1.MatcherService")
        port = int((await server.start()).rpartition(":")[2])
        servers.append(server)
    with NameServer(["127.0.0.1"]) as names:
        channel = open_aio_channel(f"dns://127.0.0.1:{names.port}/matcher.test:{port}")
        stub = pb_grpc.MatcherServiceStub(channel)
        await stub.GetIngestStatus(pb.GetIngestStatusRequest(), timeout=30)
        names.addresses = ("127.0.0.1", "127.0.0.2")
        deadline = time.monotonic() + 2 * MIN_RESOLUTION_SECONDS + 30
        while not new.peers and time.monotonic() < deadline:
            await stub.GetIngestStatus(pb.GetIngestStatusRequest(), timeout=30)
            await asyncio.sleep(0.05)
        await channel.close()
    for server in servers:
        await server.drain(1)
    assert old.peers
    assert new.peers


def _documents_until(end: float) -> Iterator[pb.IngestDocumentsRequest]:
    number = 0
    while time.monotonic() < end + AGE_SECONDS:
        yield pb.IngestDocumentsRequest(documents=[pb.Document(id=str(number), text="the cat")])
        number += 1
        time.sleep(AGE_SECONDS / 4)
