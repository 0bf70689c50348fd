"""Divides long texts into passages that a model reads as a whole.

    segments = segments_of("# Cats\n\nCats purr. Dogs bark.\n", max_tokens=256)
    [text[one.start : one.end] for one in segments]  ->  ["# Cats\n\n", "Cats purr. ", "Dogs bark.\n"]

A text is cut into segments first: headings, list items, lines of code and tables, and sentences, with Chinese
and English punctuation. `Packer` joins neighbours to passages as large as possible, and ends them at the
strongest boundary near the limit.

Only the model's own tokenizer knows how many tokens a passage has, and it runs in the encoder. The number is
estimated here. The encoder says how many tokens it has read, and whether that was all: what is too long is
divided again, and the estimates of the rest of the text are corrected (`DividedText`).
"""

from __future__ import annotations

import asyncio
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from math import ceil
from typing import NamedTuple

import numpy as np

from textmatch.documents import Passage
from textmatch.vectors import Embeddings

# Of UTF-8 at most 32 KB, the limit of a text to encode.
MAX_PASSAGE_CHARACTERS = 8_000

# Parts of a segment that is cut have at most this share of a passage.
_PART_SHARE = 4
# A passage that has this share of the limit may end at a stronger boundary than the last one.
_MIN_FILL = 0.25
# Longer paragraphs are not cut into equal parts. Parts differ by this share, for a better boundary.
_MAX_EQUAL_PARTS = 4
_UNEQUAL = 0.2

# About how many tokens a prompt and the special ones are.
_OVERHEAD_TOKENS = 5
# The share of a passage that is filled by estimates.
_TARGET_FILL = 0.93
# Passages that are embedded together. The first ones show how good the estimates are.
_FIRST_PASSAGES = 4
MAX_TAKEN = 16
# How estimates are corrected: by passages that are not much shorter than the limit.
_RELIABLE_SHARE = 0.3
_RATIO_SMOOTHING = 0.3
_RATIO_GROWTH = 1.05

# Chinese, Japanese and Korean, and other scripts without spaces.
_CHARACTERS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]"
)
_WORDS = re.compile(r"[A-Za-z]+")
_OTHERS = re.compile(
    r"[^\sA-Za-z\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]"
)
_LETTERS_PER_TOKEN = 6
_TOKENS_PER_CHARACTER = 0.75

_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_FENCE = re.compile(r"\s*(?:```|~~~)")
_HEADING = re.compile(r"\s{0,3}#{1,6}\s|\s*第[\d零〇一二三四五六七八九十百千两]{1,9}[章节篇部卷回条](?:\s|$)")
_LIST_ITEM = re.compile(
    r"\s*(?:[-*+•·]|\d{1,3}[.)、．]|[（(][\d一二三四五六七八九十]{1,3}[)）]|[一二三四五六七八九十]{1,3}、)\s*\S"
)
_TABLE_ROW = re.compile(r"\s*\|.*\|\s*$")
_CLOSING = "[\"'”’」』）)\\]】》]*"
_SENTENCE_END = re.compile(
    rf"[。！？]+{_CLOSING}\s*|[!?]+{_CLOSING}\s+|…+{_CLOSING}\s*|；\s*|(?P<full>\.+){_CLOSING}\s+"
)
_ABBREVIATION = re.compile(
    r"(?:\b(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|Inc|Ltd|Co|No|Fig|Eq|vs|etc|e\.g|i\.e|cf|al|pp|vol|ca|approx))$"
)
_ABBREVIATION_CHARACTERS = 10


class TextBoundary(IntEnum):
    """How good a place it is to begin a passage, from worst to best."""

    AFTER_HEADING = -2
    WITHIN = -1  # a sentence
    SENTENCE = 0
    LINE = 1
    PARAGRAPH = 2
    HEADING = 3


class Segment(NamedTuple):
    """`text[start:end]`, with the space after it. `boundary` is that at its start, `tokens` an estimate."""

    start: int
    end: int
    tokens: float
    boundary: TextBoundary


