"""`textmatch list`, `get`, `count` and `export` against a scripted server."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.cli.running import run
from tests.support.scripted_servicer import RunningServer, ScriptedMatcher
from textmatch.cli.__main__ import main
from textmatch.client import TextMatchClient
from textmatch.errors import Overloaded

CAT = {"id": "cat", "text": "the cat sits", "attributes": {"year": 2024, "tags": ["a"]}, "version": 0}
MAT = {"id": "猫", "text": "猫 坐 在 垫子 上", "attributes": {}, "version": 0}


@pytest.fixture
def at(matcher_server: RunningServer, corpus: None) -> list[str]:
    return ["--matcher", matcher_server.address]


def test_list(at: list[str], matcher: ScriptedMatcher, capsys: pytest.CaptureFixture[str]):
    assert run(["list", "--json", *at], capsys) == (0, [CAT, MAT], "")
    assert run(["list", "--json", "--after", "cat", *at], capsys)[1] == [MAT]
    assert run(["list", "--json", "--limit", "1", "--where", "year > 2000", *at], capsys)[1] == [CAT]
    assert matcher.list_requests[-1].filter.must[0].range.field == "year"
    assert matcher.list_requests[-1].page_size == 1
    assert main(["list", *at]) == 0
    shown = capsys.readouterr()
    assert "the cat sits" in shown.out
    assert '{"tags": ["a"], "year": 2024}' in shown.out
    assert shown.err == ""
    assert main(["list", "--limit", "1", *at]) == 0
    assert capsys.readouterr().err == "there may be more; --after 'cat' continues\n"


def test_get(at: list[str], capsys: pytest.CaptureFixture[str]):
    assert run(["get", "猫", "cat", "--json", *at], capsys) == (0, [MAT, CAT], "")
    code, found, error = run(["get", "x", "cat", "y", "--json", *at], capsys)
    assert (code, found, error) == (1, [CAT], "textmatch: not stored: x, y\n")
    assert main(["get", "cat", *at]) == 0
    assert "text: the cat sits\n" in capsys.readouterr().out


def test_count(at: list[str], matcher: ScriptedMatcher, capsys: pytest.CaptureFixture[str]):
    assert run(["count", "--json", *at], capsys) == (0, [{"documents": 2}], "")
    matcher.matching_count = 1_234
    assert main(["count", "--where", "year > 2000", *at]) == 0
    assert capsys.readouterr().out == "1,234\n"


def test_an_export_is_what_ingest_reads(
    at: list[str],
    matcher: ScriptedMatcher,
    client: TextMatchClient,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    client.ingest_all([{"id": "7", "text": "with a version", "version": 7}])
    file = tmp_path / "out.jsonl"
    assert run(["export", str(file), "--json", *at], capsys) == (0, [{"exported": 3}], "")
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert {line["id"]: line["version"] for line in lines} == {"7": 7, "cat": 0, "猫": 0}
    stored = dict(matcher.documents)
    matcher.documents.clear()
    (tmp_path / "versions.jsonl").write_text(json.dumps(lines[0]))
    assert main(["ingest", str(tmp_path / "versions.jsonl"), *at]) == 0
    assert matcher.documents["7"] == stored["7"]
    assert list(tmp_path.glob(".*")) == []


def test_an_export_to_stdout_is_only_documents(at: list[str], capsys: pytest.CaptureFixture[str]):
    assert run(["export", "-", *at], capsys) == (0, [CAT, MAT], "")


def test_a_file_stays_as_it_is_if_its_export_fails(
    at: list[str], matcher: ScriptedMatcher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "out.jsonl"
    file.write_text("before")
    matcher.page_limit = 1
    matcher.list_errors[1] = Overloaded("later", retry_delay_seconds=1.0)
    assert main(["export", str(file), *at]) == 1
    assert "textmatch: later" in capsys.readouterr().err
    assert file.read_text() == "before"
    assert [one.name for one in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_file_that_cannot_be_written_is_one_line(
    at: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["export", str(tmp_path / "missing" / "out.jsonl"), *at]) == 1
    error = capsys.readouterr().err
    assert error.endswith("out.jsonl cannot be written: No such file or directory\n")
    assert len(error.splitlines()) == 1


def test_a_folder_is_refused_before_anything_is_read(
    at: list[str], matcher: ScriptedMatcher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["export", str(tmp_path), *at]) == 1
    assert capsys.readouterr().err == f"textmatch: {tmp_path} cannot be written: Is a directory\n"
    assert matcher.list_requests == []


def test_what_is_no_file_is_written_and_not_replaced(at: list[str], tmp_path: Path):
    """As root, /dev/null would become a file."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as executor:
        read = executor.submit(pipe.read_text, encoding="utf-8")
        assert main(["export", str(pipe), *at]) == 0
        assert [json.loads(line) for line in read.result(10).splitlines()] == [CAT, MAT]
    assert pipe.is_fifo()
    assert [one.name for one in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.parametrize("command", ["list", "count", "export -"])
def test_a_filter_that_cannot_be_read_is_wrong_usage(
    at: list[str], capsys: pytest.CaptureFixture[str], command: str
):
    assert main([*command.split(), "--where", "year >", *at]) == 2
    assert "is invalid at character 7" in capsys.readouterr().err
