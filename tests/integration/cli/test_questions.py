"""`match`, `encode`, `score`, `delete`, `status`: their shapes for programs and what people see."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.scripted_servicer import DIMENSION, RunningServer, ScriptedEncoder, ScriptedMatcher
from textmatch.cli.__main__ import main
from textmatch.client import TextMatchClient
from textmatch.errors import InternalError
from textmatch.v1 import matcher_service_pb2 as pb


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, list[Any], str]:
    """Exit code, the JSON documents on stdout and stderr."""
    code = main(arguments)
    captured = capsys.readouterr()
    return code, [json.loads(line) for line in captured.out.splitlines()], captured.err


@pytest.fixture
def corpus(client: TextMatchClient) -> None:
    client.ingest_all(
        [
            {"id": "cat", "text": "the cat sits", "attributes": {"year": 2024, "tags": ["a"]}},
            {"id": "猫", "text": "猫 坐 在 垫子 上"},
        ]
    )


def test_match_as_json(matcher_server: RunningServer, corpus: None, capsys: pytest.CaptureFixture[str]):
    code, [answer], err = run(["match", "the cat", "--json", "--matcher", matcher_server.address], capsys)
    assert (code, err) == (0, "")
    assert answer == {
        "query": "the cat",
        "matches": [
            {
                "id": "cat",
                "score": 1.0,
                "recall_score": 1.0,
                "rerank_score": 1.0,
                "text": "the cat sits",
                "attributes": {"year": 2024, "tags": ["a"]},
            },
            {
                "id": "猫",
                "score": 0.0,
                "recall_score": 0.0,
                "rerank_score": 0.0,
                "text": "猫 坐 在 垫子 上",
                "attributes": {},
            },
        ],
        "degraded": None,
        "timings_ms": {"encode": 1.5, "recall": 2.0, "rerank": 3.0, "total": 7.0},
        "models": {"bi_encoder": "tiny-0123456789ab", "cross_encoder": "pair-0123456789ab"},
    }


def test_what_is_missing_is_null(
    matcher_server: RunningServer, corpus: None, capsys: pytest.CaptureFixture[str]
):
    arguments = ["match", "cat", "--no-rerank", "--top-k", "1", "--json", "--matcher", matcher_server.address]
    _, [answer], _ = run(arguments, capsys)
    assert len(answer["matches"]) == 1
    assert answer["matches"][0]["rerank_score"] is None
    assert answer["models"]["cross_encoder"] is None


def test_options_reach_the_matcher(
    matcher_server: RunningServer, matcher: ScriptedMatcher, capsys: pytest.CaptureFixture[str]
):
    arguments = ["match", "q", "--top-k", "3", "--candidate-count", "50", "--min-score", "0.5"]
    arguments += ["--where", 'module = "os" and year >= 2020']
    assert main([*arguments, "--matcher", matcher_server.address]) == 0
    options = matcher.match_requests[0].options
    [module, year] = options.filter.must
    assert (module.match.field, module.match.values[0].string_value) == ("module", "os")
    assert (year.range.field, year.range.gte) == ("year", 2020)
    assert (options.top_k, options.candidate_count, options.min_score) == (3, 50, 0.5)
    assert "Nothing matches." in capsys.readouterr().out


def test_a_filter_that_cannot_be_read_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]):
    assert main(["match", "q", "--where", "module = os"]) == 1
    assert "where: cannot be read at character 10" in capsys.readouterr().err


def test_match_for_people(
    matcher_server: RunningServer,
    matcher: ScriptedMatcher,
    corpus: None,
    capsys: pytest.CaptureFixture[str],
):
    matcher.degraded = pb.DEGRADED_REASON_RERANK_LATE
    assert main(["match", "猫", "--matcher", matcher_server.address]) == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if "垫子" in line)
    assert [field.strip() for field in row.split("│")[1:5]] == ["1", "1.000", "猫", "猫 坐 在 垫子 上"]
    assert "Incomplete: RERANK_LATE; 1 candidates were scored." in out


def test_many_queries_are_answered_in_their_order(
    matcher_server: RunningServer, corpus: None, capsys: pytest.CaptureFixture[str]
):
    arguments = ["match", "cat", "fail", "sits", "--json", "--matcher", matcher_server.address]
    code, answers, err = run(arguments, capsys)
    assert code == 1
    assert [answer["query"] for answer in answers] == ["cat", "sits"]
    assert err == "textmatch: fail: query: was told to fail\n"


def test_queries_of_a_file_are_answered_in_its_order_with_their_ids(
    matcher_server: RunningServer, corpus: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "queries.tsv"
    path.write_text("q1\tcat\n\n猫\n" + "".join(f"n{number}\tsits\n" for number in range(200)))
    arguments = ["match", "--file", str(path), "--top-k", "1", "--json", "--matcher", matcher_server.address]
    code, answers, err = run(arguments, capsys)
    assert (code, err) == (0, "")
    assert [answer.get("query_id") for answer in answers] == ["q1", None, *(f"n{n}" for n in range(200))]
    assert [answer["matches"][0]["id"] for answer in answers[:3]] == ["cat", "猫", "cat"]


@pytest.mark.parametrize(
    ("content", "message"),
    [("ok\na\tb\tc\n", "line 2: has more than two fields"), ("q1\t \n", "line 1: query: is empty")],
)
def test_a_line_that_is_no_query_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
):
    path = tmp_path / "queries.tsv"
    path.write_text(content)
    assert main(["match", "--file", str(path), "--matcher", "127.0.0.1:1"]) == 1
    assert message in capsys.readouterr().err


def test_queries_and_a_file_are_not_given_together(capsys: pytest.CaptureFixture[str]):
    for arguments in ([], ["q", "--file", "f"]):
        assert main(["match", *arguments]) == 2
        assert "give queries, or --file" in capsys.readouterr().err


def test_an_explanation_shows_every_part(
    matcher_server: RunningServer, corpus: None, capsys: pytest.CaptureFixture[str]
):
    arguments = ["match", "cat", "--top-k", "1", "--explain", "--matcher", matcher_server.address]
    _, [answer], _ = run([*arguments, "--json", "--recall", "hybrid"], capsys)
    assert answer["matches"][0]["explanation"] == {
        "cosine": 0.75,
        "bm25": 15.0,
        "lexical_evidence": 0.25,
        "pair_classifier_score": None,
        "combined_score": 0.5,
        "lexical_weight": 0.5,
        "rerank_weight": 0.25,
        "calibration": [2.0, -1.0],
    }
    assert main(arguments) == 0
    out = capsys.readouterr().out
    for part in ("cosine 0.750", "bm25 15.0 = 0.250 x 0.5", "cross-encoder 1.000 x 0.25"):
        assert part in out


def test_encode_as_json_lines(encoder_server: RunningServer, capsys: pytest.CaptureFixture[str]):
    arguments = ["encode", "ab", "猫" * 200, "--json", "--encoder", encoder_server.address]
    code, answers, err = run(arguments, capsys)
    assert (code, err) == (0, "")
    assert answers[0] == {
        "text": "ab",
        "embedding": [2.0] * DIMENSION,
        "model_id": "tiny-0123456789ab",
        "truncated": False,
    }
    assert answers[1]["text"] == "猫" * 200
    assert answers[1]["truncated"] is True


def test_encode_keeps_every_bit_of_a_float32(
    encoder_server: RunningServer, encoder: ScriptedEncoder, capsys: pytest.CaptureFixture[str]
):
    encoder.scale = 1 / 3
    _, [answer], _ = run(["encode", "ab", "--json", "--encoder", encoder_server.address], capsys)
    assert np.float32(answer["embedding"][0]) == np.float32(2) * np.float32(1 / 3)


def test_encode_for_people(encoder_server: RunningServer, capsys: pytest.CaptureFixture[str]):
    assert main(["encode", "two words", "--encoder", encoder_server.address]) == 0
    out = capsys.readouterr().out
    assert f"embedding ({DIMENSION} components)" in out
    assert "9.000, 9.000" in out
    assert "model tiny-0123456789ab" in out


def test_score_of_two_texts(encoder_server: RunningServer, capsys: pytest.CaptureFixture[str]):
    code, [answer], _ = run(["score", "ab", "abcd", "--json", "--encoder", encoder_server.address], capsys)
    assert code == 0
    assert answer == {"score": 0.5, "raw": 1.0, "model_id": "pair-0123456789ab", "truncated": False}
    assert main(["score", "ab", "abcd", "--encoder", encoder_server.address]) == 0
    assert capsys.readouterr().out == "0.500\tab\tabcd\n"


def test_scores_of_a_file_come_in_its_order(
    encoder_server: RunningServer,
    encoder: ScriptedEncoder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    file = tmp_path / "pairs.tsv"
    pairs = [("x" * (1 + number % 7), '"' * 7) for number in range(600)]
    file.write_bytes(b"\xef\xbb\xbf" + b"".join(f"{a}\t{b}\r\n".encode() for a, b in pairs))
    arguments = ["score", "--file", str(file), "--json", "--encoder", encoder_server.address]
    code, answers, _ = run(arguments, capsys)
    assert code == 0
    assert [answer["score"] for answer in answers] == pytest.approx([len(a) / 7 for a, _ in pairs])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("only one", "line 2: has 1 fields; it must have two, with a tab between"),
        ("", "line 2: has 1 fields; it must have two, with a tab between"),
        ("a\tb\tc", "line 2: has 3 fields; it must have two, with a tab between"),
        ("a\t ", "line 2: second text: is empty"),
    ],
)
def test_a_line_that_is_no_pair_is_named(
    encoder_server: RunningServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    line: str,
    message: str,
):
    file = tmp_path / "pairs.tsv"
    file.write_text(f"a\tb\n{line}\na\tb\n")
    assert main(["score", "--file", str(file), "--json", "--encoder", encoder_server.address]) == 1
    captured = capsys.readouterr()
    assert captured.err == f"textmatch: {file} {message}\n"
    assert captured.out == ""


@pytest.mark.parametrize("command", [["match"], ["encode"], ["score", "a"], ["delete"]])
def test_arguments_that_are_not_unicode_are_named(
    matcher_server: RunningServer,
    encoder_server: RunningServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
):
    monkeypatch.setenv("TEXTMATCH_MATCHER_TARGET", matcher_server.address)
    monkeypatch.setenv("TEXTMATCH_ENCODER_TARGET", encoder_server.address)
    assert main([*command, "caf\udce9"]) == 1
    captured = capsys.readouterr()
    assert "is not Unicode text: lone surrogate at character 3" in captured.err
    assert len(captured.err.splitlines()) == 1


def test_delete(matcher_server: RunningServer, corpus: None, capsys: pytest.CaptureFixture[str]):
    code, [answer], _ = run(["delete", "cat", "x", "--json", "--matcher", matcher_server.address], capsys)
    assert (code, answer) == (0, {"deleted": 1})
    assert main(["delete", "cat", "--matcher", matcher_server.address]) == 0
    assert capsys.readouterr().out == "deleted 0 of 1\n"


def test_delete_by_a_filter(
    matcher_server: RunningServer, matcher: ScriptedMatcher, capsys: pytest.CaptureFixture[str]
):
    arguments = ["delete", "--where", "year < 2020", "--json", "--matcher", matcher_server.address]
    assert run(arguments, capsys)[:2] == (0, [{"deleted": 0}])
    [condition] = matcher.delete_filters
    assert condition.must[0].range.field == "year"
    assert main(["delete", "cat", *arguments[1:]]) == 2


def test_status_as_json(
    matcher_server: RunningServer,
    encoder_server: RunningServer,
    matcher: ScriptedMatcher,
    corpus: None,
    capsys: pytest.CaptureFixture[str],
):
    matcher.queued.append((3, 1.5))
    addresses = ["--matcher", matcher_server.address, "--encoder", encoder_server.address]
    code, [answer], err = run(["status", "--json", *addresses], capsys)
    assert (code, err) == (0, "")
    [model] = answer.pop("models")
    assert (model["model_id"], model["kind"], model["dimension"]) == ("tiny-0123456789ab", "bi-encoder", 4)
    assert answer == {
        "documents": 2,
        "queued": 3,
        "oldest_seconds": 1.5,
        "dead_letters": 1,
        "collection": "tiny-0123456789ab",
        "processes": [
            {"name": "encoder", "address": encoder_server.address, "health": "SERVING"},
            {"name": "matcher", "address": matcher_server.address, "health": "SERVING"},
        ],
    }


def test_status_shows_what_it_can_of_a_stack_in_trouble(
    encoder_server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    encoder_server.set_serving(is_serving=False)
    with socket.create_server(("127.0.0.1", 0)) as redis:
        port = redis.getsockname()[1]
        processes = [
            {"name": "matcher", "pid": 1, "address": "127.0.0.1:1"},
            {"name": "redis", "pid": 2, "address": f"127.0.0.1:{port}"},
            {"name": "worker", "pid": 3, "address": "127.0.0.1:1"},
        ]
        stack = {
            "matcher": "127.0.0.1:1",
            "encoder": encoder_server.address,
            "redis_url": "",
            "qdrant_url": "",
            "processes": processes,
        }
        (tmp_path / "stack.json").write_text(json.dumps(stack))
        code, [answer], err = run(["status", "--json", "--data-dir", str(tmp_path)], capsys)
        assert main(["status", "--data-dir", str(tmp_path)]) == 1
    assert code == 1
    assert answer["documents"] is None
    assert len(answer["models"]) == 1
    assert [(process["name"], process["health"]) for process in answer["processes"]] == [
        ("encoder", "NOT_SERVING"),
        ("matcher", "unreachable"),
        ("redis", "SERVING"),
        ("worker", "unreachable"),
    ]
    assert err.splitlines() == [
        f"textmatch: the encoder at {encoder_server.address} is NOT_SERVING",
        "textmatch: the matcher at 127.0.0.1:1 does not answer; start the stack with: textmatch up",
    ]
    assert "unreachable" in capsys.readouterr().out


def test_status_tells_what_the_matcher_cannot_say(
    matcher_server: RunningServer,
    encoder_server: RunningServer,
    matcher: ScriptedMatcher,
    capsys: pytest.CaptureFixture[str],
):
    matcher.call_errors.append(InternalError("internal error; request id 7"))
    addresses = ["--matcher", matcher_server.address, "--encoder", encoder_server.address]
    code, [answer], err = run(["status", "--json", *addresses], capsys)
    assert (code, answer["documents"]) == (1, None)
    assert err == "textmatch: internal error; request id 7\n"
