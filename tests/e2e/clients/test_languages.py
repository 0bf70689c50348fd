"""The clients of docs/clients, compiled by their languages' own tools, against a running stack."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.client_programs import Program
from tests.support.refusing_servicer import RefusingMatcher
from tests.support.scripted_servicer import RunningServer, ScriptedMatcher
from tests.support.secured_stack import SecuredStack
from tests.support.stack import Stack
from textmatch.client import CollectionConfig
from textmatch.errors import Overloaded
from textmatch.v1 import matcher_service_pb2 as pb

pytestmark = pytest.mark.toolchains

DOCUMENTS = [
    {
        "id": f"invoice-{number}",
        "text": f"invoice number {number} of {'March' if number % 3 else 'April'}",
        "attributes": {"tenant": "north" if number % 2 else "south", "number": number},
    }
    for number in range(900)
]
DOCUMENTS.append({"id": "语", "text": "删除文件夹", "attributes": {"tenant": "east"}, "version": 12345})
# As large as a text may be, nearly; 150 of them are more than default clients accept.
LONG_TEXT = "the annual report of the department " * 800
LONG_DOCUMENTS = 150
# Requests of these clients that are sent and not answered.
WINDOW = 4


def lines_of(path: Path, documents: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(document)}\n" for document in documents))
    return path


def matches_of(program: Program, settings: dict[str, str], *arguments: str) -> list[dict[str, Any]]:
    answered = program.run("match", *arguments, **settings)
    assert answered.returncode == 0, answered.stderr
    return [json.loads(line) for line in answered.stdout.splitlines()]


def error_of(program: Program, settings: dict[str, str], *arguments: str) -> str:
    failed = program.run("match", *arguments, **settings)
    assert (failed.returncode, failed.stdout) == (1, "")
    return failed.stderr


@pytest.fixture
def settings(stack: Stack, program: Program) -> dict[str, str]:
    """A collection for each client."""
    with stack.client() as client:
        client.create_collection(CollectionConfig(program.language))
    return {"TEXTMATCH_MATCHER_TARGET": stack.file["matcher"], "TEXTMATCH_COLLECTION": program.language}


def test_a_file_is_ingested_and_matched_with_filters(
    program: Program, settings: dict[str, str], tmp_path: Path
):
    bad = {"id": "bad", "text": " "}
    ingested = program.run("ingest", str(lines_of(tmp_path / "a.jsonl", [*DOCUMENTS, bad])), **settings)
    assert ingested.returncode == 0, ingested.stderr
    assert json.loads(ingested.stdout) == {"accepted": 901, "unchanged": 0, "rejected": 1}
    assert "bad: INVALID_ARGUMENT INVALID_INPUT" in ingested.stderr
    assert "TEXT_EMPTY" in ingested.stderr
    again = program.run("ingest", str(lines_of(tmp_path / "a.jsonl", DOCUMENTS)), **settings)
    assert json.loads(again.stdout) == {"accepted": 0, "unchanged": 901, "rejected": 0}

    best, *_ = matches_of(program, settings, "--top-k=3", "the invoice with number 877")
    assert (best["id"], best["attributes"]) == ("invoice-877", {"tenant": "north", "number": 877})
    assert 0 < best["score"] <= 1
    found = matches_of(program, settings, "--top-k=1000", "invoice", "tenant=north", "number>=880")
    assert {one["id"] for one in found} == {f"invoice-{number}" for number in range(881, 900, 2)}
    [chinese] = matches_of(program, settings, "删除目录", "tenant=east")
    assert (chinese["id"], chinese["text"]) == ("语", "删除文件夹")


def test_an_error_has_a_code_a_reason_and_every_bad_item(program: Program, settings: dict[str, str]):
    bad_query = error_of(program, settings, " ")
    assert "INVALID_ARGUMENT INVALID_INPUT" in bad_query
    assert "query: TEXT_EMPTY" in bad_query
    assert "top_k" in error_of(program, settings, "--top-k=1001", "invoice")
    elsewhere = {**settings, "TEXTMATCH_COLLECTION": "no-such-collection"}
    assert "NOT_FOUND COLLECTION_NOT_FOUND" in error_of(program, elsewhere, "invoice")
    nobody = {**settings, "TEXTMATCH_MATCHER_TARGET": "127.0.0.1:9"}
    assert "UNAVAILABLE" in error_of(program, nobody, "invoice")


def test_a_deadline_is_kept(program: Program, settings: dict[str, str]):
    assert "DEADLINE_EXCEEDED" in error_of(program, settings, "--timeout=0.001", "invoice")


def test_answers_are_within_the_default_limit_of_messages(program: Program, stack: Stack):
    """None of the clients changes the limit of messages, which is 4 MiB."""
    settings = {"TEXTMATCH_MATCHER_TARGET": stack.file["matcher"], "TEXTMATCH_COLLECTION": "long"}
    with stack.client(timeout_seconds=120) as client:
        # Undivided, so that a match has the whole text.
        client.create_collection(CollectionConfig("long", passage_tokens=0))
        documents = ({"id": str(number), "text": f"{number} {LONG_TEXT}"} for number in range(LONG_DOCUMENTS))
        client.using(collection="long").ingest_all(documents, wait=True)
    large = matches_of(program, settings, "--timeout=60", "--top-k=130", "the annual report")
    assert sum(len(one["text"]) for one in large) > 3_700_000
    too_large = error_of(program, settings, "--timeout=60", f"--top-k={LONG_DOCUMENTS}", "the annual report")
    assert "INVALID_ARGUMENT INVALID_INPUT" in too_large
    assert "options.top_k" in too_large


def test_unanswered_requests_are_few_and_are_sent_again_after_the_delay(program: Program, tmp_path: Path):
    matcher = RefusingMatcher()
    server = RunningServer.of_matcher(matcher)
    try:
        documents = [{"id": str(number), "text": "a text"} for number in range(3_100)]
        path = str(lines_of(tmp_path / "a.jsonl", documents))
        ingested = program.run("ingest", path, TEXTMATCH_MATCHER_TARGET=server.address)
    finally:
        server.stop()
    assert ingested.returncode == 0, ingested.stderr
    assert json.loads(ingested.stdout) == {"accepted": 3_100, "unchanged": 0, "rejected": 0}
    assert len(matcher.documents) == 3_100
    assert matcher.streams == 2
    assert matcher.unanswered == [WINDOW, WINDOW, WINDOW]
    assert matcher.resumed_after_seconds >= 0.7
    repeated = [one for one, count in Counter(matcher.request_ids).items() if count == 2]
    assert len(repeated) == WINDOW
    assert len(set(matcher.request_ids)) == 16


def test_a_refused_match_is_repeated_after_its_delay_if_there_is_time(program: Program):
    matcher = ScriptedMatcher()
    matcher.documents["a"] = pb.Document(id="a", text="the cat")
    server = RunningServer.of_matcher(matcher)
    settings = {"TEXTMATCH_MATCHER_TARGET": server.address}
    try:
        matcher.call_errors.append(Overloaded("too much work", retry_delay_seconds=0.3))
        [match] = matches_of(program, settings, "the cat")
        assert match["id"] == "a"
        assert len(matcher.match_requests) == 1
        matcher.call_errors.append(Overloaded("too much work", retry_delay_seconds=30))
        refused = error_of(program, settings, "the cat")
        assert "RESOURCE_EXHAUSTED OVERLOADED: too much work" in refused
        assert "retry after 30" in refused
    finally:
        server.stop()


def test_tls_with_a_client_certificate_and_an_api_key(
    program: Program, secured_stack: SecuredStack, tmp_path: Path
):
    with_key = {**secured_stack.settings, "TEXTMATCH_API_KEY": secured_stack.api_key}
    ingested = program.run("ingest", str(lines_of(tmp_path / "a.jsonl", DOCUMENTS[:10])), **with_key)
    assert ingested.returncode == 0, ingested.stderr
    assert len(matches_of(program, with_key, "invoice")) == 10
    assert "UNAUTHENTICATED API_KEY_MISSING" in error_of(program, secured_stack.settings, "invoice")
    wrong = {**with_key, "TEXTMATCH_API_KEY": "guessed-key-0123456789abcdef"}
    assert "UNAUTHENTICATED API_KEY_INVALID" in error_of(program, wrong, "invoice")
    without_certificate = {**with_key, "TEXTMATCH_TLS_CERT": "", "TEXTMATCH_TLS_KEY": ""}
    assert "UNAVAILABLE" in error_of(program, without_certificate, "--timeout=5", "invoice")
