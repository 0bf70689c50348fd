"""Every RPC asks for a key with the right scope, over real gRPC; health and reflection do not."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.support.scripted_encoder_servicer import ScriptedEncoder
from tests.support.scripted_servicer import RunningServer, ScriptedMatcher
from textmatch.client import TextMatchClient
from textmatch.encoder_client import EncoderClient
from textmatch.errors import ApiKeyInvalid, ApiKeyMissing, DependencyUnavailable, Overloaded, PermissionDenied
from textmatch.filters import FieldMatch, Filter
from textmatch.runtime.auth import SCOPES, ApiKeys, Scope
from textmatch.runtime.channel import call_metadata, open_channel
from textmatch.runtime.grpc_errors import from_rpc_error
from textmatch.v1 import collection_service_pb2, encoder_service_pb2, matcher_service_pb2
from textmatch.v1.matcher_service_pb2_grpc import MatcherServiceStub

KEYS = {scope: f"the-{scope.value}-key-0123456789" for scope in Scope}
LIMITED = "the-limited-key-0123456789"


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    lines = [f"{scope.value}-only {scope.value} {key}" for scope, key in KEYS.items()]
    path.write_text("\n".join([*lines, f"limited read,write {LIMITED} 10"]))
    return path


@pytest.fixture
def matcher_address(keys_file: Path) -> Iterator[str]:
    server = RunningServer.of_matcher(ScriptedMatcher(), api_keys=ApiKeys(keys_file))
    yield server.address
    server.stop()


@pytest.fixture
def encoder_address(keys_file: Path) -> Iterator[str]:
    server = RunningServer.of_encoder(ScriptedEncoder(), api_keys=ApiKeys(keys_file))
    yield server.address
    server.stop()


def every_rpc() -> list[str]:
    services = [
        encoder_service_pb2.DESCRIPTOR.services_by_name["EncoderService"],
        matcher_service_pb2.DESCRIPTOR.services_by_name["MatcherService"],
        collection_service_pb2.DESCRIPTOR.services_by_name["CollectionService"],
    ]
    return [f"/{service.full_name}/{method.name}" for service in services for method in service.methods]


def call(address: str, method: str, key: str | None) -> Exception | None:
    """What the server says to an empty request."""
    metadata = [("authorization", f"Bearer {key}")] if key is not None else []
    with grpc.insecure_channel(address) as channel:
        try:
            list(channel.stream_stream(method)(iter([b""]), metadata=metadata, timeout=20))
        except grpc.RpcError as error:
            return from_rpc_error(error)
    return None


def test_the_table_of_scopes_covers_every_rpc():
    assert set(SCOPES) == set(every_rpc())


@pytest.mark.parametrize("method", every_rpc())
def test_every_rpc_needs_a_valid_key_with_its_scope(method: str, matcher_address: str, encoder_address: str):
    address = encoder_address if "Encoder" in method else matcher_address
    assert isinstance(call(address, method, None), ApiKeyMissing)
    assert isinstance(call(address, method, "no-such-key-0123456789"), ApiKeyInvalid)
    needed = SCOPES[method]
    for scope, key in KEYS.items():
        refused = call(address, method, key)
        if scope in (needed, Scope.ADMIN):
            assert not isinstance(refused, (ApiKeyInvalid, ApiKeyMissing, PermissionDenied))
        else:
            assert isinstance(refused, PermissionDenied)
            assert needed.value in str(refused)
            assert key not in str(refused)


def test_an_rpc_that_nobody_has_heard_of_is_not_there(matcher_address: str):
    with grpc.insecure_channel(matcher_address) as channel:
        with pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary("/textmatch.v1.MatcherService/Drop")(b"", timeout=20)
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_health_and_reflection_are_open(matcher_address: str):
    with grpc.insecure_channel(matcher_address) as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        asked = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            # As ghz asks.
            reflection_pb2.ServerReflectionRequest(
                file_containing_symbol="textmatch.v1.MatcherService.Match"
            ),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="textmatch.v1.MatcherService.No"),
        ]
        services, method, missing = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter(asked), timeout=20
        )
        assert services.list_services_response.service
        assert method.file_descriptor_response.file_descriptor_proto
        assert missing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


def test_the_client_does_all_with_the_right_keys(matcher_address: str, encoder_address: str):
    with TextMatchClient(matcher_address, encoder_address, api_key=KEYS[Scope.WRITE]) as writer:
        assert writer.ingest_all([{"id": "a", "text": "one text"}]).accepted == 1
        with pytest.raises(PermissionDenied, match="lacks the scope read"):
            writer.match("one text")
        assert writer.delete(["a"]) == 1
        with pytest.raises(PermissionDenied, match="lacks the scope admin"):
            writer.delete_where(Filter(must=(FieldMatch("colour", ("red",)),)))
    with TextMatchClient(matcher_address, encoder_address, api_key=KEYS[Scope.READ]) as reader:
        assert reader.match("one text").matches == ()
        assert list(reader.batch_match(["one text"]))
        assert reader.encode("one text").embeddings.shape == (1, 4)
        assert len(reader.score("one", ["two"]).scores) == 1
        assert reader.ingest_status().document_count == 0
        with pytest.raises(PermissionDenied, match="lacks the scope write"):
            reader.ingest_all([{"id": "a", "text": "one text"}])
    with TextMatchClient(matcher_address, encoder_address, api_key=KEYS[Scope.ADMIN]) as admin:
        assert admin.delete_where(Filter(must=(FieldMatch("colour", ("red",)),))) == 0


async def test_the_client_of_matcher_and_workers_presents_its_key(encoder_address: str):
    client = EncoderClient(encoder_address, KEYS[Scope.READ])
    encoded = await client.encode(["one text"], is_query=True, is_bulk=False, timeout_seconds=20)
    assert encoded.embeddings.shape == (1, 4)
    await client.close()
    without_key = EncoderClient(encoder_address)
    with pytest.raises(ApiKeyMissing):
        await without_key.bi_encoders(timeout_seconds=20)
    await without_key.close()


async def test_a_matcher_that_the_encoder_refuses_does_not_blame_its_callers_key(
    encoder_address: str, caplog: pytest.LogCaptureFixture
):
    for key in ("", "no-such-key-0123456789", KEYS[Scope.WRITE]):
        client = EncoderClient(encoder_address, key, hide_auth_errors=True)
        with pytest.raises(DependencyUnavailable, match="the encoder refuses the matcher's API key"):
            await client.encode(["one text"], is_query=True, is_bulk=False, timeout_seconds=20)
        await client.close()
    assert "the encoder refuses TEXTMATCH_ENCODER_API_KEY" in caplog.text


def test_a_key_is_replaced_without_a_gap(keys_file: Path, matcher_address: str):
    method, old, new = "/textmatch.v1.MatcherService/Match", KEYS[Scope.READ], "the-next-key-0123456789"
    for lines, valid, invalid in (
        ([f"reader read {old}"], [old], [new]),
        ([f"reader read {old}", f"reader read {new}"], [old, new], []),
        ([f"reader read {new}"], [new], [old]),
    ):
        keys_file.write_text("\n".join(lines))
        time.sleep(1.1)  # the file is looked at once a second
        assert [call(matcher_address, method, key) for key in valid] == [None] * len(valid)
        assert all(isinstance(call(matcher_address, method, key), ApiKeyInvalid) for key in invalid)


@pytest.mark.parametrize("kind", ["unary", "server stream", "stream"])
def test_a_key_that_has_used_up_its_tokens_is_told_when_to_come_back(kind: str, matcher_address: str):
    with (
        TextMatchClient(matcher_address, api_key=LIMITED, timeout_seconds=20) as client,
        open_channel(matcher_address) as channel,
    ):
        stub, metadata = MatcherServiceStub(channel), call_metadata(LIMITED)
        queries = matcher_service_pb2.BatchMatchRequest(queries=["word " * 200])
        calls: dict[str, Any] = {
            "unary": lambda: client.match("word " * 200),
            # Without the client, which would come back when it is told to.
            "server stream": lambda: list(stub.BatchMatch(queries, timeout=20, metadata=metadata)),
            "stream": lambda: list(
                stub.IngestDocuments(
                    iter([_ingest_request(), _ingest_request()]), timeout=20, metadata=metadata
                )
            ),
        }
        if kind != "stream":  # which sends two requests itself
            calls[kind]()
        with pytest.raises((Overloaded, grpc.RpcError)) as raised:
            calls[kind]()
        error = raised.value if isinstance(raised.value, Overloaded) else from_rpc_error(raised.value)
        assert isinstance(error, Overloaded)
        assert 10 <= error.retry_delay_seconds <= 30
        assert "limited" in str(error)
        assert LIMITED not in str(error)


def test_a_missing_scope_is_logged_with_the_name_of_the_key_and_not_the_key(
    matcher_address: str, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.DEBUG):
        call(matcher_address, "/textmatch.v1.MatcherService/Match", KEYS[Scope.WRITE])
    [record] = [record for record in caplog.records if record.message == "scope missing"]
    assert vars(record)["key"] == "write-only"
    assert not any(KEYS[Scope.WRITE] in str(vars(record)) for record in caplog.records)


def _ingest_request() -> matcher_service_pb2.IngestDocumentsRequest:
    document = matcher_service_pb2.Document(id="a", text="word " * 200)
    return matcher_service_pb2.IngestDocumentsRequest(documents=[document])
