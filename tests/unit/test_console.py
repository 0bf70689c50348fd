from __future__ import annotations

import json

import pytest

from textmatch.cli.errors import CommandFailed, message_of
from textmatch.client import ServerUnreachable
from textmatch.console import ProgressBars, cell, one_line, print_json


def test_json_is_one_line_of_unescaped_text(capsys: pytest.CaptureFixture[str]):
    print_json({"text": "猫\n坐", "score": 0.5, "missing": None})
    out = capsys.readouterr().out
    assert out == '{"text": "猫\\n坐", "score": 0.5, "missing": null}\n'
    assert json.loads(out)["text"] == "猫\n坐"


def test_texts_from_outside_cannot_disturb_the_terminal():
    assert one_line("a\x1b[31mred\nb\tc\u202e") == "a [31mred b c "
    assert cell("[bold]not markup[/bold]").plain == "[bold]not markup[/bold]"
    assert len(one_line("x" * 10_000)) == 400


def test_failures_are_told_in_one_line_and_bugs_are_not():
    assert message_of(CommandFailed("a\n  b")) == "a b"
    assert message_of(ServerUnreachable("matcher", "host:1")) == (
        "the matcher at host:1 does not answer; is the stack running? Start it with: textmatch up"
    )
    assert message_of(ZeroDivisionError()) is None


def test_progress_is_not_drawn_unless_a_person_looks(capsys: pytest.CaptureFixture[str]):
    with ProgressBars() as progress:
        progress.stage("reading", 10, unit="documents")
        progress.advance(size=10)
        progress.stage("indexing", unit="documents")
        progress.advance(-2, note="3 queued")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
