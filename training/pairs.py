"""Sentence pairs with a similarity, one per line: `sentence 1 TAB sentence 2 TAB score`, strict UTF-8."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from textmatch.errors import InvalidInput

COLUMNS = ("sentence 1", "sentence 2", "score")
LOWEST_SCORE = 0.0
HIGHEST_SCORE = 1.0
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class ScoredPair:
    """Two sentences and how similar they are, 0..1."""

    first: str
    second: str
    score: float


def read_scored_pairs(path: Path) -> list[ScoredPair]:
    """All pairs of a file, in order.

    Raises:
        InvalidInput: the file is unreadable or empty, or a line is not UTF-8, is blank, has another number of
            columns than three, an empty sentence, or a score that is no number in 0..1; the message names
            file, line and column.
    """
    return [
        ScoredPair(first, second, _parse_score(score, f"{place} column 3"))
        for place, (first, second, score) in _read_rows(path)
    ]


def read_sentences(path: Path) -> list[str]:
    """The distinct sentences of a pair file, in order of appearance; its third column can be any label.

    Raises:
        InvalidInput: as in `read_scored_pairs`.
    """
    return list(dict.fromkeys(sentence for _, columns in _read_rows(path) for sentence in columns[:2]))


def _read_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Each line's place, for messages, and its three columns."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidInput.of_field(str(path), f"cannot be read: {error.strerror}") from error
    lines = content.removeprefix(_BYTE_ORDER_MARK).removesuffix(b"\n").split(b"\n")
    if lines == [b""]:
        raise InvalidInput.of_field(str(path), "is empty; it needs at least one pair")
    for number, line in enumerate(lines, start=1):
        place = f"{path} line {number}"
        yield place, _split_line(line, place)


def _split_line(line: bytes, place: str) -> list[str]:
    try:
        text = line.removesuffix(b"\r").decode("utf-8")
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {error.start}"
        raise InvalidInput.of_field(place, problem) from error
    needed = f"it needs {len(COLUMNS)} columns separated by TAB: {', '.join(COLUMNS)}"
    if not text.strip():
        raise InvalidInput.of_field(place, f"is blank; {needed}")
    columns = text.split("\t")
    if len(columns) != len(COLUMNS):
        raise InvalidInput.of_field(place, f"has {len(columns)} columns; {needed}")
    for number, sentence in enumerate(columns[:2], start=1):
        if not sentence.strip():
            raise InvalidInput.of_field(f"{place} column {number}", f"{COLUMNS[number - 1]} is empty")
    return columns


def _parse_score(text: str, place: str) -> float:
    try:
        score = float(text)
    except ValueError as error:
        raise InvalidInput.of_field(place, f'score "{text}" is not a number') from error
    # Written so that NaN, which compares false with everything, is refused too.
    if not LOWEST_SCORE <= score <= HIGHEST_SCORE:
        raise InvalidInput.of_field(place, f"score {text} is outside {LOWEST_SCORE:g}..{HIGHEST_SCORE:g}")
    return score
