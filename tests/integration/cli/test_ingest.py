from __future__ import annotations

import json
import re
from collections import deque
from pathlib import Path

import pytest

from tests.support.scripted_servicer import RunningServer, ScriptedMatcher
from textmatch.cli.__main__ import main
from textmatch.errors import Unauthenticated

BAD_LINES = [
    ('{"id": "a", "text": ""}', "text: is empty"),
    ('{"id": "a", "text": "\\ud800"}', "text: is not Unicode text: lone surrogate at character 0"),
    ('{"id": "a", "text": "nul \\u0000"}', "text: contains a NUL character at character 4"),
    (
        json.dumps({"id": "a", "text": "x" * 5_000_000}),
        "text: has 5,000,000 bytes of UTF-8; the limit is 4,194,304",
    ),
    ('{"id": "a"', "is not JSON: Expecting ',' delimiter at column 11"),
    ('{"id": 5}', "id: is a number; it must be a string; text: is missing"),
    ('{"id": "a", "text": "t", "title": "t"}', "title: is not a field of a document"),
    ('{"id": "a", "deleted": true, "text": "t"}', "text: is given, but the document is deleted"),
    ('["a", "t"]', "document: is a list; it must be an object"),
    ("null", "document: is null; it must be an object"),
]


def write_lines(path: Path, lines: list[str]) -> str:
    path.write_text("".join(line + "\n" for line in lines))
    return str(path)


def numbered(count: int) -> list[str]:
    return [json.dumps({"id": f"d{number}", "text": f"text {number}"}) for number in range(count)]


def test_a_line_may_delete_or_expect_a_version(
    matcher_server: RunningServer, matcher: ScriptedMatcher, tmp_path: Path
):
    lines = ['{"id": "a", "deleted": true, "version": 5}', '{"id": "b", "text": "t", "expected_version": 0}']
    file = write_lines(tmp_path / "docs.jsonl", lines)
    assert main(["ingest", file, "--matcher", matcher_server.address]) == 0
    assert (matcher.documents["a"].deleted, matcher.documents["a"].version) == (True, 5)
    assert matcher.documents["b"].HasField("expected_version")
    assert not matcher.documents["a"].HasField("expected_version")


