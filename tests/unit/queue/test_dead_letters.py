"""Dead letters: what is kept, for how long, and how it gets back."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from tests.support.collections import CONFIG, KEYS, STATE, register
from textmatch.documents import Document
from textmatch.errors import InvalidInput
from textmatch.queue.dead_letters import DeadLetters, LetterPosition, of_argument, of_document, of_raw
from textmatch.queue.messages import Stamp, unpack
from textmatch.queue.pending import Pending
from textmatch.queue.producer import Producer


@pytest.fixture
def dead_letters(redis: Redis) -> DeadLetters:
    return DeadLetters(redis, STATE.letters)


@pytest.fixture
async def producer(redis: Redis) -> Producer:
    await register(redis)
    return Producer(redis, KEYS)


def document(document_id: str = "文档🙂", version: int = 5) -> Document:
    return Document(document_id, "text", {"deep": [{"k": None}], "empty": {}, "n": 2**53 - 1}, version)


async def test_a_letter_comes_back_whole(dead_letters: DeadLetters):
    letter = of_document(document(), "TEXT_FAILED", "错误")
    malformed = of_raw("\x00{broken", "not JSON")
    await dead_letters.add([letter, malformed])
    assert await dead_letters.get("文档🙂") == letter
    assert await dead_letters.get(malformed.key) == malformed
    assert await dead_letters.get("other") is None
    assert await dead_letters.count() == 2
    assert await dead_letters.entries(10) == [letter, malformed]
    assert len(await dead_letters.entries(1)) == 1


async def test_the_same_malformed_message_is_kept_once(dead_letters: DeadLetters):
    await dead_letters.add([of_raw("broken", "first")])
    await dead_letters.add([of_raw("broken", "again"), of_raw("other", "first")])
    assert await dead_letters.count() == 2


async def test_of_one_document_the_newest_failure_is_kept(dead_letters: DeadLetters):
    await dead_letters.add([of_document(document(version=5), "A", "newer")])
    await dead_letters.add([of_document(document(version=4), "B", "older")])
    kept = await dead_letters.get("文档🙂")
    assert kept is not None
    assert kept.error == "newer"
    await dead_letters.add([of_document(document(version=5), "C", "the same again")])
    kept = await dead_letters.get("文档🙂")
    assert kept is not None
    assert kept.error == "the same again"


async def test_pages_have_every_letter_once_though_many_failed_at_the_same_time(dead_letters: DeadLetters):
    """The places of two letters differ in their keys then."""
    letters = [
        replace(of_document(document(f"{'é' if n % 2 else 'z'}{n}"), "A", "e"), failed_at=100.25 + n // 5)
        for n in range(12)
    ]
    await dead_letters.add(letters)
    expected = sorted((one.failed_at, one.key) for one in letters)
    for size in (1, 2, 3, 12, 50):
        found: list[tuple[float, str]] = []
        token = ""
        while page := await dead_letters.page(LetterPosition.from_token(token), size):
            found += [(letter.failed_at, letter.key) for _, letter in page if letter]
            token = page[-1][0].to_token()
        assert found == expected


async def test_pages_go_on_after_a_letter_that_is_gone_or_has_failed_again(dead_letters: DeadLetters):
    first, second, third = (
        replace(of_document(document(one), "A", "e"), failed_at=at)
        for one, at in (("a", 1.5), ("b", 2.5), ("c", 3.5))
    )
    await dead_letters.add([third, first, second])
    [(position, letter)] = await dead_letters.page(LetterPosition.from_token(""), 1)
    assert letter == first
    await dead_letters.drop(["a"])
    await dead_letters.add([replace(second, failed_at=4.5, error="again")])
    rest = await dead_letters.page(LetterPosition.from_token(position.to_token()), 10)
    assert [(one.key, one.error) for _, one in rest if one] == [("c", "e"), ("b", "again")]


@pytest.mark.parametrize("how", ["drop", "clear", "replay"])
async def test_nothing_of_a_letter_is_left(
    dead_letters: DeadLetters, producer: Producer, redis: Redis, how: str
):
    await dead_letters.add([of_document(document("a"), "A", "e")])
    if how == "drop":
        await dead_letters.drop(["a"])
    elif how == "clear":
        await dead_letters.clear({"a": 5})
    else:
        await dead_letters.replay(["a"], producer, CONFIG)
    assert await redis.keys("*dead-letter*") == []


@pytest.mark.parametrize("token", ["a", ":", "nan:a", "inf:a", "1_0:a", " 1:a", "-1:a", "1e9999:a", "٣:a"])
def test_what_is_no_page_token_is_told(token: str):
    with pytest.raises(InvalidInput, match="page_token: is not one that a page has returned"):
        LetterPosition.from_token(token)


async def test_clear_takes_failures_that_no_longer_matter(dead_letters: DeadLetters):
    malformed = of_raw("broken", "not JSON")
    await dead_letters.add(
        [of_document(document("a", 5), "A", "e"), of_document(document("b", 5), "A", "e"), malformed]
    )
    assert await dead_letters.clear({"a": 5, "b": 4, "c": 9, malformed.key: 9}) == 1
    assert {letter.key for letter in await dead_letters.entries(10)} == {"b", malformed.key}


async def test_a_document_that_is_hardly_json_can_be_kept_and_cleared(dead_letters: DeadLetters):
    odd = Document("odd", "\ud800", {"x": float("inf"), "y": 10**30}, version=5)
    await dead_letters.add([of_document(odd, "A", "\ud800")])
    await dead_letters.add([of_document(odd, "A", "again")])
    letter = await dead_letters.get("odd")
    assert letter is not None
    assert letter.document == odd
    assert await dead_letters.clear({"odd": 5}) == 1
    assert await dead_letters.count() == 0


async def test_drop_forgets(dead_letters: DeadLetters):
    await dead_letters.add([of_document(document("a"), "A", "e"), of_document(document("b"), "A", "e")])
    assert await dead_letters.drop(["a", "missing"]) == 1
    assert await dead_letters.drop([]) == 0
    assert await dead_letters.count() == 1


@pytest.mark.parametrize("raw", ["{broken", '{"headers": {}}', "\\xff"])
async def test_the_replay_of_a_message_is_that_message(
    dead_letters: DeadLetters, producer: Producer, redis: Redis, raw: str
):
    """It was wrapped as the argument of a new task, which nobody can read, mended or not."""
    await dead_letters.add([of_raw(raw, "unreadable")])
    [letter] = await dead_letters.entries(10)
    assert await dead_letters.replay([letter.key], producer, CONFIG) == 1
    assert await redis.rpop(KEYS.queue) == raw


@pytest.mark.parametrize("stamp", [None, Stamp(5, (7,))])
async def test_the_replay_of_an_argument_is_a_task_with_its_stamp(
    dead_letters: DeadLetters, producer: Producer, redis: Redis, stamp: Stamp | None
):
    await dead_letters.add([of_argument("{broken", stamp, "unreadable")])
    [letter] = await dead_letters.entries(10)
    assert letter.raw == "{broken"
    assert await dead_letters.replay([letter.key], producer, CONFIG) == 1
    body = unpack(str(await redis.rpop(KEYS.queue)).encode(), KEYS.queue)["body"]
    arguments = json.loads(base64.b64decode(body))[0]
    assert arguments == ["{broken", stamp.to_fields() if stamp else None]


async def test_a_letter_keeps_when_its_document_was_accepted(dead_letters: DeadLetters):
    await dead_letters.add([of_document(replace(document("a"), accepted_us=7), "A", "e")])
    letter = await dead_letters.get("a")
    assert letter is not None
    assert letter.document is not None
    assert letter.document.accepted_us == 7


async def test_replay_puts_documents_back_into_the_queue(
    dead_letters: DeadLetters, producer: Producer, redis: Redis
):
    await dead_letters.add([of_document(document("a"), "A", "e"), of_raw("broken", "not JSON")])
    letter_keys = [letter.key for letter in await dead_letters.entries(10)]
    assert await dead_letters.replay([*letter_keys, "missing"], producer, CONFIG) == 2
    assert await dead_letters.count() == 0
    assert await redis.llen(KEYS.queue) == 2
    assert await Pending(redis, STATE).versions(["a"]) == {"a": 5}
