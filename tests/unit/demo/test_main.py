from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from standalone.demo import __main__ as demo
from standalone.demo.corpus import Question
from tests.support.scripted_servicer import RunningServer, ScriptedMatcher
from textmatch.client import TextMatchClient, to_document
from textmatch.io.document_reader import read_records
from textmatch.io.file_format import Format, Layout


def test_the_corpus_is_written_as_lines_that_ingest_takes(tmp_path: Path):
    path = tmp_path / "new" / "corpus.jsonl"
    count = demo.write_corpus(path)
    with path.open("rb") as file:
        records = read_records(file, Layout(Format.JSONL), "corpus")
        documents = [to_document(record.fields) for record in records]
    assert len(documents) == count > 3_000
    assert documents == sorted(documents, key=lambda document: document.id)


def test_right_answers_get_a_tick(client: TextMatchClient):
    client.ingest_all([{"id": "shutil.rmtree", "text": "delete a tree"}, {"id": "os.walk", "text": "walk"}])
    questions = [Question("delete a tree", ("shutil.rmtree",)), Question("walk", ("os.fwalk",))]
    console = Console(width=120)
    with console.capture() as capture:
        console.print(demo.answer(client, "Questions", questions))
    rows = [
        [cell.strip() for cell in line.split("│")[1:6]] for line in capture.get().splitlines() if "│" in line
    ]
    assert rows == [
        ["delete a tree", "1.00", "shutil.rmtree", "✓", "delete a tree"],
        ["walk", "1.00", "os.walk", "", "walk"],
    ]


def test_right_decisions_about_tickets_get_a_tick(client: TextMatchClient):
    # The scripted encoder scores a pair by the ratio of its lengths.
    tickets = [("same", "same", True), ("a", "abcde", True), ("a", "abcde", False)]
    table = demo.compare(client, tickets)
    assert list(table.columns[2].cells) == ["1.00", "0.20", "0.20"]
    assert list(table.columns[3].cells) == ["✓", "", "✓"]


def test_the_demo_uses_a_stack_that_runs(
    encoder_server: RunningServer,
    matcher_server: RunningServer,
    matcher: ScriptedMatcher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    stack = {
        "matcher": matcher_server.address,
        "encoder": encoder_server.address,
        "redis_url": "",
        "qdrant_url": "",
        "installation": "textmatch",
        "processes": [],
    }
    (tmp_path / "stack.json").write_text(json.dumps(stack))
    monkeypatch.setattr(demo, "holder_pid", lambda data_dir: 1)
    monkeypatch.setattr(sys, "argv", ["demo", "--data-dir", str(tmp_path)])
    assert demo.main() == 0
    out = capsys.readouterr().out
    assert len(matcher.documents) > 3_000
    assert f"accepted {len(matcher.documents):,}, unchanged 0, rejected 0" in out
    assert len(matcher.match_requests) == 8 + 4 + 6 + 3
    assert f"down --data-dir {tmp_path}" in out
    assert demo.main() == 0
    assert f"accepted 0, unchanged {len(matcher.documents):,}, rejected 0" in capsys.readouterr().out


def test_a_stack_that_does_not_answer_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    stack = {
        "matcher": "127.0.0.1:1",
        "encoder": "",
        "redis_url": "",
        "qdrant_url": "",
        "installation": "textmatch",
        "processes": [],
    }
    (tmp_path / "stack.json").write_text(json.dumps(stack))
    monkeypatch.setattr(demo, "holder_pid", lambda data_dir: 1)
    monkeypatch.setattr(sys, "argv", ["demo", "--data-dir", str(tmp_path)])
    assert demo.main() == 1
    assert capsys.readouterr().err.startswith("textmatch: the matcher at 127.0.0.1:1 does not answer")
