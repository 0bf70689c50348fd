"""The whole stack with mutual TLS and API keys, as real processes: who gets in, and what the logs tell."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from tests.support.certificates import Authority
from tests.support.encoder import make_tiny_bi_encoder
from tests.support.stack import Stack, running_stack, textmatch
from textmatch.client import ClientTls, TextMatchClient
from textmatch.errors import PermissionDenied, TextMatchError
from textmatch.runtime.channel import open_channel
from textmatch.runtime.grpc_errors import from_rpc_error
from textmatch.v1 import matcher_service_pb2 as pb
from textmatch.v1 import matcher_service_pb2_grpc as pb_grpc

READER = "reader-key-0123456789abcdef"
WRITER = "writer-key-0123456789abcdef"
SERVICE = "service-key-0123456789abcdef"
WRONG = "guessed-key-0123456789abcdef"
TEXT = "the cat sits on the confidential mat"


@dataclass(frozen=True)
class Secured:
    """A running stack and what its clients need."""

    stack: Stack
    authority: Authority
    environment: dict[str, str]

    def client(self, key: str, name: str = "process") -> TextMatchClient:
        return TextMatchClient(
            self.stack.file["matcher"],
            self.stack.file["encoder"],
            api_key=key,
            tls=self.tls(name),
            timeout_seconds=30,
        )

    def tls(self, name: str) -> ClientTls:
        pair = self.authority.issue(name, is_expired=name == "expired")
        return self.authority.client(pair)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    directory = tmp_path_factory.mktemp("secured")
    make_tiny_bi_encoder(directory / "model")
    authority = Authority(directory)
    pair = authority.issue("process")
    keys = directory / "keys"
    keys.write_text(f"reader read {READER}\nwriter read,write {WRITER}\nservice read {SERVICE}\n")
    environment = {
        "TEXTMATCH_BI_ENCODER": str(directory / "model"),
        "TEXTMATCH_CROSS_ENCODER": "none",
        "TEXTMATCH_LOG_LEVEL": "DEBUG",
        "TEXTMATCH_TLS_CERT": str(pair.cert),
        "TEXTMATCH_TLS_KEY": str(pair.key),
        "TEXTMATCH_TLS_CLIENT_CA": str(authority.file),
        "TEXTMATCH_TLS_CA": str(authority.file),
        "TEXTMATCH_API_KEYS_FILE": str(keys),
        "TEXTMATCH_ENCODER_API_KEY": SERVICE,
    }
    with running_stack(directory / "data", environment) as running:
        yield Secured(running, authority, environment)


def refusal(address: str, key: str | None, tls: ClientTls | None) -> grpc.StatusCode:
    """The code of a Match that must not be answered."""
    metadata = [("authorization", f"Bearer {key}")] if key else []
    with open_channel(address, tls) as channel:
        stub = pb_grpc.MatcherServiceStub(channel)
        with pytest.raises(grpc.RpcError) as raised:
            stub.Match(pb.MatchRequest(query=TEXT), timeout=30, metadata=metadata)
        assert isinstance(from_rpc_error(raised.value), TextMatchError)
        return raised.value.code()


def test_documents_go_all_the_way_with_certificates_and_keys(secured: Secured):
    with secured.client(WRITER) as writer:
        assert writer.ingest_all([{"id": "cat", "text": TEXT}], wait=True).accepted == 1
        assert [match.document.id for match in writer.match(TEXT)] == ["cat"]
    with secured.client(READER) as reader:
        assert reader.get_document("cat").text == TEXT
        assert reader.encode([TEXT]).embeddings.shape == (1, 32)


def test_the_command_takes_both_from_the_environment(secured: Secured):
    environment = {**os.environ, **secured.environment, "TEXTMATCH_API_KEY": READER}
    answered = secured.stack.textmatch("encode", "cat", "--json", env=environment)
    assert answered.returncode == 0, answered.stderr
    refused = secured.stack.textmatch("delete", "cat", env=environment)
    assert refused.returncode != 0
    assert "lacks the scope write" in refused.stderr


def test_whoever_has_not_both_is_refused_with_the_right_code(secured: Secured):
    address, known = secured.stack.file["matcher"], secured.tls("other-client")
    assert refusal(address, None, known) is grpc.StatusCode.UNAUTHENTICATED
    assert refusal(address, WRONG, known) is grpc.StatusCode.UNAUTHENTICATED
    assert refusal(address, READER, secured.tls("expired")) is grpc.StatusCode.UNAVAILABLE
    assert refusal(address, READER, secured.authority.client()) is grpc.StatusCode.UNAVAILABLE
    assert refusal(address, READER, None) is grpc.StatusCode.UNAVAILABLE
    with secured.client(READER) as reader, pytest.raises(PermissionDenied):
        reader.ingest_all([{"id": "dog", "text": TEXT}])


def test_no_log_has_a_key_a_certificate_or_a_text(secured: Secured):
    """Runs last, when everything above has left its traces."""
    logs = {path.name: path.read_text() for path in (secured.stack.data_dir / "logs").iterdir()}
    assert {"encoder.log", "matcher.log", "worker.log"} <= logs.keys()
    assert '"api_key": "reader"' in logs["matcher.log"] or '"key": "reader"' in logs["matcher.log"]
    private = Path(secured.environment["TEXTMATCH_TLS_KEY"]).read_text().splitlines()
    secrets = [READER, WRITER, SERVICE, WRONG, TEXT, "confidential", private[1]]
    secrets += [base64.b64encode(secret.encode()).decode() for secret in (READER, WRITER, SERVICE)]
    found = [(name, secret) for name, log in logs.items() for secret in secrets if secret in log]
    assert not found


def test_a_bad_file_of_keys_ends_the_start_and_shows_nothing_of_it(secured: Secured, tmp_path: Path):
    keys = tmp_path / "keys"
    keys.write_text(f"reader look {READER}\n")
    environment = {**os.environ, **secured.environment, "TEXTMATCH_API_KEYS_FILE": str(keys)}
    started = textmatch("up", "--data-dir", str(tmp_path / "data"), "--detach", env=environment)
    assert started.returncode != 0
    assert "line 1: the scopes must be among read, write, admin" in started.stderr
    assert READER not in started.stderr
