from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest
from redis.asyncio import Redis

from tests.support.collections import KEYS, STATE, register
from tests.support.redis import RedisServer
from textmatch.cli.__main__ import main
from textmatch.documents import Document
from textmatch.queue.dead_letters import DeadLetters, of_document, of_raw
from textmatch.queue.redis_client import connect


def with_redis(url: str, work: Callable[[Redis], Awaitable[object]]) -> None:
    async def connected() -> None:
        async with connect(url) as redis:
            await work(redis)

    asyncio.run(connected())


@pytest.fixture
def url(redis_server: RedisServer) -> str:
    """A Redis with two failed documents and one message that is none."""
    letters = [
        of_document(Document("猫", "猫坐", version=3), "TEXT_FAILED", "the model failed\non it"),
        of_document(Document("b", "text b", version=4), "TEXT_FAILED", "the model failed on it"),
        of_raw("{nonsense", "is not JSON"),
    ]

    async def fill(redis: Redis) -> None:
        await register(redis)
        await DeadLetters(redis, STATE.letters).add(letters)
        await DeadLetters(redis, KEYS.letters).add([of_raw("{unreadable", "is not JSON")])

    with_redis(redis_server.url, fill)
    return redis_server.url


def listed(url: str, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, object]]:
    assert main(["dead-letters", "list", "--json", "--redis-url", url]) == 0
    return {letter["id"]: letter for letter in map(json.loads, capsys.readouterr().out.splitlines())}


def test_list_as_json_and_for_people(url: str, capsys: pytest.CaptureFixture[str]):
    letters = listed(url, capsys)
    assert len(letters) == 3
    assert letters["猫"]["reason"] == "TEXT_FAILED"
    assert (letters["猫"]["text"], letters["猫"]["raw"]) == ("猫坐", None)
    [malformed] = [letter for letter in letters.values() if letter["text"] is None]
    assert (malformed["reason"], malformed["raw"]) == ("MALFORMED", "{nonsense")

    assert main(["dead-letters", "list", "--redis-url", url]) == 0
    out = capsys.readouterr().out
    assert "the model failed on it" in out
    assert "猫坐" in out


def test_replay_puts_documents_into_the_queue(
    url: str, redis_server: RedisServer, capsys: pytest.CaptureFixture[str]
):
    assert main(["dead-letters", "replay", "猫", "--json", "--redis-url", url]) == 0
    assert json.loads(capsys.readouterr().out) == {"replayed": 1}
    assert "猫" not in listed(url, capsys)
    with redis_server.client() as redis:
        assert redis.llen(KEYS.queue) == 1


def test_replay_all(url: str, redis_server: RedisServer, capsys: pytest.CaptureFixture[str]):
    assert main(["dead-letters", "replay", "--all", "--redis-url", url]) == 0
    assert capsys.readouterr().out == "replayed 3\n"
    assert listed(url, capsys) == {}
    with redis_server.client() as redis:
        assert redis.llen(KEYS.queue) == 3


def test_drop(url: str, capsys: pytest.CaptureFixture[str]):
    assert main(["dead-letters", "drop", "b", "unknown", "--redis-url", url]) == 1
    captured = capsys.readouterr()
    assert captured.out == "dropped 1\n"
    assert captured.err == "textmatch: 1 of the ids are not among the dead letters\n"
    assert "b" not in listed(url, capsys)
    assert main(["dead-letters", "drop", "--all", "--json", "--redis-url", url]) == 0
    assert json.loads(capsys.readouterr().out) == {"dropped": 2}


@pytest.mark.parametrize("arguments", [["replay"], ["drop"], ["drop", "b", "--all"]])
def test_it_must_be_said_which(url: str, capsys: pytest.CaptureFixture[str], arguments: list[str]):
    assert main(["dead-letters", *arguments, "--redis-url", url]) == 2
    assert "give ids or --all" in capsys.readouterr().err
    assert len(listed(url, capsys)) == 3


def test_a_redis_that_does_not_answer_is_one_line(capsys: pytest.CaptureFixture[str]):
    assert main(["dead-letters", "list", "--redis-url", "redis://127.0.0.1:1/0"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("textmatch: Redis does not answer: ")
    assert len(captured.err.splitlines()) == 1


def test_unreadable_messages_belong_to_no_collection(
    url: str, redis_server: RedisServer, capsys: pytest.CaptureFixture[str]
):
    at = ["--unreadable", "--redis-url", url]
    assert main(["dead-letters", "list", "--json", *at]) == 0
    assert json.loads(capsys.readouterr().out)["raw"] == "{unreadable"
    assert main(["dead-letters", "replay", "--all", *at]) == 0
    assert capsys.readouterr().out == "replayed 1\n"
    with redis_server.client() as redis:
        assert redis.llen(KEYS.queue) == 1
    assert len(listed(url, capsys)) == 3


def test_another_collection_or_installation_has_letters_of_its_own(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    assert main(["dead-letters", "list", "--json", "--collection", "faq", "--redis-url", url]) == 1
    assert capsys.readouterr().err == 'textmatch: no collection "faq"\n'
    monkeypatch.setenv("TEXTMATCH_INSTALLATION", "other")
    assert listed(url, capsys) == {}
