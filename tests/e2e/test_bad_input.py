"""Bad input at every door of the running stack: one clear error that names the item and the limit."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest

from tests.support.stack import Stack, textmatch
from textmatch.errors import DocumentNotFound, InvalidInput, reason_name
from textmatch.runtime.grpc_errors import from_rpc_error
from textmatch.v1 import encoder_service_pb2 as encoder_pb
from textmatch.v1 import encoder_service_pb2_grpc as encoder_grpc
from textmatch.v1 import matcher_service_pb2 as matcher_pb
from textmatch.v1 import matcher_service_pb2_grpc as matcher_grpc

MEGABYTE = "x" * (1 << 20)
BAD_TEXTS = [
    ("", "TEXT_EMPTY", "is empty"),
    (" \n", "TEXT_EMPTY", "is empty"),
    (MEGABYTE, "TEXT_TOO_LARGE", "has 1,048,576 bytes of UTF-8; the limit is 32,768"),
    ("NUL \0 inside", "TEXT_INVALID", "contains a NUL character at character 4"),
]


def refusal(call, request) -> InvalidInput:
    with pytest.raises(grpc.RpcError) as raised:
        call(request, timeout=30)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    error = from_rpc_error(raised.value)
    assert isinstance(error, InvalidInput)
    return error


@pytest.mark.parametrize(("text", "reason", "description"), BAD_TEXTS)
def test_a_bad_text_is_named_by_encoder_and_matcher(stack: Stack, text: str, reason: str, description: str):
    with grpc.insecure_channel(stack.file["encoder"]) as channel:
        encoder = encoder_grpc.EncoderServiceStub(channel)
        encode = refusal(encoder.Encode, encoder_pb.EncodeRequest(texts=["good", text]))
        score = refusal(encoder.Score, encoder_pb.ScoreRequest(query="good", texts=["good", text]))
    with grpc.insecure_channel(stack.file["matcher"]) as channel:
        matcher = matcher_grpc.MatcherServiceStub(channel)
        match = refusal(matcher.Match, matcher_pb.MatchRequest(query=text))
    for error, field in ((encode, "texts[1]"), (score, "texts[1]"), (match, "query")):
        [violation] = error.violations
        assert (violation.field, reason_name(violation.reason)) == (field, reason)
        assert violation.description == description


def test_ten_thousand_texts_in_one_call_meet_the_limit(stack: Stack):
    with grpc.insecure_channel(stack.file["encoder"]) as channel:
        stub = encoder_grpc.EncoderServiceStub(channel)
        error = refusal(stub.Encode, encoder_pb.EncodeRequest(texts=["text"] * 10_000))
    assert str(error) == "texts: has 10,000 items; the limit is 1,024"


def test_a_document_that_nobody_stored_is_not_found(stack: Stack):
    with stack.client() as client, pytest.raises(DocumentNotFound, match="nobody stored this"):
        client.get_document("nobody stored this")


def test_of_a_file_the_good_lines_go_in_and_each_bad_one_is_named(stack: Stack, tmp_path: Path):
    lines = [
        json.dumps({"id": f"file-{number}", "text": f"line {number} 第{number}行 🙂"}) for number in range(30)
    ]
    lines[4] = json.dumps({"id": "file-4", "text": ""})
    lines[9] = json.dumps({"id": "file-9", "text": "x" * 5_000_000})
    lines[16] = '{"id": "file-16", "text": '
    lines[19] = '{"id": "file-19", "text": "lone \\ud800 surrogate"}'
    lines[20] = json.dumps({"id": "file-20"})
    lines[21] = json.dumps({"id": 21, "text": "id is a number"})
    lines[22] = json.dumps({"id": "file-22", "text": "NUL \0 inside"})
    path = tmp_path / "documents.jsonl"
    path.write_text("\n".join(lines))
    done = stack.textmatch("ingest", str(path), "--wait", "--json")
    assert done.returncode == 1
    summary = json.loads(done.stdout)
    assert (summary["accepted"], summary["rejected"]) == (23, 7)
    for line, problem in (
        (5, "text: is empty"),
        (10, "text: has 5,000,000 bytes of UTF-8; the limit is 4,194,304"),
        (17, "is not JSON"),
        (20, "text: is not Unicode text: lone surrogate at character 5"),
        (21, "text: is missing"),
        (22, "id: is a number; it must be a string"),
        (23, "text: contains a NUL character at character 4"),
    ):
        [message] = [found for found in done.stderr.splitlines() if f"line {line}:" in found]
        assert problem in message
    with stack.client() as client:
        assert client.get_document("file-29").text == "line 29 第29行 🙂"


def test_a_column_that_is_missing_is_named(stack: Stack, tmp_path: Path):
    path = tmp_path / "documents.csv"
    path.write_text("id,title\na,b\n")
    done = stack.textmatch("ingest", str(path))
    assert done.returncode == 1
    assert "text" in done.stderr
    assert "line 1" in done.stderr


def test_a_second_stack_in_the_same_folder_is_refused(stack: Stack):
    done = stack.textmatch("up", "--detach")
    assert done.returncode == 1
    assert f"is in use by another stack (pid {stack.file['supervisor_pid']})" in done.stderr


def test_a_missing_model_ends_the_start_with_its_name(tmp_path: Path):
    done = textmatch(
        "up",
        "--data-dir",
        str(tmp_path),
        "--detach",
        env={"TEXTMATCH_BI_ENCODER": "no/such-model", "PATH": ""},
    )
    assert done.returncode == 1
    assert "no/such-model" in done.stderr
