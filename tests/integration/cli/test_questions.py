"""`textmatch match` against a scripted server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.cli.running import run
from tests.support.scripted_servicer import RunningServer, ScriptedMatcher
from textmatch.cli.__main__ import main
from textmatch.errors import Unauthenticated
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
                "version": 0,
                "passage": None,
            },
            {
                "id": "猫",
                "score": 0.0,
                "recall_score": 0.0,
                "rerank_score": 0.0,
                "text": "猫 坐 在 垫子 上",
                "attributes": {},
                "version": 0,
                "passage": None,
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
    assert [answer["query"] for answer in answers] == ["cat", "fail", "sits"]
    assert answers[1] == {"query_id": None, "query": "fail", "error": "query: was told to fail"}
    assert err == "textmatch: 1 of 3 queries failed\n"
    assert main(arguments[:4] + arguments[5:]) == 1
    assert capsys.readouterr().err == "textmatch: fail: query: was told to fail\n"


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


def test_an_invalid_line_costs_that_line_only(
    matcher_server: RunningServer, corpus: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "queries.tsv"
    path.write_bytes(b"a\tb\tc\nq1\tcat\nq2\t \nq3\t\xff\nq4\tfail\nq5\tsits\nq6\tnul \0\n")
    arguments = ["match", "--file", str(path), "--top-k", "1", "--matcher", matcher_server.address]
    code, answers, err = run([*arguments, "--json"], capsys)
    assert (code, err) == (1, "textmatch: 5 of 7 queries failed\n")
    assert [answer.get("query_id") for answer in answers] == [None, "q1", "q2", None, "q4", "q5", "q6"]
    assert [answer["matches"][0]["id"] for answer in answers if "matches" in answer] == ["cat", "cat"]
    errors = [answer["error"] for answer in answers if "error" in answer]
    assert errors == [
        f"{path} line 1: must be a query, or an id, a tab and a query",
        f"{path} line 3: query: is empty",
        f"{path} line 4: is not UTF-8: byte 0xff at byte 4 of the line",
        "query: was told to fail",
        f"{path} line 7: query: contains a NUL character at character 4",
    ]
    assert main(arguments) == 1
    assert capsys.readouterr().err.splitlines()[0] == f"textmatch: {errors[0]}"


def test_a_query_without_matches_has_a_line(
    matcher_server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "queries.txt"
    path.write_text("cat\ndog\n")
    code, answers, _ = run(
        ["match", "--file", str(path), "--json", "--matcher", matcher_server.address], capsys
    )
    assert code == 0
    assert [(answer["query"], answer["matches"]) for answer in answers] == [("cat", []), ("dog", [])]


class InterruptedRun:
    """A run over 250 queries, three of which fail, into a file."""

    def __init__(self, folder: Path, address: str) -> None:
        self.queries, self.output = folder / "queries.tsv", folder / "answers.jsonl"
        lines = [f"q{number}\tcat {number}" for number in range(250)]
        lines[3], lines[120], lines[240] = "a\tb\tc", "q120\tfail", "q240\t"
        self.queries.write_text("\n".join(lines) + "\n")
        self.arguments = ["match", "--file", str(self.queries), "--output", str(self.output), "--json"]
        self.arguments += ["--top-k", "1", "--matcher", address]

    def lines(self) -> list[str]:
        return self.output.read_text().splitlines()


@pytest.fixture
def interrupted(tmp_path: Path, matcher_server: RunningServer, corpus: None) -> InterruptedRun:
    return InterruptedRun(tmp_path, matcher_server.address)


@pytest.mark.parametrize("kept", [0, 1, 3, 4, 100, 121, 249, 250])
def test_an_interrupted_output_is_continued_to_the_same_file(
    interrupted: InterruptedRun, matcher: ScriptedMatcher, capsys: pytest.CaptureFixture[str], kept: int
):
    code, [summary], _ = run(interrupted.arguments, capsys)
    assert (code, summary) == (1, {"answered": 247, "failed": 3})
    whole = interrupted.lines()
    assert [json.loads(line).get("query_id") for line in whole[:5]] == ["q0", "q1", "q2", None, "q4"]
    cut = "".join(f"{line}\n" for line in whole[:kept]) + (whole[kept][:20] if kept < 250 else "")
    interrupted.output.write_text(cut)
    matcher.batch_sizes.clear()
    code, [summary], _ = run([*interrupted.arguments, "--resume"], capsys)
    assert summary["answered"] + summary["failed"] == 250 - kept
    assert code == bool(summary["failed"])
    assert interrupted.lines() == whole
    assert sum(matcher.batch_sizes) <= 250 - kept


def test_an_output_is_continued_only_with_its_own_queries(
    interrupted: InterruptedRun, capsys: pytest.CaptureFixture[str]
):
    main(interrupted.arguments)
    whole = interrupted.lines()
    assert main(interrupted.arguments) == 1
    assert "exists; continue it with --resume, or delete it" in capsys.readouterr().err
    content = interrupted.queries.read_text()
    for changed in (content.replace("cat 7", "dog 7"), content[:100], content.replace("q9", "x9")):
        interrupted.queries.write_text(changed)
        assert main([*interrupted.arguments, "--resume"]) == 1
        assert "does not answer the same line of the input" in capsys.readouterr().err
        assert interrupted.lines() == whole
    interrupted.queries.write_text(content)
    interrupted.output.write_text("no answers\n")
    assert main([*interrupted.arguments, "--resume"]) == 1
    assert "line 1 does not answer" in capsys.readouterr().err


def test_resume_needs_an_output(capsys: pytest.CaptureFixture[str]):
    assert main(["match", "q", "--resume"]) == 2
    assert "--resume needs --output" in capsys.readouterr().err


def test_a_failed_run_says_how_to_go_on(
    interrupted: InterruptedRun, matcher: ScriptedMatcher, capsys: pytest.CaptureFixture[str]
):
    matcher.batch_errors.extend([None, Unauthenticated("the key has expired")])
    assert main(interrupted.arguments) == 1
    assert capsys.readouterr().err == (
        "textmatch: the key has expired; repeat the command with --resume for the rest\n"
    )
    assert 100 <= len(interrupted.lines()) <= 101
    assert main([*interrupted.arguments, "--resume"]) == 1
    assert len(interrupted.lines()) == 250


def test_queries_and_a_file_are_not_given_together(capsys: pytest.CaptureFixture[str]):
    for arguments in ([], ["q", "--file", "f"]):
        assert main(["match", *arguments]) == 2
        assert "give queries, --file or --id" in capsys.readouterr().err


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


def test_a_suspicious_filter_is_told_once_on_stderr(
    matcher_server: RunningServer, matcher: ScriptedMatcher, capsys: pytest.CaptureFixture[str]
):
    matcher.filter_warnings = ['"yaer" does not occur in a sample of 3 documents']
    arguments = ["match", "a", "b", "--where", "yaer > 5", "--json", "--matcher", matcher_server.address]
    code, answers, err = run(arguments, capsys)
    assert (code, len(answers)) == (0, 2)
    assert err == 'textmatch: --where: "yaer" does not occur in a sample of 3 documents\n'
