"""`textmatch collections`, and `--collection`, against a scripted server."""

from __future__ import annotations

import io
import json

import pytest

from tests.integration.cli.running import run
from tests.support.redis import free_port
from tests.support.scripted_servicer import RunningServer, ScriptedMatcher
from textmatch.cli.__main__ import main

FAQ = {
    "name": "faq",
    "bi_encoder": "tiny",
    "cross_encoder": None,
    "lexical": False,
    "indexes": ["year:integer", "customer:keyword:tenant"],
    "passage_tokens": 200,
    "passage_overlap": 40,
    "model_id": "tiny-0123456789ab",
    "documents": 3,
    "created_at": 1_700_000_000.0,
}
CREATE = [
    *("collections", "create", "faq", "--bi-encoder", "tiny", "--no-lexical"),
    *("--index", "year:integer", "--index", "customer:keyword:tenant"),
    *("--passage-tokens", "200", "--passage-overlap", "40"),
]


@pytest.fixture
def at(matcher_server: RunningServer) -> list[str]:
    return ["--matcher", matcher_server.address]


def test_collections_are_made_shown_and_deleted(at: list[str], capsys: pytest.CaptureFixture[str]):
    assert run([*CREATE, "--json", *at], capsys)[:2] == (0, [FAQ])
    assert run(["collections", "create", "other", "--json", *at], capsys)[0] == 0
    assert run(["collections", "get", "faq", "--json", *at], capsys)[:2] == (0, [FAQ])
    code, listed, _ = run(["collections", "list", "--json", *at], capsys)
    assert (code, [one["name"] for one in listed]) == (0, ["faq", "other"])
    assert run(["collections", "adopt", "faq", "--json", *at], capsys)[:2] == (0, [FAQ])
    assert main(["collections", "list", *at]) == 0
    shown = capsys.readouterr().out
    assert "customer:keyword:tenant" in shown
    assert "tiny-0123456789ab" in shown
    assert run(["collections", "delete", "faq", "--yes", "--json", *at], capsys)[:2] == (
        0,
        [{"deleted": "faq", "documents": 3}],
    )
    code, [], error = run(["collections", "get", "faq", "--json", *at], capsys)
    assert (code, error) == (1, 'textmatch: no collection "faq"\n')


def test_a_delete_asks_first(
    at: list[str],
    matcher_server: RunningServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    assert main([*CREATE, *at]) == 0
    capsys.readouterr()
    for answer in ("", "n\n"):
        monkeypatch.setattr("sys.stdin", io.StringIO(answer))
        assert main(["collections", "delete", "faq", *at]) == 1
        asked = capsys.readouterr().err
        assert asked.startswith("Delete faq with 3 documents? [y/N] ")
        assert asked.endswith("textmatch: nothing was deleted; --yes deletes without asking\n")
        assert set(matcher_server.collections.collections) == {"faq"}
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert main(["collections", "delete", "faq", "--json", *at]) == 0
    assert set(matcher_server.collections.collections) == set()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["create", "No!"], "collection.name: is 'No!'"),
        (["create", "faq", "--index", "year"], "must be attribute:kind"),
        (["delete", "unknown", "--yes"], 'no collection "unknown"'),
    ],
)
def test_mistakes_are_one_line(
    at: list[str], capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
):
    assert main(["collections", *arguments, *at]) == 1
    error = capsys.readouterr().err
    assert complaint in error
    assert len(error.splitlines()) == 1


def test_commands_name_their_collection(
    at: list[str],
    matcher: ScriptedMatcher,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    assert main(["match", "text", *at, "--collection", "faq"]) == 0
    monkeypatch.setenv("TEXTMATCH_COLLECTION", "manuals")
    assert main(["match", "text", *at]) == 0
    assert [request.collection for request in matcher.match_requests] == ["faq", "manuals"]
    capsys.readouterr()
    no_encoder = ["--encoder", f"127.0.0.1:{free_port()}"]
    code, [status], _ = run(["status", "--json", *at, *no_encoder, "--collection", "faq"], capsys)
    assert (code, status["collection"]) == (1, "faq")
    [listed] = status["collections"]
    assert (listed["name"], listed["model_id"]) == ("faq", "tiny-0123456789ab")
    assert json.dumps(status)