def test_the_documents_of_a_file_go_in(
    matcher_server: RunningServer,
    matcher: ScriptedMatcher,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    file = write_lines(
        tmp_path / "docs.jsonl",
        [*numbered(449), '{"id": "cat", "text": "猫坐", "attributes": {"n": 1}, "version": 5}'],
    )
    assert main(["ingest", file, "--json", "--matcher", matcher_server.address]) == 0
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    assert summary.pop("seconds") >= 0
    assert summary == {"accepted": 450, "unchanged": 0, "rejected": 0}
    assert captured.err == ""
    assert matcher.documents["cat"].text == "猫坐"
    assert matcher.documents["cat"].version == 5
    assert matcher.documents["cat"].attributes["n"] == 1.0

    assert main(["ingest", file, "--matcher", matcher_server.address]) == 0
    assert capsys.readouterr().out.startswith("accepted 0, unchanged 450, rejected 0 in ")


def test_every_bad_line_is_told_and_the_rest_goes_in(
    matcher_server: RunningServer,
    matcher: ScriptedMatcher,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    lines = [line for bad, _ in BAD_LINES for line in ('{"id": "good", "text": "t"}', bad)]
    file = write_lines(tmp_path / "docs.jsonl", [*lines, '{"id": "last", "text": "t"}'])
    assert main(["ingest", file, "--json", "--matcher", matcher_server.address]) == 1
    captured = capsys.readouterr()
    assert set(captured.err.splitlines()) == {
        f"{file} line {2 * number}: {reason}" for number, (_, reason) in enumerate(BAD_LINES, start=1)
    }
    summary = json.loads(captured.out)
    assert summary["rejected"] == len(BAD_LINES)
    assert set(matcher.documents) == {"good", "last"}


def test_rejected_lines_are_written_with_their_reasons(
    matcher_server: RunningServer,
    matcher: ScriptedMatcher,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    matcher.document_errors["refused"] = deque([Unauthenticated("not this one")])
    file = tmp_path / "docs.csv"
    file.write_bytes(b'id,text\na,fine\nb,\xff\nc,"two\nlines",x\nrefused,t\n')
    rejected = tmp_path / "rejected.jsonl"
    arguments = ["ingest", str(file), "--rejected", str(rejected), "--matcher", matcher_server.address]
    assert main(arguments) == 1
    assert [json.loads(line) for line in rejected.read_text().splitlines()] == [
        {"line": 3, "reason": "is not UTF-8: byte 0xff at byte 3 of the line", "input": "b,\\xff"},
        {"line": 4, "reason": "has 3 fields; the header has 2", "input": 'c,"two\nlines",x'},
        {"line": 6, "reason": "not this one", "input": "refused,t"},
    ]
    assert set(matcher.documents) == {"a"}
    assert f"{file} line 6: not this one" in capsys.readouterr().err


def test_columns_of_a_table_get_types_and_a_line_says_so(
    matcher_server: RunningServer,
    matcher: ScriptedMatcher,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    file = tmp_path / "plans.csv"
    file.write_text("id,text,year,price,zip\na,one,2019,9.5,01099\nb,two,2022,12,10115\n")
    arguments = ["ingest", str(file), "--json", "--matcher", matcher_server.address]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1
    assert captured.err == f"textmatch: {file}: year is integer, price is float; --types sets types\n"
    assert dict(matcher.documents["b"].attributes) == {"year": 2022.0, "price": 12.0, "zip": "10115"}

    assert main([*arguments, "--types", "year:string,zip:integer,price:integer"]) == 1
    captured = capsys.readouterr()
    assert captured.err == f"{file} line 2: price must be a whole number, not '9.5'\n"

    for types, message in (("year:number", "must be column:type"), ("id:string", "the column id is not")):
        assert main([*arguments, "--types", types]) == 2
        assert message in capsys.readouterr().err
    lines = write_lines(tmp_path / "docs.jsonl", numbered(1))
    assert main(["ingest", lines, "--types", "a:bool", "--matcher", matcher_server.address]) == 2


def test_only_the_first_bad_lines_are_told(
    matcher_server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = write_lines(tmp_path / "docs.jsonl", ["nonsense"] * 50)
    assert main(["ingest", file, "--matcher", matcher_server.address]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[19] == f"{file} line 20: is not JSON: Expecting value at column 1"
    assert lines[20:] == ["and 30 more; --rejected FILE writes all of them"]


def test_wait_lasts_until_nothing_waits(
    matcher_server: RunningServer,
    matcher: ScriptedMatcher,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    matcher.queued.extend([(10, 9.0), (5, 9.0)])
    file = write_lines(tmp_path / "docs.jsonl", numbered(10))
    assert main(["ingest", file, "--wait", "--json", "--matcher", matcher_server.address]) == 0
    assert json.loads(capsys.readouterr().out)["accepted"] == 10
    assert not matcher.queued


def test_documents_that_fail_later_are_told_by_wait(
    matcher_server: RunningServer,
    matcher: ScriptedMatcher,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    matcher.failing = {"d3": "the model failed on it"}
    matcher.truncated_count = 2
    arguments = [
        "ingest",
        write_lines(tmp_path / "docs.jsonl", numbered(5)),
        "--matcher",
        matcher_server.address,
    ]
    assert main([*arguments, "--wait", "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["failed"] == 1
    assert "the document 'd3' could not be indexed: the model failed on it" in captured.err
    assert "the model has not read the end of 2 documents" in captured.err

    # What failed before is not told again.
    assert main([*arguments, "--wait", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["failed"] == 0
    assert "d3" not in captured.err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "docs.csv",
            "id,body\n",
            "{file} line 1: the header has no text; it has id, body; choose them with --columns",
        ),
        ("docs.tsv", "", "{file}: is empty; it must have a header with the columns id and text"),
        ("docs.jsonl", None, "{file}: cannot be read: No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(
    matcher_server: RunningServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: str | None,
    message: str,
):
    file = tmp_path / name
    if content is not None:
        file.write_text(content)
    assert main(["ingest", str(file), "--matcher", matcher_server.address]) == 1
    captured = capsys.readouterr()
    assert captured.err == f"textmatch: {message.format(file=file)}\n"
    assert captured.out == ""


def test_rejections_that_cannot_be_written_are_told_before_anything_is_sent(
    matcher_server: RunningServer,
    matcher: ScriptedMatcher,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    file = write_lines(tmp_path / "docs.jsonl", numbered(1))
    arguments = ["ingest", file, "--rejected", str(tmp_path / "no" / "file")]
    assert main([*arguments, "--matcher", matcher_server.address]) == 1
    assert "cannot be written: No such file or directory" in capsys.readouterr().err
    assert matcher.documents == {}


def test_a_failure_in_the_middle_says_how_much_is_in(
    matcher_server: RunningServer,
    matcher: ScriptedMatcher,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    matcher.fail_after_batches = 2
    file = write_lines(tmp_path / "docs.jsonl", numbered(1_000))
    assert main(["ingest", file, "--matcher", matcher_server.address]) == 1
    captured = capsys.readouterr()
    assert re.fullmatch(
        r"textmatch: the key has expired; \d+ documents were accepted;"
        r" repeat the command with --resume for the rest\n",
        captured.err,
    )
    assert captured.out == ""


def test_a_dead_server_is_named_with_a_hint(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = write_lines(tmp_path / "docs.jsonl", numbered(1))
    assert main(["ingest", file, "--json", "--matcher", "127.0.0.1:1"]) == 1
    captured = capsys.readouterr()
    assert captured.err == (
        "textmatch: the matcher at 127.0.0.1:1 does not answer; is the stack running?"
        " Start it with: textmatch up\n"
    )
    assert captured.out == ""


def answered_before(file: str) -> int:
    """The content of a progress file. Batches are in flight together: the first may be the one that fails."""
    counts = json.loads(Path(f"{file}.textmatch-progress").read_text())["counts"]
    answered: int = counts["ACCEPTED"] + counts["UNCHANGED"]
    return answered


def test_an_interrupted_ingest_goes_on_where_it_ended(
    matcher_server: RunningServer,
    matcher: ScriptedMatcher,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    matcher.fail_after_batches = 3
    lines = numbered(1_000)
    lines[100] = "nonsense"
    lines[900] = "more nonsense"
    file = write_lines(tmp_path / "docs.jsonl", ["", *lines])
    rejected = tmp_path / "rejected.jsonl"
    arguments = ["ingest", file, "--rejected", str(rejected), "--json", "--matcher", matcher_server.address]
    assert main(arguments) == 1
    answered = answered_before(file)
    matcher.fail_after_batches = -1
    matcher.batch_sizes.clear()
    capsys.readouterr()
    assert main([*arguments, "--resume"]) == 1
    summary = json.loads(capsys.readouterr().out)
    assert (summary["accepted"] + summary["unchanged"], summary["rejected"]) == (998, 2)
    assert sum(matcher.batch_sizes) == 998 - answered
    assert [json.loads(line)["line"] for line in rejected.read_text().splitlines()] == [102, 902]
    assert not Path(f"{file}.textmatch-progress").exists()


@pytest.mark.parametrize("name", ["docs.csv", "docs.tsv"])
def test_tables_are_resumed_too(
    matcher_server: RunningServer, matcher: ScriptedMatcher, tmp_path: Path, name: str
):
    matcher.fail_after_batches = 3
    separator = "," if name.endswith("csv") else "\t"
    rows = [f"d{number}{separator}text {number}" for number in range(1_000)]
    file = write_lines(tmp_path / name, [f"id{separator}text", *rows])
    arguments = ["ingest", file, "--matcher", matcher_server.address]
    assert main(arguments) == 1
    answered = answered_before(file)
    matcher.fail_after_batches = -1
    matcher.batch_sizes.clear()
    assert main([*arguments, "--resume"]) == 0
    assert sum(matcher.batch_sizes) == 1_000 - answered
    assert len(matcher.documents) == 1_000


def test_another_file_is_read_from_its_beginning(
    matcher_server: RunningServer, matcher: ScriptedMatcher, tmp_path: Path
):
    matcher.fail_after_batches = 1
    file = write_lines(tmp_path / "docs.jsonl", numbered(1_000))
    arguments = ["ingest", file, "--matcher", matcher_server.address]
    assert main(arguments) == 1
    matcher.fail_after_batches = -1
    write_lines(tmp_path / "docs.jsonl", [line.replace("text", "other") for line in numbered(600)])
    matcher.batch_sizes.clear()
    assert main([*arguments, "--resume"]) == 1  # "other" is no field of a document
    assert (
        main(["ingest", write_lines(tmp_path / "docs.jsonl", numbered(600)), *arguments[2:], "--resume"]) == 0
    )
    assert sum(matcher.batch_sizes) == 600


def test_stdin_cannot_be_resumed(matcher_server: RunningServer, capsys: pytest.CaptureFixture[str]):
    assert main(["ingest", "-", "--resume", "--matcher", matcher_server.address]) == 2
    assert "--resume needs a file" in capsys.readouterr().err
