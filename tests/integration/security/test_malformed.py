from __future__ import annotations

import grpc
import pytest

from tests.support.scripted_servicer import RunningServer, ScriptedMatcher
from textmatch.errors import InvalidInput
from textmatch.runtime.grpc_errors import from_rpc_error

SERVICE = "/textmatch.v1.MatcherService"


@pytest.mark.parametrize("method", ["Match", "BatchMatch", "IngestDocuments"])
def test_bytes_that_are_no_message_are_the_callers_fault(method: str):
    server = RunningServer.of_matcher(ScriptedMatcher())
    with grpc.insecure_channel(server.address) as channel:
        call = channel.stream_stream(f"{SERVICE}/{method}")(iter([b"\xff\xff"]), timeout=20)
        with pytest.raises(grpc.RpcError) as raised:
            list(call)
    server.stop()
    error = from_rpc_error(raised.value)
    assert isinstance(error, InvalidInput)
    assert "must be a protobuf message" in str(error)
