"""Limits that a server has for all of its callers."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.matcher.servicer import METHOD_LIMITS
from tests.support.scripted_servicer import RunningServer, ScriptedMatcher
from textmatch.client import TextMatchClient
from textmatch.errors import InvalidInput, Overloaded
from textmatch.runtime.auth import ApiKeys, charge_match
from textmatch.runtime.grpc_errors import from_rpc_error
from textmatch.v1 import collection_service_pb2 as collection_pb
from textmatch.v1 import matcher_service_pb2 as pb

KEY = "the-reading-key-0123456789"


def test_more_calls_than_may_run_are_refused_and_health_checks_are_not():
    matcher = ScriptedMatcher()
    matcher.delay_seconds = 3.0
    server = RunningServer.of_matcher(matcher, max_running_calls=2)
    with TextMatchClient(server.address, timeout_seconds=30) as client:
        threads = [threading.Thread(target=client.match, args=[f"query {number}"]) for number in range(2)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 20
        while len(matcher.match_requests) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(Overloaded, match="the server runs 2 calls already") as raised:
            client.ingest_status()
        assert raised.value.retry_delay_seconds == 1.0
        with grpc.insecure_channel(server.address) as channel:
            health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        for thread in threads:
            thread.join()
        assert client.ingest_status().document_count == 0
    server.stop()


@pytest.mark.parametrize("method", METHOD_LIMITS)
def test_every_method_has_a_largest_request(method: str):
    server = RunningServer.of_matcher(ScriptedMatcher(), method_limits=METHOD_LIMITS)
    too_large = bytes(METHOD_LIMITS[method].max_bytes + 1)
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as raised:
        list(channel.stream_stream(method)(iter([too_large]), timeout=60))
    server.stop()
    error = from_rpc_error(raised.value)
    assert isinstance(error, InvalidInput)
    assert f"the limit of this method is {len(too_large) - 1:,}" in str(error)


def test_every_method_of_the_matcher_has_limits():
    services = [
        *pb.DESCRIPTOR.services_by_name.values(),
        *collection_pb.DESCRIPTOR.services_by_name.values(),
    ]
    methods = [method for service in services for method in service.methods]
    assert set(METHOD_LIMITS) == {
        f"/{method.containing_service.full_name}/{method.name}" for method in methods
    }


class ChargingMatcher(ScriptedMatcher):
    """Says that each Match scored many pairs."""

    async def Match(self, request, context):  # noqa: N802 -- the name of the call
        charge_match(candidate_count=100, scored_count=20)
        return await super().Match(request, context)


def test_a_key_is_charged_for_the_pairs_and_candidates_of_its_matches(tmp_path: Path):
    keys = tmp_path / "keys"
    keys.write_text(f"reader read {KEY} 100")
    server = RunningServer.of_matcher(ChargingMatcher(), api_keys=ApiKeys(keys))
    with TextMatchClient(server.address, api_key=KEY, timeout_seconds=20) as client:
        client.match("query")
        with pytest.raises(Overloaded, match="has used up its 100 tokens per second") as raised:
            client.match("query")
    server.stop()
    # A burst of 1,000 tokens less 1,100 for the Match and a few for its request.
    assert 0.5 < raised.value.retry_delay_seconds < 1.5