class Span(NamedTuple):
    """The characters `text[start:end]`."""

    start: int
    end: int


def estimated_tokens(text: str) -> float:
    """About how many tokens a text has. The tokens of most models differ by less than half of it."""
    words = _WORDS.findall(text)
    letters = sum(map(len, words))
    characters = 0 if text.isascii() else len(_CHARACTERS.findall(text))
    others = len(_OTHERS.findall(text))
    return (
        len(words) + (letters - len(words)) / _LETTERS_PER_TOKEN + characters * _TOKENS_PER_CHARACTER + others
    )


def segments_of(text: str, max_tokens: int) -> list[Segment]:
    """The segments of a text, in order; together they are the text.

    Args:
        max_tokens: of a passage. Segments that are longer than a part of it are cut at words or characters.
    """
    return [part for segment in _segments(text) for part in _parts(text, segment, max_tokens / _PART_SHARE)]


class Packer:
    """Takes passages from a text, one after the other. They cover all of it but spaces.

    Args:
        segments: of the text.
        overlap_tokens: the last sentences of a passage, of about so many tokens at most, begin the next one.
    """

    def __init__(self, text: str, segments: Sequence[Segment], overlap_tokens: float) -> None:
        self._text = text
        self._segments = segments
        self._overlap_tokens = overlap_tokens
        self._begin = self._next = 0

    def take(self, max_tokens: float) -> Span | None:
        """The next passage, of about so many tokens at most; None at the end of the text."""
        while self._next < len(self._segments):
            self._begin = begin = self._overlap_begin()
            end, ends = self._next, list[tuple[int, float]]()
            tokens = sum(one.tokens for one in self._segments[begin:end])
            start = self._segments[begin].start
            while end < len(self._segments):
                segment = self._segments[end]
                is_full = tokens + segment.tokens > max_tokens or segment.end - start > MAX_PASSAGE_CHARACTERS
                if end > self._next and is_full:
                    end = self._best_end(ends, max_tokens)
                    break
                tokens += segment.tokens
                end += 1
                ends.append((end, tokens))
            self._next = end
            if span := _trimmed(self._text, start, self._segments[end - 1].end):
                return span
        return None

    def _best_end(self, ends: Sequence[tuple[int, float]], max_tokens: float) -> int:
        """The last of the strongest boundaries that leave a passage of enough tokens.

        A paragraph that is cut is cut into equal parts. Otherwise its last part would be short, and share a
        passage with the begin of the next paragraph, which would be cut too, and so on.
        """
        enough = [end for end, tokens in ends if tokens >= _MIN_FILL * max_tokens] or [ends[-1][0]]
        best = max(enough, key=lambda end: (self._segments[end].boundary, end))
        left_tokens = self._tokens_left(ends[-1][0], _MAX_EQUAL_PARTS * max_tokens)
        if left_tokens is None or self._segments[best].boundary >= TextBoundary.PARAGRAPH:
            return best
        whole = ends[-1][1] + left_tokens
        wanted = whole / ceil(whole / max_tokens)
        near = [
            (self._segments[end].boundary, -abs(tokens - wanted), end)
            for end, tokens in ends
            if abs(tokens - wanted) <= _UNEQUAL * wanted
        ]
        return max(near)[-1] if near else best

    def _tokens_left(self, begin: int, most: float) -> float | None:
        """The tokens from a segment to the end of its paragraph; None if there are more than `most`."""
        tokens = 0.0
        for place in range(begin, len(self._segments)):
            if self._segments[place].boundary >= TextBoundary.PARAGRAPH:
                break
            tokens += self._segments[place].tokens
            if tokens > most:
                return None
        return tokens

    def _overlap_begin(self) -> int:
        """The segment with which the next passage begins."""
        begin, tokens = self._next, 0.0
        if not begin or self._segments[begin].boundary is TextBoundary.HEADING:
            return begin
        # Each passage begins after the one before it.
        for place in range(self._next - 1, self._begin, -1):
            tokens += self._segments[place].tokens
            if tokens > self._overlap_tokens:
                break
            if self._segments[place].boundary >= TextBoundary.SENTENCE:
                begin = place
        return begin


