"""Which column of a data file holds what: by the header, by the caller's word, or by their order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from textmatch.errors import InvalidInput

_NOT_A_LETTER_OR_DIGIT = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Column:
    """What a recipe reads, and the names under which files are known to hold it."""

    name: str
    known_names: frozenset[str]


def _column(name: str, *known_names: str) -> Column:
    return Column(name, frozenset(known_names))


# Names are compared without case, spaces and punctuation: "Sentence_1" is "sentence1".
SENTENCE_1 = _column(
    "sentence 1", "sentence1", "text1", "question1", "premise", "query", "sentencea", "texta", "anchor"
)
SENTENCE_2 = _column(
    "sentence 2",
    "sentence2",
    "text2",
    "question2",
    "hypothesis",
    "document",
    "sentenceb",
    "textb",
    "positive",
)
LABEL = _column("label", "label", "goldlabel", "class", "isduplicate", "score", "similarity")
SCORE = _column("score", "score", "similarity", "label", "isduplicate")
ANCHOR = _column("anchor", "anchor", "query", "question", "sentence1", "premise")
POSITIVE = _column("positive", "positive", "answer", "document", "sentence2", "entailment")
NEGATIVE = _column("negative", "negative", "hardnegative", "sentence3", "contradiction")
TEXT = _column("text", "text", "sentence", "content")

PAIR = (SENTENCE_1, SENTENCE_2)


@dataclass(frozen=True)
class FileForm:
    """What a caller says of files whose form cannot be told from them.

    `has_header` None: a first row that names columns is a header. `columns` are the names, or the numbers
    from 1, of the columns to read, in the recipe's order; empty: they are found.
    """

    has_header: bool | None = None
    columns: tuple[str, ...] = ()


def is_header(cells: Sequence[str]) -> bool:
    """Whether a first row names columns: at least two of its cells are names that files are known to use."""
    known = frozenset[str]().union(
        *(one.known_names for one in (*PAIR, LABEL, SCORE, ANCHOR, POSITIVE, NEGATIVE))
    )
    return sum(_normal(cell) in known for cell in cells) > 1


def positions_in_header(
    header: Sequence[str], wanted: Sequence[Column], chosen: Sequence[str], place: str
) -> list[int]:
    """Where each wanted column is, from 0.

    Args:
        header: the names of a file's columns.
        wanted: the columns to find.
        chosen: names or numbers of the columns to take for them; empty to find them by their names.
        place: of the header, for messages.

    Raises:
        InvalidInput: one is not there.
    """
    if chosen:
        return [_chosen_position(header, name, place) for name in chosen]
    found = _by_name(header, wanted)
    if found is None and len(header) == len(wanted):
        return list(range(len(wanted)))
    if found is None:
        names = ", ".join(column.name for column in wanted)
        problem = f"names the columns {', '.join(header)}; say with --columns which of them are {names}"
        raise InvalidInput.of_field(place, problem)
    return found


def positions_by_number(chosen: Sequence[str]) -> list[int] | None:
    """Where the chosen columns are, from 0, if all are given by number."""
    return [int(one) - 1 for one in chosen] if all(one.isdecimal() and int(one) for one in chosen) else None


def _by_name(header: Sequence[str], wanted: Sequence[Column]) -> list[int] | None:
    names = [_normal(name) for name in header]
    found: list[int] = []
    for column in wanted:
        match = next(
            (at for at, name in enumerate(names) if name in column.known_names and at not in found), None
        )
        if match is None:
            return None
        found.append(match)
    return found


def _chosen_position(header: Sequence[str], name: str, place: str) -> int:
    if name in header:
        return list(header).index(name)
    if name.isdecimal() and 1 <= int(name) <= len(header):
        return int(name) - 1
    raise InvalidInput.of_field(place, f'there is no column "{name}"; the header names {", ".join(header)}')


def _normal(name: str) -> str:
    return _NOT_A_LETTER_OR_DIGIT.sub("", name).lower()
