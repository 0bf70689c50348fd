"""Texts are divided into passages that cover them, at the best places."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textmatch.passages import (
    MAX_PASSAGE_CHARACTERS,
    Packer,
    Span,
    TextBoundary,
    estimated_tokens,
    halves,
    segments_of,
)

_PIECES = st.sampled_from(
    [
        "word ", "Dr. Smith", "。", "！”", "中文句子", ". ", "? ", "\n", "\n\n", "# Heading\n", "- item ",
        "1. ", "```\n", "| a | b |\n", "第一章 开始\n", "   ", "\t", "x" * 300, "文" * 300,
        "é̂", "🙂", "\u3000", "…", "；",
    ]
)  # fmt: skip
TEXTS = st.lists(_PIECES, min_size=1, max_size=60).map("".join)


def segments(text: str, max_tokens: int = 256) -> list[str]:
    return [text[one.start : one.end] for one in segments_of(text, max_tokens)]


def passages(text: str, max_tokens: float, overlap: float = 0.0) -> list[Span]:
    packer = Packer(text, segments_of(text, int(max_tokens)), overlap)
    found = []
    while span := packer.take(max_tokens):
        found.append(span)
    return found


def shown(text: str, spans: list[Span]) -> list[str]:
    return [text[span.start : span.end] for span in spans]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(TEXTS)
def test_segments_are_the_text(text: str):
    assert "".join(segments(text)) == (text if text.strip() else "")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(TEXTS, st.integers(16, 80), st.integers(0, 8))
def test_passages_cover_the_text_and_are_not_too_long(text: str, max_tokens: int, overlap: int):
    spans = passages(text, max_tokens, overlap)
    covered = set[int]()
    for span in spans:
        content = text[span.start : span.end]
        assert content == content.strip() != ""
        # The first segment of a passage is taken in any case, after an overlap.
        assert estimated_tokens(content) <= max_tokens + overlap + 1
        assert len(content) <= MAX_PASSAGE_CHARACTERS
        covered.update(range(span.start, span.end))
    assert all(place in covered for place, character in enumerate(text) if not character.isspace())
    assert spans == sorted(spans)


@pytest.mark.parametrize("count", range(7, 21))
def test_long_paragraphs_do_not_share_passages(count: int):
    paragraph = "One two three four five six seven eight nine. " * count
    text = "\n\n".join([paragraph.strip()] * 3)
    found = shown(text, passages(text, 100.0))
    assert not any("\n" in one for one in found)
    sizes = [one.count("One") for one in found]
    assert min(sizes) >= 3
    assert len(sizes) <= 3 * (count // 6 + 1)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(TEXTS)
def test_halves_are_the_passage_in_two(text: str):
    found = segments_of(text, 64)
    for span in passages(text, 40):
        parts = halves(text, found, span)
        assert "".join("".join(shown(text, parts)).split()) == "".join(text[span.start : span.end].split())
        assert len(parts) > 1 or len(text[span.start : span.end]) == 1


def test_sentences_of_both_languages():
    assert segments("Dr. Smith slept. He woke at 3.5 p.m. in May! Why?\n") == [
        "Dr. Smith slept. ", "He woke at 3.5 p.m. in May! ", "Why?\n",
    ]  # fmt: skip
    assert segments("他说：“真好！”然后走了。为什么？；好") == [
        "他说：“真好！”",
        "然后走了。",
        "为什么？",
        "；",
        "好",
    ]


def test_blocks_begin_segments():
    text = "# Title\n\nOne\ntwo. Three\n\n- first\n  more\n- second\n"
    text += "```\nx = 1\n\ny = 2\n```\n| a |\n第二章 猫\n喵。\n"
    found = segments_of(text, 256)
    assert [text[one.start : one.end] for one in found] == [
        "# Title\n\n", "One\ntwo. ", "Three\n\n", "- first\n  more\n", "- second\n", "```\n", "x = 1\n\n",
        "y = 2\n", "```\n", "| a |\n", "第二章 猫\n", "喵。\n",
    ]  # fmt: skip
    assert [found[place].boundary for place in (0, 1, 2, 3, 4)] == [
        TextBoundary.HEADING, TextBoundary.AFTER_HEADING, TextBoundary.SENTENCE, TextBoundary.PARAGRAPH,
        TextBoundary.LINE,
    ]  # fmt: skip


def test_a_passage_ends_at_the_strongest_boundary_that_leaves_it_large_enough():
    text = "aa bb cc dd. ee ff gg hh.\n\nii jj. kk ll mm nn oo.\n"
    assert shown(text, passages(text, 13)) == ["aa bb cc dd. ee ff gg hh.", "ii jj. kk ll mm nn oo."]


def test_a_heading_stays_with_what_follows():
    text = "One two three four five. Six seven eight nine.\n\n# Cats\nCats purr all day.\n"
    assert shown(text, passages(text, 19))[1] == "# Cats\nCats purr all day."


def test_passages_overlap_in_whole_sentences():
    text = "One two. Three four. Five six. Seven eight. Nine ten."
    assert shown(text, passages(text, 12.5, overlap=4)) == [
        "One two. Three four. Five six.", "Five six. Seven eight. Nine ten.",
    ]  # fmt: skip


def test_a_sentence_without_end_is_cut_at_words():
    spans = passages("word " * 200, 32)
    assert len(spans) > 5
    assert all(span.start % 5 == 0 for span in spans)


def test_a_long_text_takes_linear_time():
    text = "The cat sat on the mat. " * 20_000
    assert len(passages(text, 200)) > 500
