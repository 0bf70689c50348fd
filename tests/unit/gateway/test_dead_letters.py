"""Dead letters over HTTP: listed, sent again and dropped."""

from __future__ import annotations

import json

import httpx
import pytest

from tests.support.scripted_servicer import ScriptedMatcher
from textmatch.v1 import matcher_service_pb2 as pb

LETTERS = "/v1/collections/faq/deadLetters"


@pytest.fixture
def letters(matcher: ScriptedMatcher) -> None:
    for one in ("a", "b", "c"):
        letter = pb.DeadLetter(id=one, reason="TEXT_FAILED", error="e", text="t", version=7)
        letter.fail_time.FromSeconds(1_764_495_000)
        matcher.dead_letters[one] = letter
    matcher.unreadable["m"] = pb.DeadLetter(id="m", reason="MALFORMED", raw="{")
    matcher.page_limit = 2


async def test_dead_letters_are_lines(http: httpx.AsyncClient, letters: None):
    answer = await http.get(LETTERS)
    found = [json.loads(line) for line in answer.text.splitlines()]
    assert [one["id"] for one in found] == ["a", "b", "c"]
    assert found[0] == {
        "id": "a",
        "reason": "TEXT_FAILED",
        "error": "e",
        "failed_at": "2025-11-30T09:30:00Z",
        "text": "t",
        "version": 7,
    }
    assert len((await http.get(LETTERS, params={"limit": 2})).text.splitlines()) == 2
    [message] = map(json.loads, (await http.get(LETTERS, params={"unreadable": True})).text.splitlines())
    assert (message["id"], message["raw"]) == ("m", "{")
    assert "text" not in message


async def test_dead_letters_are_sent_again_or_dropped(
    http: httpx.AsyncClient, matcher: ScriptedMatcher, letters: None
):
    answer = await http.post(f"{LETTERS}:replay", json={"ids": ["a", "missing"]})
    assert answer.json() == {"replayed_count": 1}
    assert matcher.replayed == ["a"]
    assert (await http.post(f"{LETTERS}:drop", json={"ids": ["b", "c"]})).json() == {"dropped_count": 2}
    assert (await http.get(LETTERS)).text == ""
    answer = await http.post(f"{LETTERS}:replay", json={"ids": ["m"], "unreadable": True})
    assert answer.json() == {"replayed_count": 1}


@pytest.mark.parametrize("action", ["replay", "drop"])
@pytest.mark.parametrize("body", [{}, {"ids": []}, {"ids": ["a"] * 10_001}, {"ids": "a"}, {"all": True}])
async def test_nothing_is_done_by_mistake(
    http: httpx.AsyncClient, matcher: ScriptedMatcher, letters: None, action: str, body: object
):
    assert (await http.post(f"{LETTERS}:{action}", json=body)).status_code == 400
    assert (len(matcher.dead_letters), matcher.replayed) == (3, [])
