"""Rows of data files, in the forms in which people have them, as cells with their places.

    for first, second, score in read_cells(Path("pairs.csv"), (SENTENCE_1, SENTENCE_2, SCORE)): ...

Formats: TSV, CSV with any usual separator, JSON lines, a JSON array, Parquet, a folder in BEIR's layout and
plain text. A column is found by the `--columns` option, else by the names in the header, in English or
Chinese, else by its position. A choice that the caller may not expect is printed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, Self

from textmatch.errors import InvalidInput
from textmatch.io.columns import (
    ANY_LABEL,
    KNOWN_NAMES,
    LABEL,
    SCORE,
    TEXT,
    TEXT_NAMES,
    Column,
    is_label,
    normalised,
    position_of,
    split_names,
)
from textmatch.io.csv_reader import Row
from textmatch.io.file_format import Layout, detect_layout, say
from textmatch.io.line_reader import file_name, open_data_file, peek
from textmatch.io.qrels import read_judgements, read_queries
from textmatch.io.qrels import read_texts as read_corpus
from textmatch.io.record_reader import read_objects

# Rows of a table that are read in advance, to find its header.
_SAMPLE_ROWS = 50
_MAX_COLUMNS = 1 << 20
# A column of a table without a header holds classes if it has few values.
_MAX_CLASS_VALUES = 20
_ROWS_PER_CLASS_VALUE = 10


class MissingColumns(InvalidInput):
    """A file does not have the columns that are read."""


@dataclass(frozen=True)
class FileFormat:
    """The layout of data files, as the options describe it.

    `has_header` None: the header is detected. `columns` are the names, or the numbers from 1, of the columns
    to read, in the recipe's order; empty: they are found.
    """

    has_header: bool | None = None
    columns: tuple[str, ...] = ()

    @classmethod
    def of_options(cls, header: bool | None, columns: str) -> Self:
        """The format that `--header` and `--columns`, a list separated by commas, describe."""
        return cls(header, split_names(columns))

    def of_width(self, width: int) -> FileFormat:
        """This format for files of which another number of columns is read, such as a dev file."""
        return self if len(self.columns) in (0, width) else FileFormat(self.has_header)


DETECTED = FileFormat()


@dataclass(frozen=True)
class Cell:
    """One cell; `place` names file, line and column."""

    text: str
    place: str


def read_cells(
    path: Path, columns: Sequence[Column], file_format: FileFormat = DETECTED
) -> Iterator[list[Cell]]:
    """The cells of each row in the order of `columns`; - is stdin. Blank lines are skipped.

    Optional columns are the last ones. Rows of a file without them have no cells for them.

    Raises:
        InvalidInput: the file is unreadable or empty, its columns are not found, or a row is not UTF-8 or too
            long or short; messages name file, line and column.
    """
    chosen = file_format.columns
    needed = [column for column in columns if not column.is_optional]
    if chosen and not len(needed) <= len(chosen) <= len(columns):
        problem = f"{len(chosen)} are given; {len(needed)} are needed: {_names(needed)}"
        raise InvalidInput.of_field("columns", problem)
    if chosen:
        columns = columns[: len(chosen)]
    if (records := _beir_records(path)) is not None:
        yield from (_record_cells(record, columns, chosen, place) for place, record in records)
        return
    with open_data_file(path) as file:
        numbers = [int(one) for one in chosen if one.isdecimal() and int(one)]
        layout = _layout(file, path, max([len(needed), *numbers]))
        if layout.is_table:
            yield from _table_cells(layout, file, path, columns, file_format)
        else:
            for place, record in read_objects(file, layout.format, path):
                yield _record_cells(record, columns, chosen, place)


def read_sentence_cells(path: Path, file_format: FileFormat = DETECTED) -> Iterator[list[Cell]]:
    """The texts of each row of a file of sentences, pairs or triples, without labels, numbers and ids.

    Text columns are those of `--columns`, else those with such names in the header or as JSON keys. Without
    names they are the columns that have neither numbers nor a few values only.

    Raises:
        InvalidInput: as in `read_cells`.
    """
    records = read_records(path)
    if records is not None:
        for place, record in records:
            keys = file_format.columns or [key for key in record if normalised(key) in TEXT_NAMES]
            if not keys:
                _refuse_keys(record, place, "a text")
            yield _record_cells(record, [TEXT] * len(keys), keys, place)
        return
    with open_data_file(path) as file:
        yield from _sentence_cells(_layout(file, path, least_columns=1), file, path, file_format)


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]] | None:
    """Place and content of each row of a file that names its columns in each row; None: it is a table.

    Raises:
        InvalidInput: the file is unreadable, empty or of a format that is not read.
    """
    if (records := _beir_records(path)) is not None:
        return records
    with open_data_file(path) as file:
        layout = _layout(file, path, least_columns=1)
    return None if layout.is_table else _records_of_file(path, layout)


def _records_of_file(path: Path, layout: Layout) -> Iterator[tuple[str, dict[str, Any]]]:
    with open_data_file(path) as file:
        yield from read_objects(file, layout.format, path)


def _layout(file: BinaryIO, path: Path, least_columns: int) -> Layout:
    if not peek(file, 1):
        raise InvalidInput.of_field(file_name(path), "is empty; it needs at least one row")
    layout = detect_layout(file, str(path), least_columns=least_columns)
    for note in layout.notes:
        say(path, note)
    return layout


def find_key(record: dict[str, Any], column: Column) -> str | None:
    """The key of a record that stands for a column; None if none does."""
    known = {normalised(key): key for key in reversed(record)}
    return next((known[name] for name in column.header_names if name in known), None)


def _beir_folder(path: Path) -> Path | None:
    """The folder with corpus.jsonl and queries.jsonl that a path stands for: itself, or that of its qrels."""
    folders = [path] if path.is_dir() else [path.parent, path.parent.parent] if path.suffix == ".tsv" else []
    for folder in folders:
        if (folder / "corpus.jsonl").is_file() and (folder / "queries.jsonl").is_file():
            return folder
    if path.is_dir():
        problem = "is a folder; only folders with corpus.jsonl, queries.jsonl and qrels are read"
        raise InvalidInput.of_field(str(path), problem)
    return None


def _beir_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]] | None:
    """Each judged pair of a query and a document, with its grade as the score; None if it is no such set."""
    folder = _beir_folder(path)
    return None if folder is None else _judged_pairs(path, folder)


def _judged_pairs(path: Path, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    queries, documents = read_queries(folder), read_corpus(folder / "corpus.jsonl")
    qrels = path if path.is_file() else _only_qrels(folder)
    for query, grades in read_judgements(folder, queries, documents, qrels).items():
        for document, grade in grades.items():
            place = f'{qrels} query "{query}" document "{document}"'
            yield place, {"query": queries[query], "document": documents[document], "score": grade}


def _only_qrels(folder: Path) -> Path | None:
    found = sorted((folder / "qrels").glob("*.tsv"))
    if len(found) > 1:
        problem = f"has {', '.join(one.name for one in found)} in qrels; give the path of one of them"
        raise InvalidInput.of_field(str(folder), problem)
    return found[0] if found else None


def _record_cells(
    record: dict[str, Any], columns: Sequence[Column], chosen: Sequence[str], place: str
) -> list[Cell]:
    keys = list(record)
    if chosen:
        found = [keys[_chosen_position(keys, name, place)] for name in chosen]
    else:
        by_name = {column: find_key(record, column) for column in columns}
        found = [key for key in by_name.values() if key is not None]
        is_lacking = any(key is None and not column.is_optional for column, key in by_name.items())
        if is_lacking or len(set(found)) < len(found):
            _refuse_keys(record, place, _names(columns))
    cells = []
    for key in found:
        value, cell_place = record[key], f'{place} key "{key}"'
        if isinstance(value, list):
            problem = "is a list; lists of texts are for simcse --hard-negatives and distill --candidates"
            raise InvalidInput.of_field(cell_place, problem)
        if not isinstance(value, str | int | float):
            raise InvalidInput.of_field(cell_place, "must be text or a number")
        cells.append(Cell(str(value).lower() if isinstance(value, bool) else str(value), cell_place))
    return cells


def _refuse_keys(record: dict[str, Any], place: str, needed: str) -> NoReturn:
    problem = f"has the keys {', '.join(record)}; use --columns to choose {needed}"
    raise MissingColumns.of_field(place, problem)


def _table_cells(
    layout: Layout, file: BinaryIO, path: Path, columns: Sequence[Column], file_format: FileFormat
) -> Iterator[list[Cell]]:
    chosen = file_format.columns
    numbers = [int(one) for one in chosen if one.isdecimal() and int(one)]
    are_numbers = len(numbers) == len(chosen)
    rows, sample = _read_table(layout, file, path)
    if not sample:
        raise InvalidInput.of_field(file_name(path), "has no row; it needs at least one")
    first, has_header = sample[0], file_format.has_header
    if has_header is None:
        has_header = not are_numbers or _is_header(sample, path, columns, numbers)
    if has_header:
        next(rows)
        positions = _positions_in_header(first.cells, columns, chosen, path, first.line_number)
        widths = range(len(first.cells), len(first.cells) + 1)
        needed = f"the header has {len(first.cells)}"
    else:
        least = sum(not column.is_optional for column in columns)
        positions = [number - 1 for number in numbers] or list(range(len(columns)))
        widths = range(max(positions) + 1, _MAX_COLUMNS) if chosen else range(least, len(columns) + 1)
        shown = str(widths[0]) if chosen or len(widths) == 1 else f"{widths[0]} or {widths[-1]}"
        needed = f"it needs {shown} columns separated by {layout.separator_name}: {_names(columns)}"
    for row in rows:
        if len(row.cells) not in widths:
            place = f"{file_name(path)} line {row.line_number}"
            hint = "" if chosen or len(row.cells) < len(columns) else "; choose them with --columns"
            raise MissingColumns.of_field(place, f"has {len(row.cells)} columns; {needed}{hint}")
        cells = _numbered_cells(row, path)
        yield [cells[position] for position in positions if position < len(cells)]


def _sentence_cells(
    layout: Layout, file: BinaryIO, path: Path, file_format: FileFormat
) -> Iterator[list[Cell]]:
    rows, sample = _read_table(layout, file, path)
    if not sample:
        return
    first, chosen = sample[0].cells, file_format.columns
    has_header = file_format.has_header
    if has_header is None:
        names = [normalised(cell) for cell in first]
        is_text_named = any(name in TEXT.header_names for name in names)
        is_named = is_text_named or sum(name in KNOWN_NAMES for name in names) > 1
        has_header = is_named or not all(one.isdecimal() for one in chosen)
    if has_header:
        next(rows)
    if chosen:
        place = f"{file_name(path)} line {sample[0].line_number}"
        positions = [_chosen_position(first, name, place) for name in chosen]
    elif has_header and (named_texts := [n for n, c in enumerate(first) if normalised(c) in TEXT_NAMES]):
        positions = named_texts
    else:
        positions = _text_positions(sample[1:] if has_header else sample)
    if not chosen and len(first) > len(positions):
        shown = ", ".join(str(position + 1) for position in positions)
        say(path, f"columns {shown} of {len(first)} read as sentences")
    for row in rows:
        cells = _numbered_cells(row, path)
        yield [cells[position] for position in positions if position < len(cells)]


def _text_positions(sample: Sequence[Row]) -> list[int]:
    """The columns that have neither numbers nor a few values only; the first if there is no other."""
    width = max((len(row.cells) for row in sample), default=1)
    found = []
    for position in range(width):
        values = [row.cells[position] for row in sample if position < len(row.cells)]
        distinct = len(set(values))
        are_classes = distinct <= min(_MAX_CLASS_VALUES, len(values) // _ROWS_PER_CLASS_VALUE)
        if not all(map(is_label, values)) and not are_classes:
            found.append(position)
    return found or [0]


def _read_table(layout: Layout, file: BinaryIO, path: Path) -> tuple[Iterator[Row], Sequence[Row]]:
    """All rows of a table, and its first ones."""
    rows = (row for row in layout.read_rows(file) if _is_row(row, path))
    sample = list(islice(rows, _SAMPLE_ROWS))
    return chain(sample, rows), sample


def _is_row(row: Row, path: Path) -> bool:
    """False for a blank line, or one of separators only, as spreadsheets leave them.

    Raises:
        InvalidInput: the row cannot be read.
    """
    if row.problem:
        raise InvalidInput.of_field(f"{file_name(path)} line {row.line_number}", row.problem)
    return not row.is_blank


def _is_header(sample: Sequence[Row], path: Path, columns: Sequence[Column], numbers: Sequence[int]) -> bool:
    """Whether a first row is a header: two cells are different known names, or only its label is none."""
    first, *others = sample
    known = KNOWN_NAMES.union(*(column.header_names for column in columns))
    if len(known.intersection(map(normalised, first.cells))) > 1:
        return True
    if columns[-1] not in (LABEL, SCORE, ANY_LABEL) or not others:
        return False
    position = (numbers[-1] if numbers else len(columns)) - 1
    if any(len(row.cells) <= position for row in sample) or is_label(first.cells[position]):
        return False
    if not all(is_label(row.cells[position]) for row in others):
        return False
    say(path, f"line {first.line_number} is taken as a header; --no-header reads it as a row")
    return True


def _positions_in_header(
    header: Sequence[str], columns: Sequence[Column], chosen: Sequence[str], path: Path, line: int
) -> list[int]:
    """The position of each column from 0: the `chosen` names or numbers, else found by name.

    In a header with as many columns as are needed, those that no name identifies are taken in their order.
    """
    place = f"{file_name(path)} line {line}"
    if chosen:
        return [_chosen_position(header, name, place) for name in chosen]
    names = [normalised(name) for name in header]
    found: list[int | None] = []
    if len(header) != len(columns):
        columns = [
            one for one in columns if not one.is_optional or not set(names).isdisjoint(one.header_names)
        ]
    for column in columns:
        matches = (names.index(name) for name in column.header_names if name in names)
        found.append(next((position for position in matches if position not in found), None))
    if None not in found:
        return [position for position in found if position is not None]
    if len(header) != len(columns):
        problem = f"has the columns {', '.join(header)}; use --columns to choose {_names(columns)}"
        raise MissingColumns.of_field(place, problem)
    rest = iter(position for position in range(len(header)) if position not in found)
    positions = [next(rest) if position is None else position for position in found]
    read_as = (f'"{header[p]}" as {c.name}' for p, c in zip(positions, columns, strict=True))
    say(path, f"reads {', '.join(read_as)}; --columns chooses others")
    return positions


def _chosen_position(header: Sequence[str], name: str, place: str) -> int:
    position = position_of(header, name)
    if position is None:
        problem = f'there is no column "{name}"; the header has {", ".join(header)}'
        raise InvalidInput.of_field(place, problem)
    return position


def _numbered_cells(row: Row, path: Path) -> list[Cell]:
    return [
        Cell(text, f"{file_name(path)} line {row.line_number} column {number}")
        for number, text in enumerate(row.cells, start=1)
    ]


def _names(columns: Sequence[Column]) -> str:
    return ", ".join(column.name for column in columns)