def halves(text: str, segments: Sequence[Segment], span: Span) -> list[Span]:
    """A passage in two, at the strongest boundary near its middle; itself if it has one character."""
    middle, quarter = (span.start + span.end) // 2, (span.end - span.start) // 4
    first = bisect_right(segments, middle - quarter, key=lambda one: one.start)
    last = bisect_right(segments, middle + quarter, key=lambda one: one.start)
    inside = [one for one in segments[first:last] if span.start < one.start < span.end]
    if inside:
        best = max(inside, key=lambda one: (one.boundary, -abs(one.start - middle)))
        cut = best.start
    else:
        cut = _last_space(text, max(span.start + 1, middle - quarter), middle)
    parts = [_trimmed(text, span.start, cut), _trimmed(text, cut, span.end)]
    return [part for part in parts if part] if span.start < cut < span.end else [span]


class EncodedPassage(NamedTuple):
    """The (dimension,) embedding of a passage, and how many tokens of it the model has read."""

    row: Embeddings
    token_count: int
    is_truncated: bool


@dataclass(frozen=True)
class EmbeddedPassages:
    """The passages of a text that has several, with their (count, dimension) embeddings."""

    passages: tuple[Passage, ...]
    embeddings: Embeddings


@dataclass
class DividedText:
    """A long text while its passages are embedded.

    Attributes:
        max_tokens: of a passage, in tokens of the model.
        ratio: tokens of the model over estimated ones.
        divided: passages that were too long, in parts.
    """

    text: str
    max_tokens: int
    segments: list[Segment]
    packer: Packer
    ratio: float = 1.0
    divided: list[Span] = field(default_factory=list)
    rows: dict[Span, Embeddings] = field(default_factory=dict)
    is_truncated: bool = False

    @classmethod
    async def of(cls, text: str, max_tokens: int, overlap_tokens: int) -> DividedText:
        """Finding the segments of a large text takes a second, in which other work goes on."""
        segments = await asyncio.to_thread(segments_of, text, max_tokens)
        return cls(text, max_tokens, segments, Packer(text, segments, overlap_tokens))

    def take(self) -> list[Span]:
        """The next passages to embed, up to `MAX_TAKEN`, the first time only some; none at the end.

        How a text is divided depends on nothing else: a repeated write has the same passages. Therefore all
        that were taken must have been put, in their order, before the next ones are taken.
        """
        count = MAX_TAKEN if self.rows else _FIRST_PASSAGES
        taken = [self.divided.pop() for _ in range(min(count, len(self.divided)))]
        wanted_tokens = (self.max_tokens - _OVERHEAD_TOKENS) / self.ratio * _TARGET_FILL
        while len(taken) < count and (span := self.packer.take(wanted_tokens)):
            taken.append(span)
        return taken

    def put(self, span: Span, encoded: EncodedPassage) -> None:
        """Keep the embedding of a passage, or divide it if it has too many tokens."""
        row, token_count, is_truncated = encoded
        estimate = estimated_tokens(self.text[span.start : span.end])
        measured = max(token_count - _OVERHEAD_TOKENS, 1) / max(estimate, 1.0)
        if is_truncated or token_count > self.max_tokens:
            # What was not read is not counted.
            self.ratio = max(self.ratio, measured) * _RATIO_GROWTH
            parts = halves(self.text, self.segments, span)
            if parts != [span]:
                self.divided += reversed(parts)
                return
            self.is_truncated = self.is_truncated or is_truncated
        elif token_count >= _RELIABLE_SHARE * self.max_tokens:
            self.ratio += (measured - self.ratio) * _RATIO_SMOOTHING
        self.rows[span] = row

    def embedded(self) -> EmbeddedPassages:
        """All passages, in the order of the text."""
        spans = sorted(self.rows)
        passages = tuple(Passage(number, *span) for number, span in enumerate(spans))
        return EmbeddedPassages(passages, np.stack([self.rows[span] for span in spans]))


