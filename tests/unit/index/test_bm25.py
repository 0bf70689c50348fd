"""Terms and their weights."""

from __future__ import annotations

import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from textmatch.index.bm25 import QueryVector, document_vector, query_vector, terms
from textmatch.index.term_statistics import UNKNOWN, TermStatistics


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Delete a Folder, and delete it!", ["delete", "a", "folder", "and", "delete", "it"]),
        ("shutil.rmtree(path_1)", ["shutil", "rmtree", "shutil.rmtree", "path", "1", "path_1"]),
        ("v1.2.3 of covid-19.", ["v1", "2", "3", "v1.2.3", "of", "covid", "19", "covid-19"]),
        ("删除目录", ["删", "除", "目", "录", "删除", "除目", "目录"]),
        ("用Python删除 C++ 的", ["用", "python", "删", "除", "删除", "c", "的"]),
        ("ＰＹＴＨＯＮ３ ﬁle", ["python3", "file"]),
        ("Straße ÉCOLE naïve", ["strasse", "école", "naïve"]),
        ("ファイル 한국", ["フ", "ァ", "イ", "ル", "ファ", "ァイ", "イル", "한", "국", "한국"]),
        ("बैंक खाता कैसे बंद करें", ["बैंक", "खाता", "कैसे", "बंद", "करें"]),
        ("வங்கி கணக்கு", ["வங்கி", "கணக்கு"]),
        ("مُحَمَّد", ["مُحَمَّد"]),
        ("İSTANBUL", ["i̇stanbul"]),
        ("data\u00adbase py\u200bthon a\ufe0fb", ["database", "python", "ab"]),
        ("🔥 ...", []),
    ],
)
def test_terms(text: str, expected: list[str]):
    assert terms(text) == expected


@given(st.text(st.sampled_from("aB1 ._-,é한字か🔥ー") | st.characters(), max_size=60))
def test_a_mark_elsewhere_in_the_text_changes_no_term(text: str):
    """Texts without marks are read by patterns of their own."""
    assert terms(f"{text} \u0928\u0940") == [*terms(f"{text} "), "\u0928\u0940"]


def test_unrelated_hindi_questions_share_no_term():
    assert not set(terms("बैंक खाता कैसे बंद करें")) & set(terms("मौसम कल कैसा रहेगा"))


def test_every_invisible_character_is_dropped():
    for code in range(sys.maxunicode + 1):
        if unicodedata.category(chr(code)) == "Cf":
            assert terms(f"py{chr(code)}thon") == ["python"], hex(code)


def asked(text: str) -> set[str]:
    """The terms that a query asks for, out of those of its text."""
    vector = query_vector(text, UNKNOWN)
    indices = {document_vector(one).indices[0]: one for one in terms(text) if len(terms(one)) == 1}
    return {indices[index] for index in vector.indices if index in indices} if vector else set()


def test_queries_ask_for_pairs_and_leave_out_stop_words():
    assert document_vector("删除").indices[2:] == query_vector("删除", UNKNOWN).indices
    assert query_vector("删", UNKNOWN).indices == document_vector("删").indices
    assert asked("delete the folder") == {"delete", "folder"}
    assert asked("what is it") == {"what", "is", "it"}
    assert query_vector("的", UNKNOWN) is not None
    assert query_vector("🔥", UNKNOWN) is None


@given(st.text())
def test_any_text_makes_vectors_that_qdrant_takes(text: str):
    document, query = document_vector(text), query_vector(text, UNKNOWN)
    assert len(document.indices) == len(document.values) == len(set(document.indices))
    assert all(0 <= index < 2**32 for index in document.indices)
    assert all(0 < value < 2.2 for value in document.values)
    assert (query is None) == (not document.indices)
    if query is not None:
        assert set(query.indices) <= set(document.indices)
        assert 0 < lexical(query, text) < 1


def lexical(query: QueryVector, text: str) -> float:
    document = document_vector(text)
    weights = dict(zip(document.indices, document.values, strict=True))
    score = sum(
        value * weights.get(index, 0.0) for index, value in zip(query.indices, query.values, strict=True)
    )
    return query.lexical(score)


def test_evidence_grows_with_the_shared_terms_and_is_small_for_one():
    query = query_vector("remove a directory with all files below it", UNKNOWN)
    texts = [
        "print a text",
        "remove a text",
        "remove a directory",
        "remove a directory with all files",
        "remove a directory with all files below it",
    ]
    evidence = [lexical(query, text) for text in texts]
    assert evidence == sorted(evidence)
    assert evidence[0] == 0
    assert evidence[1] < 0.01
    assert evidence[-1] > 0.15


def test_a_long_query_gives_no_evidence_by_its_length():
    words = " ".join(f"word{number}" for number in range(120))
    assert lexical(query_vector(words, UNKNOWN), "word1 word2 word3") < 0.02


def test_an_identifier_counts_more_as_a_whole():
    query = query_vector("xml.sax.handler", UNKNOWN)
    whole, parts, other = "see xml.sax.handler here", "xml and sax handler here", "xml here"
    assert lexical(query, whole) > lexical(query, parts) > lexical(query, other) > 0
    assert query.term_count == 3.5


def test_the_same_pair_keeps_its_evidence_while_the_corpus_grows():
    random = np.random.default_rng(0)

    def text() -> str:
        """Words by Zipf's law, as in natural texts."""
        return " ".join(f"w{number}" for number in random.zipf(1.3, 40) if number < 10**6)

    texts = [text() for _ in range(20_000)]
    indices = [np.array(document_vector(one).indices, dtype=np.uint32) for one in texts]
    small, large = TermStatistics.of(indices[:1_000]), TermStatistics.of(indices)
    moved = []
    for number in range(200):
        words = texts[number].split()
        query = " ".join(words[::2])
        for document in (texts[number], " ".join(words[:10]), texts[number + 1]):
            before, after = (lexical(query_vector(query, one), document) for one in (small, large))
            moved.append(abs(before - after))
    assert max(moved) <= 0.03
    assert query_vector(texts[0], small).values != query_vector(texts[0], large).values


def test_repetition_counts_less_and_less_and_long_texts_are_held_back():
    def weight(text: str) -> float:
        return document_vector(text).values[0]

    once, twice, often = weight("word"), weight("word word"), weight("word " * 20)
    assert once < twice < often < 2.2
    assert twice - once < once
    assert weight("word" + " filler" * 500) < weight("word" + " filler" * 5)


def test_indices_stay_the_same_for_ever():
    assert document_vector("delete").indices == [0x3A127C87]
