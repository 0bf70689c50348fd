"""`textmatch match` against a scripted server."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.cli.running import run
from tests.support.scripted_servicer import RunningServer, ScriptedMatcher
from textmatch.cli.__main__ import main
from textmatch.v1 import matcher_service_pb2 as pb


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
    arguments = [
        "match",
        "cat",
        "--rerank",
        "none",
        "--top-k",
        "1",
        "--json",
        "--matcher",
        matcher_server.address,
    ]
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
    assert "No matches." in capsys.readouterr().out


def test_a_filter_that_cannot_be_read_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]):
    assert main(["match", "q", "--where", "module = os"]) == 1
    assert "where: is invalid at character 10" in capsys.readouterr().err


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
    assert "Incomplete: RERANK_LATE; 1 candidates were reranked." in out


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
    [
        ("ok\na\tb\tc\n", "line 2: must be a query, or an id, a tab and a query"),
        ("q1\t \n", "line 1: query: is empty"),
    ],
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
        assert "give queries or --file" in capsys.readouterr().err


def test_an_explanation_shows_every_part(
    matcher_server: RunningServer, corpus: None, capsys: pytest.CaptureFixture[str]
):
    arguments = ["match", "cat", "--top-k", "1", "--explain", "--matcher", matcher_server.address]
    _, [answer], _ = run([*arguments, "--json", "--recall", "hybrid"], capsys)
    assert answer["matches"][0]["explanation"] == {
        "cosine": 0.75,
        "lexical": 0.125,
        "pair_classifier_score": None,
        "weights": {"intercept": -1.0, "cosine": 2.0, "lexical": 0.5, "pair": 0.25},
    }
    assert main(arguments) == 0
    out = capsys.readouterr().out
    for part in ("cosine 0.750 x 2", "lexical 0.125 x 0.5", "cross-encoder 1.000, log odds x 0.25"):
        assert part in out
