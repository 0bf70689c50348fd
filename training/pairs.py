"""What the recipes train on, read from data files: scored pairs, pairs with a class, triples, sentences."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from textmatch.errors import InvalidInput
from training.data_files import (
    ANCHOR,
    LABEL,
    NEGATIVE,
    PAIR,
    POSITIVE,
    SCORE,
    Cell,
    FileForm,
    read_cells,
    read_texts,
)

Score = TypeVar("Score", float, NDArray[np.float64])

AS_FOUND = FileForm()


@dataclass(frozen=True)
class ScoreRange:
    """The least and the greatest score that a file may hold."""

    lowest: float = 0.0
    highest: float = 1.0

    def share(self, score: Score) -> Score:
        """Where a score, or each of an array of them, lies: 0 at the low end, 1 at the high end."""
        return (score - self.lowest) / (self.highest - self.lowest)

    def at(self, share: float) -> float:
        """The score that lies there."""
        return self.lowest + share * (self.highest - self.lowest)


UNIT_RANGE = ScoreRange()


@dataclass(frozen=True)
class ScoredPair:
    """Two sentences and how similar they are, 0..1."""

    first: str
    second: str
    score: float


@dataclass(frozen=True)
class ClassPair:
    """Two sentences and the class of what is between them."""

    first: str
    second: str
    label: str


@dataclass(frozen=True)
class Triple:
    """A sentence, one that means the same, and one that looks alike but does not."""

    anchor: str
    positive: str
    negative: str


def read_scored_pairs(
    path: Path, form: FileForm = AS_FOUND, score_range: ScoreRange = UNIT_RANGE
) -> list[ScoredPair]:
    """All pairs of a file, in order, with their scores brought into 0..1.

    Raises:
        InvalidInput: the file is unreadable or empty, or a line is not UTF-8, is blank, lacks a column, has
            an empty sentence, or a score that is no number in the range; messages name file, line and column.
    """
    return [
        ScoredPair(
            _sentence(first, "sentence 1"), _sentence(second, "sentence 2"), _score(score, score_range)
        )
        for first, second, score in read_cells(path, (*PAIR, SCORE), form)
    ]


def read_class_pairs(path: Path, form: FileForm = AS_FOUND) -> list[ClassPair]:
    """All pairs of a file, in order, with their labels as they stand there.

    Raises:
        InvalidInput: as in `read_scored_pairs`; a label may be anything but empty.
    """
    return [
        ClassPair(
            _sentence(first, "sentence 1"), _sentence(second, "sentence 2"), _sentence(label, "label").strip()
        )
        for first, second, label in read_cells(path, (*PAIR, LABEL), form)
    ]


def read_triples(path: Path, form: FileForm = AS_FOUND) -> list[Triple]:
    """All triples of a file, in order.

    Raises:
        InvalidInput: as in `read_scored_pairs`.
    """
    return [
        Triple(_sentence(anchor, "anchor"), _sentence(positive, "positive"), _sentence(negative, "negative"))
        for anchor, positive, negative in read_cells(path, (ANCHOR, POSITIVE, NEGATIVE), form)
    ]


def read_sentences(path: Path) -> list[str]:
    """The distinct sentences of a file of sentences or of pairs, in order of appearance; labels are left out.

    Raises:
        InvalidInput: the file is unreadable, is not UTF-8 or holds no sentence.
    """
    sentences = list(dict.fromkeys(cell.text for cells in read_texts(path) for cell in cells))
    if not sentences:
        raise InvalidInput.of_field(str(path), "holds no sentence")
    return sentences


def _sentence(cell: Cell, name: str) -> str:
    if not cell.text.strip():
        raise InvalidInput.of_field(cell.place, f"{name} is empty")
    return cell.text


def _score(cell: Cell, score_range: ScoreRange) -> float:
    try:
        score = float(cell.text)
    except ValueError as error:
        raise InvalidInput.of_field(cell.place, f'score "{cell.text}" is not a number') from error
    # Written so that NaN, which compares false with everything, is refused too.
    if not score_range.lowest <= score <= score_range.highest:
        expected = f"{score_range.lowest:g}..{score_range.highest:g}"
        raise InvalidInput.of_field(cell.place, f"score {cell.text} is outside {expected}")
    return score_range.share(score)
