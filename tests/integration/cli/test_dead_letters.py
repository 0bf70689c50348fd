"""`textmatch dead-letters` against a scripted server. It needs no Redis."""

from __future__ import annotations

import json

import pytest

from tests.integration.cli.running import run
from tests.support.redis import free_port
from tests.support.scripted_servicer import RunningServer, ScriptedMatcher
from textmatch.cli.__main__ import main
from textmatch.v1 import matcher_service_pb2 as pb


@pytest.fixture
def at(matcher_server: RunningServer, matcher: ScriptedMatcher, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A matcher with two failed documents, a message that is none, and one that belongs to no collection."""
    monkeypatch.setenv("TEXTMATCH_REDIS_URL", f"redis://127.0.0.1:{free_port()}/0")
    matcher.dead_letters = {
        "b": pb.DeadLetter(
            id="b", reason="TEXT_FAILED", error="the model failed on it", text="text b", version=4
        ),
        "malformed-1": pb.DeadLetter(
            id="malformed-1", reason="MALFORMED", error="is not JSON", raw="{nonsense"
        ),
        "猫": pb.DeadLetter(
            id="猫", reason="TEXT_FAILED", error="the model failed\non it", text="猫坐", version=3
        ),
    }
    for letter in matcher.dead_letters.values():
        letter.fail_time.FromMicroseconds(1_764_495_000_250_000)
    matcher.unreadable = {"m": pb.DeadLetter(id="m", reason="MALFORMED", raw="{unreadable")}
    # Each page has one of them.
    matcher.page_limit = 1
    return ["--matcher", matcher_server.address]


def listed(at: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, object]]:
    code, letters, error = run(["dead-letters", "list", "--json", *at], capsys)
    assert (code, error) == (0, "")
    return {letter["id"]: letter for letter in letters}


def test_list_as_json_and_for_people(at: list[str], capsys: pytest.CaptureFixture[str]):
    letters = listed(at, capsys)
    assert len(letters) == 3
    assert letters["猫"] == {
        "id": "猫",
        "reason": "TEXT_FAILED",
        "error": "the model failed\non it",
        "failed_at": 1_764_495_000.25,
        "text": "猫坐",
        "raw": None,
    }
    [malformed] = [letter for letter in letters.values() if letter["text"] is None]
    assert (malformed["reason"], malformed["raw"]) == ("MALFORMED", "{nonsense")
    assert len(run(["dead-letters", "list", "--limit", "2", "--json", *at], capsys)[1]) == 2

    assert main(["dead-letters", "list", *at]) == 0
    out = capsys.readouterr().out
    assert "the model failed on it" in out
    assert "猫坐" in out
    assert "{nonsense" in out


def test_replay_sends_documents_again(
    at: list[str], matcher: ScriptedMatcher, capsys: pytest.CaptureFixture[str]
):
    assert run(["dead-letters", "replay", "猫", "--json", *at], capsys) == (0, [{"replayed": 1}], "")
    assert matcher.replayed == ["猫"]
    assert "猫" not in listed(at, capsys)


def test_replay_all(at: list[str], matcher: ScriptedMatcher, capsys: pytest.CaptureFixture[str]):
    assert main(["dead-letters", "replay", "--all", *at]) == 0
    assert capsys.readouterr().out == "replayed 3\n"
    assert listed(at, capsys) == {}
    assert len(matcher.replayed) == 3
    assert main(["dead-letters", "replay", "--all", *at]) == 0
    assert capsys.readouterr().out == "replayed 0\n"


def test_drop(at: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(["dead-letters", "drop", "b", "unknown", *at]) == 1
    captured = capsys.readouterr()
    assert captured.out == "dropped 1\n"
    assert captured.err == "textmatch: 1 of the ids are not among the dead letters\n"
    assert "b" not in listed(at, capsys)
    assert main(["dead-letters", "drop", "--all", "--json", *at]) == 0
    assert json.loads(capsys.readouterr().out) == {"dropped": 2}


@pytest.mark.parametrize("arguments", [["replay"], ["drop"], ["drop", "b", "--all"]])
def test_it_must_be_said_which(at: list[str], capsys: pytest.CaptureFixture[str], arguments: list[str]):
    assert main(["dead-letters", *arguments, *at]) == 2
    assert "give ids or --all" in capsys.readouterr().err
    assert len(listed(at, capsys)) == 3


def test_a_matcher_that_does_not_answer_is_one_line(capsys: pytest.CaptureFixture[str]):
    assert main(["dead-letters", "list", "--matcher", f"127.0.0.1:{free_port()}"]) == 1
    error = capsys.readouterr().err
    assert "does not answer; is the stack running?" in error
    assert len(error.splitlines()) == 1


def test_unreadable_messages_belong_to_no_collection(
    at: list[str], matcher: ScriptedMatcher, capsys: pytest.CaptureFixture[str]
):
    assert main(["dead-letters", "list", "--unreadable", "--json", *at]) == 0
    assert json.loads(capsys.readouterr().out)["raw"] == "{unreadable"
    assert main(["dead-letters", "replay", "--all", "--unreadable", *at]) == 0
    assert capsys.readouterr().out == "replayed 1\n"
    assert matcher.replayed == ["m"]
    assert len(listed(at, capsys)) == 3
