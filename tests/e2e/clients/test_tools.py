"""grpcurl through reflection, and a load by ghz, both written in Go."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.support.client_programs import RUN_SECONDS
from tests.support.secured_stack import SecuredStack
from tests.support.stack import Stack

pytestmark = pytest.mark.toolchains

MATCH = "textmatch.v1.MatcherService/Match"
CALLS = 300


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS, check=False)


def output_of(program: Path, *arguments: str) -> str:
    answered = run(program, *arguments)
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


def test_grpcurl_finds_and_calls_every_service_by_reflection(go_tools: Path, matcher: str, stack: Stack):
    grpcurl = go_tools / "grpcurl"
    listed = output_of(grpcurl, "-plaintext", matcher, "list").split()
    assert {"textmatch.v1.MatcherService", "textmatch.v1.CollectionService", "grpc.health.v1.Health"} <= set(
        listed
    )
    assert "rpc Match" in output_of(grpcurl, "-plaintext", matcher, "describe", "textmatch.v1.MatcherService")
    request = {
        "query": "remove a directory",
        "options": {"topK": 1, "filter": {"must": [{"match": {"field": "module", "values": ["os"]}}]}},
    }
    answer = json.loads(output_of(grpcurl, "-plaintext", "-d", json.dumps(request), matcher, MATCH))
    [match] = answer["matches"]
    assert match["document"] == {
        "id": "rm",
        "text": "delete a folder",
        "attributes": {"module": "os"},
        "version": match["document"]["version"],
    }
    models = json.loads(
        output_of(grpcurl, "-plaintext", stack.file["encoder"], "textmatch.v1.EncoderService/GetModels")
    )
    assert models["limits"]["maxTexts"] > 0


def test_grpcurl_shows_the_details_of_errors(go_tools: Path, matcher: str):
    failed = run(go_tools / "grpcurl", "-plaintext", "-format-error", "-d", "{}", matcher, MATCH)
    details = {one["@type"].split(".")[-1]: one for one in json.loads(failed.stderr)["details"]}
    info = details["ErrorInfo"]
    assert (info["domain"], info["reason"]) == ("textmatch.dev", "INVALID_INPUT")
    assert details["BadRequest"]["fieldViolations"][0]["field"] == "query"


def test_grpcurl_with_tls_and_an_api_key(go_tools: Path, secured_stack: SecuredStack):
    settings = secured_stack.settings
    certificates = [
        *("-cacert", settings["TEXTMATCH_TLS_CA"]),
        *("-cert", settings["TEXTMATCH_TLS_CERT"]),
        *("-key", settings["TEXTMATCH_TLS_KEY"]),
    ]
    call = [settings["TEXTMATCH_MATCHER_TARGET"], "textmatch.v1.MatcherService/GetIngestStatus"]
    key = ("-H", f"authorization: Bearer {secured_stack.api_key}")
    assert json.loads(output_of(go_tools / "grpcurl", *certificates, *key, *call))["collection"] == "default"
    refused = run(go_tools / "grpcurl", *certificates, *call)
    assert refused.returncode != 0
    assert "Unauthenticated" in refused.stderr


def test_a_load_of_ghz_is_answered_without_an_error(go_tools: Path, matcher: str):
    load = ("-n", str(CALLS), "-c", "8", "-t", "30s", "-O", "json", "--insecure")
    body = json.dumps({"query": "call {{.RequestNumber}}: remove a directory", "options": {"topK": 3}})
    report = json.loads(output_of(go_tools / "ghz", *load, "--call", MATCH, "-d", body, matcher))
    assert report["count"] == CALLS
    assert report["statusCodeDistribution"] == {"OK": CALLS}