def _segments(text: str) -> Iterator[Segment]:
    blocks = _blocks(text)
    for position, (start, boundary, is_prose) in enumerate(blocks):
        end = blocks[position + 1][0] if position + 1 < len(blocks) else len(text)
        for cut, following in _sentence_ends(text, start, end) if is_prose else ():
            yield _segment(text, start, cut, boundary)
            start, boundary = cut, following
        yield _segment(text, start, end, boundary)


def _blocks(text: str) -> list[tuple[int, TextBoundary, bool]]:
    """The start of each block, its boundary, and whether it has sentences."""
    blocks: list[tuple[int, TextBoundary, bool]] = []
    boundary, is_code, is_open = TextBoundary.PARAGRAPH, False, False
    for match in _LINE.finditer(text):
        line = match.group()
        if not line.strip():
            is_open = False
            if boundary is not TextBoundary.AFTER_HEADING:
                boundary = TextBoundary.PARAGRAPH
            continue
        is_fence = _FENCE.match(line) is not None
        is_row = is_code or is_fence or _TABLE_ROW.match(line) is not None
        is_heading = not is_row and _HEADING.match(line) is not None
        is_item = not is_row and not is_heading and _LIST_ITEM.match(line) is not None
        if is_heading or is_row or is_item or not is_open:
            own = TextBoundary.HEADING if is_heading else boundary
            # Spaces before the first block belong to it.
            blocks.append((match.start() if blocks else 0, own, not is_row and not is_heading))
        boundary = TextBoundary.AFTER_HEADING if is_heading else TextBoundary.LINE
        is_open = not is_row and not is_heading
        is_code ^= is_fence
    return blocks


def _sentence_ends(text: str, start: int, end: int) -> Iterator[tuple[int, TextBoundary]]:
    """Where sentences of a block begin, but the first one, and the boundary there."""
    for match in _SENTENCE_END.finditer(text, start, end):
        if match.end() >= end:
            return
        if match["full"] == ".":
            before = text[max(start, match.start() - _ABBREVIATION_CHARACTERS) : match.start()]
            if text[match.end()].islower() or _ABBREVIATION.search(before):
                continue
        yield match.end(), TextBoundary.LINE if "\n" in match.group() else TextBoundary.SENTENCE


def _segment(text: str, start: int, end: int, boundary: TextBoundary) -> Segment:
    return Segment(start, end, estimated_tokens(text[start:end]), boundary)


def _parts(text: str, segment: Segment, max_tokens: float) -> Iterator[Segment]:
    """The segment, or parts of about the same size if it is too long."""
    start, end, tokens, boundary = segment
    max_characters = MAX_PASSAGE_CHARACTERS / _PART_SHARE
    count = ceil(max(tokens / max_tokens, (end - start) / max_characters))
    step = (end - start) / max(count, 1)
    for number in range(1, count):
        middle = segment.start + int(number * step)
        cut = _last_space(text, max(start + 1, middle - int(step / 2)), middle)
        if start < cut < end:
            yield _segment(text, start, cut, boundary)
            start, boundary = cut, TextBoundary.WITHIN
    yield _segment(text, start, end, boundary) if start > segment.start else segment


def _last_space(text: str, start: int, end: int) -> int:
    """The place after the last space between two places; `end` if there is none."""
    return next((place for place in range(end, start - 1, -1) if text[place - 1].isspace()), end)


def _trimmed(text: str, start: int, end: int) -> Span | None:
    """The characters without spaces around them; None if there are only spaces."""
    content = text[start:end]
    left = len(content) - len(content.lstrip())
    content = content.strip()
    return Span(start + left, start + left + len(content)) if content else None
