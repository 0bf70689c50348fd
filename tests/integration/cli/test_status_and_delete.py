"""`textmatch status` and `textmatch delete` against a scripted server."""

from __future__ import annotations

import io
import json
import socket
from pathlib import Path

import pytest

from tests.integration.cli.running import run
from tests.support.scripted_servicer import RunningServer, ScriptedMatcher
from textmatch.cli.__main__ import main
from textmatch.errors import InternalError


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


WHERE = ["delete", "--where", "year < 2020"]


def test_delete_by_a_filter(
    matcher_server: RunningServer, matcher: ScriptedMatcher, capsys: pytest.CaptureFixture[str]
):
    arguments = [*WHERE, "--json", "--yes", "--matcher", matcher_server.address]
    assert run(arguments, capsys)[:2] == (0, [{"deleted": 0}])
    [condition] = matcher.delete_filters
    assert condition.must[0].range.field == "year"
    assert main(["delete", "cat", *arguments[1:]]) == 2
    assert main(["delete", "--matcher", matcher_server.address]) == 2


@pytest.mark.parametrize(
    ("answer", "is_deleted"), [("y\n", True), ("Yes\n", True), ("n\n", False), ("", False)]
)
def test_delete_by_a_filter_asks_first(
    matcher_server: RunningServer,
    matcher: ScriptedMatcher,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    is_deleted: bool,
):
    matcher.matching_count = 1_234
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    code, answers, err = run([*WHERE, "--json", "--matcher", matcher_server.address], capsys)
    assert err.startswith(
        "1,234 stored documents match. Delete them, and queued documents that match? [y/N] "
    )
    if is_deleted:
        assert (code, answers, len(matcher.delete_filters)) == (0, [{"deleted": 0}], 1)
    else:
        assert (code, answers, matcher.delete_filters) == (1, [], [])
        assert err.endswith("textmatch: nothing was deleted; --yes deletes without asking\n")


def test_a_dry_run_only_counts(
    matcher_server: RunningServer, matcher: ScriptedMatcher, corpus: None, capsys: pytest.CaptureFixture[str]
):
    matcher.matching_count = 1_234
    server = ["--matcher", matcher_server.address]
    assert run([*WHERE, "--dry-run", "--json", *server], capsys) == (0, [{"would_delete": 1_234}], "")
    assert main([*WHERE, "--dry-run", *server]) == 0
    assert capsys.readouterr().out == "would delete 1,234\n"
    assert run(["delete", "cat", "x", "--dry-run", "--json", *server], capsys)[1] == [{"would_delete": 1}]
    assert matcher.delete_filters == []
    assert "cat" in matcher.documents


@pytest.mark.parametrize("command", [["match", "q"], ["delete", "--yes"]])
@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("", "is invalid at character 1: expected the name of an attribute"),
        (" ", "is invalid at character 2: expected the name of an attribute"),
        ("year >", "is invalid at character 7: expected a number, or a time in quotes"),
        ("module = os", "is invalid at character 10: expected a text in quotes"),
    ],
)
def test_a_filter_that_cannot_be_read_is_wrong_usage(
    matcher_server: RunningServer,
    matcher: ScriptedMatcher,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    where: str,
    message: str,
):
    assert main([*command, "--where", where, "--matcher", matcher_server.address]) == 2
    err = capsys.readouterr().err
    assert f"Invalid value for --where: {message}" in err
    assert len(err.splitlines()) == 1
    assert (matcher.match_requests, matcher.delete_filters) == ([], [])


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
    [listed] = answer.pop("collections")
    assert listed == {
        "name": "default",
        "model_id": "tiny-0123456789ab",
        "documents": 2,
        "queued": 3,
        "oldest_seconds": 1.5,
        "dead_letters": 1,
        "truncated": 0,
    }
    [model] = answer.pop("models")
    assert (model["model_id"], model["kind"], model["dimension"]) == ("tiny-0123456789ab", "bi-encoder", 4)
    assert answer == {
        "documents": 2,
        "queued": 3,
        "oldest_seconds": 1.5,
        "dead_letters": 1,
        "collection": "default",
        "truncated": 0,
        "processes": [
            {"name": "encoder", "address": encoder_server.address, "health": "SERVING"},
            {"name": "matcher", "address": matcher_server.address, "health": "SERVING"},
        ],
        "problems": [],
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
            "installation": "textmatch",
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
