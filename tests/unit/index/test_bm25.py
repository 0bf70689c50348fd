"""Terms and their weights."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textmatch.index.bm25 import document_vector, query_vector, terms


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Delete a Folder, and delete it!", ["delete", "folder", "delete"]),
        ("shutil.rmtree(path_1)", ["shutil", "rmtree", "path", "1"]),
        ("删除目录", ["删", "除", "目", "录", "删除", "除目", "目录"]),
        ("用Python删除 C++ 的", ["用", "python", "删", "除", "删除", "c"]),
        ("ＰＹＴＨＯＮ３ ﬁle", ["python3", "file"]),
        ("Straße ÉCOLE naïve", ["straße", "école", "naïve"]),
        ("ファイル 한국", ["フ", "ァ", "イ", "ル", "ファ", "ァイ", "イル", "한", "국", "한국"]),
        ("the of 的 ...", []),
    ],
)
def test_terms(text: str, expected: list[str]):
    assert terms(text) == expected


@given(st.text())
def test_any_text_makes_a_vector_that_qdrant_takes(text: str):
    for vector in (document_vector(text), query_vector(text)):
        assert len(vector.indices) == len(vector.values) == len(set(vector.indices))
        assert all(0 <= index < 2**32 for index in vector.indices)
        assert all(0 < value < 2.2 for value in vector.values)
    assert set(query_vector(text).indices) == set(document_vector(text).indices)


def test_repetition_counts_less_and_less_and_long_texts_are_held_back():
    def weight(text: str) -> float:
        return document_vector(text).values[0]

    once, twice, often = weight("word"), weight("word word"), weight("word " * 20)
    assert once < twice < often < 2.2
    assert twice - once < once
    assert weight("word" + " filler" * 500) < weight("word" + " filler" * 5)


def test_indices_stay_the_same_for_ever():
    assert query_vector("delete").indices == [0x3A127C87]
