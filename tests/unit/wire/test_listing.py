"""Pages: how many items they have, how large they are, and how the next one is found."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest

from textmatch.documents import MAX_TEXT_BYTES, Document
from textmatch.errors import InvalidInput
from textmatch.types import LetterInfo
from textmatch.v1 import matcher_service_pb2 as pb
from textmatch.wire.documents import from_proto
from textmatch.wire.listing import (
    documents_by_id_to_proto,
    documents_page_to_proto,
    fields_to_read,
    found_documents,
    letter_from_proto,
    letters_page_to_proto,
    page_size,
)
from textmatch.wire.matching import MAX_ANSWER_BYTES

LARGE = "文" * (MAX_TEXT_BYTES // 3)


class Read(AsyncIterator[Any]):
    """Items, with the number of those that were taken."""

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = iter(items)
        self.count = 0

    async def __anext__(self) -> Any:
        for item in self._items:
            self.count += 1
            return item
        raise StopAsyncIteration


def documents(count: int, text: str = "text") -> list[Document]:
    return [Document(f"{number:05}", text, {"n": number}, version=1) for number in range(count)]


def test_the_size_of_a_page_has_a_default_and_a_limit():
    assert [page_size(one) for one in (0, 1, 1_000, 1_001, 2**31 - 1)] == [100, 1, 1_000, 1_000, 1_000]
    with pytest.raises(InvalidInput, match="page_size: is -1; it must not be negative"):
        page_size(-1)


@pytest.mark.parametrize(
    ("count", "size", "on_page", "token"),
    [(0, 3, 0, ""), (2, 3, 2, ""), (3, 3, 3, ""), (4, 3, 3, "00002"), (9, 1, 1, "00000")],
)
async def test_a_page_ends_with_a_token_only_if_there_is_more(
    count: int, size: int, on_page: int, token: str
):
    source = Read(documents(count))
    response = await documents_page_to_proto(source, size)
    assert [from_proto(one) for one in response.documents] == documents(count)[:on_page]
    assert response.next_page_token == token
    assert source.count <= size + 1


async def test_a_page_of_large_documents_is_shorter_and_not_larger_than_an_answer():
    response = await documents_page_to_proto(Read(documents(1_000, LARGE)), 1_000)
    assert 100 < len(response.documents) < 125
    assert MAX_ANSWER_BYTES - 2 * MAX_TEXT_BYTES < response.ByteSize() < MAX_ANSWER_BYTES + 1_000
    assert response.next_page_token == response.documents[-1].id


async def test_documents_come_in_order_with_the_missing_ones_named():
    found = {one.id: one for one in documents(3)}
    asked = ["00002", "nowhere", "00000", "00000", "无"]
    response = await documents_by_id_to_proto(Read((one, found.get(one)) for one in asked))
    assert response.answered_count == 5
    result = found_documents([response, response])
    assert [one.id for one in result.documents] == ["00002", "00000", "00000"] * 2
    assert result.missing_ids == ("nowhere", "无") * 2


async def test_ids_that_do_not_fit_are_left_for_the_next_call():
    some = documents(400, LARGE)
    left, responses = [(one.id, one) for one in some], list[pb.GetDocumentsResponse]()
    while left:
        responses.append(await documents_by_id_to_proto(Read(left)))
        assert responses[-1].ByteSize() < MAX_ANSWER_BYTES + 1_000
        left = left[responses[-1].answered_count :]
    assert len(responses) == 4
    assert list(found_documents(responses).documents) == some


async def test_dead_letters_come_back_with_the_token_of_the_last_one():
    letters = [
        LetterInfo("a", "TEXT_FAILED", "e", 1_764_495_000.25, "text", 7, None),
        LetterInfo("malformed-1", "MALFORMED", "is not JSON", 2.5, None, 0, "{"),
        LetterInfo("c", "TEXT_FAILED", "e", 3.0, "", 7, None),
    ]
    source = Read((f"after {one.id}", one) for one in letters)
    response = await letters_page_to_proto(source, 2)
    assert [letter_from_proto(one) for one in response.dead_letters] == letters[:2]
    assert response.next_page_token.endswith("malformed-1")
    last = await letters_page_to_proto(Read([("after c", letters[2])]), 2)
    assert [letter_from_proto(one) for one in last.dead_letters] == letters[2:]
    assert last.next_page_token == ""


async def test_a_page_of_large_dead_letters_is_not_larger_than_an_answer():
    letters = (LetterInfo(str(one), "MALFORMED", "e" * 4_096, 1.0, None, 0, LARGE) for one in range(500))
    response = await letters_page_to_proto(Read((one.id, one) for one in letters), 500)
    assert 50 < len(response.dead_letters) < 125
    assert response.ByteSize() < MAX_ANSWER_BYTES + 1_000


def test_what_is_omitted_is_not_read():
    assert fields_to_read(pb.ListDocumentsRequest()) == ["id", "text", "attributes", "version"]
    bare = pb.ListDocumentsRequest(omit_text=True, omit_attributes=True)
    assert fields_to_read(bare) == ["id", "version"]
