"""Other people's tools: buf curl through reflection, and a load by ghz."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path

import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo

from tests.support.client_programs import RUN_SECONDS, buf
from tests.support.secured_stack import SecuredStack
from tests.support.stack import Stack

MATCH = "textmatch.v1.MatcherService/Match"
CALLS = 300


def run(program: str | Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS, check=False)


def buf_curl(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Call by gRPC, with the schema that the server itself tells by reflection."""
    plaintext = ("--http2-prior-knowledge",) if url.startswith("http:") else ()
    return run(buf(), "curl", "--protocol", "grpc", *plaintext, *arguments, url)


def output_of(answered: subprocess.CompletedProcess[str]) -> str:
    assert answered.returncode == 0, answered.stdout + answered.stderr
    return answered.stdout


@pytest.fixture
def matcher(stack: Stack) -> str:
    with stack.client() as client:
        client.ingest_all(
            [{"id": "rm", "text": "delete a folder", "attributes": {"module": "os"}}], wait=True
        )
    address: str = stack.file["matcher"]
    return address


def test_every_service_is_found_and_called_by_reflection(matcher: str, stack: Stack):
    services = output_of(buf_curl(f"http://{matcher}", "--list-services")).split()
    assert {
        "textmatch.v1.MatcherService",
        "textmatch.v1.CollectionService",
        "grpc.health.v1.Health",
    } <= set(services)
    assert MATCH in output_of(buf_curl(f"http://{matcher}", "--list-methods")).split()
    request = {
        "query": "remove a directory",
        "options": {"topK": 1, "filter": {"must": [{"match": {"field": "module", "values": ["os"]}}]}},
    }
    answer = json.loads(output_of(buf_curl(f"http://{matcher}/{MATCH}", "-d", json.dumps(request))))
    [match] = answer["matches"]
    assert match["document"] == {
        "id": "rm",
        "text": "delete a folder",
        "attributes": {"module": "os"},
        "version": match["document"]["version"],
    }
    encoder = f"http://{stack.file['encoder']}/textmatch.v1.EncoderService/GetModels"
    assert json.loads(output_of(buf_curl(encoder)))["limits"]["maxTexts"] > 0


def test_an_error_has_its_details(matcher: str):
    failed = buf_curl(f"http://{matcher}/{MATCH}", "-d", "{}")
    assert failed.returncode != 0
    error = json.loads(failed.stderr)
    assert error["code"] == "invalid_argument"
    details = {one["type"]: base64.b64decode(one["value"] + "==") for one in error["details"]}
    info = ErrorInfo.FromString(details["google.rpc.ErrorInfo"])
    assert (info.domain, info.reason) == ("textmatch.dev", "INVALID_INPUT")
    [violation] = BadRequest.FromString(details["google.rpc.BadRequest"]).field_violations
    assert violation.field == "query"


@pytest.mark.slow
def test_a_call_with_tls_and_an_api_key(secured_stack: SecuredStack):
    settings = secured_stack.settings
    certificates = [
        *("--cacert", settings["TEXTMATCH_TLS_CA"]),
        *("--cert", settings["TEXTMATCH_TLS_CERT"]),
        *("--key", settings["TEXTMATCH_TLS_KEY"]),
    ]
    url = f"https://{settings['TEXTMATCH_MATCHER_TARGET']}/textmatch.v1.MatcherService/GetIngestStatus"
    key = ("-H", f"authorization: Bearer {secured_stack.api_key}")
    assert json.loads(output_of(buf_curl(url, *certificates, *key)))["collection"] == "default"
    refused = buf_curl(url, *certificates)
    assert refused.returncode != 0
    assert "unauthenticated" in refused.stderr


@pytest.mark.slow
@pytest.mark.toolchains
def test_a_load_of_ghz_is_answered_without_an_error(ghz: Path, matcher: str):
    load = ("-n", str(CALLS), "-c", "8", "-t", "30s", "-O", "json", "--insecure")
    body = json.dumps({"query": "call {{.RequestNumber}}: remove a directory", "options": {"topK": 3}})
    report = json.loads(output_of(run(ghz, *load, "--call", MATCH, "-d", body, matcher)))
    assert report["count"] == CALLS
    assert report["statusCodeDistribution"] == {"OK": CALLS}
