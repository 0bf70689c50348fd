"""Rows of data files, in the forms in which people have them, as cells with their places.

    for first, second, score in read_cells(Path("pairs.csv"), (SENTENCE_1, SENTENCE_2, SCORE)): ...

Formats: TSV, CSV with any usual separator, JSON lines, a JSON array, Parquet, a folder in BEIR's layout and
plain text. A column is found by the `--columns` option, else by the names in the header, in English or
Chinese, else by its position. A choice that the caller may not expect is printed once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, Self

import pyarrow.parquet as pq
from typer import echo

from textmatch.errors import InvalidInput
from textmatch.io.csv_reader import Row, read_rows
from textmatch.io.line_reader import open_data_file, read_json_objects
from textmatch.io.qrels import read_judgements, read_queries
from textmatch.io.qrels import read_texts as read_corpus
from training.labels import is_label

_JSON_SUFFIXES = frozenset({".jsonl", ".ndjson", ".json"})
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_PARQUET_MARK = b"PAR1"
# First bytes of files that are not read, and what to do with them.
_REFUSED = (
    (b"PK\x03\x04", "is an Excel workbook or another ZIP file; save the sheet as CSV (UTF-8)"),
    (b"\xd0\xcf\x11\xe0", "is an old Excel workbook; save the sheet as CSV (UTF-8)"),
    (b"\x1f\x8b", "is compressed; unpack it with gunzip"),
)
_NOT_A_LETTER_OR_DIGIT = re.compile(r"[\W_]+")
_TAB = "\t"
_SEPARATORS = {_TAB: "TAB", ",": "comma", ";": "semicolon", "|": "vertical bar"}
# Rows of a table that are read in advance, to find its separator and header.
_SAMPLE_ROWS = 50
# A column of a table without a header holds classes if it has few values.
_MAX_CLASS_VALUES = 20
_ROWS_PER_CLASS_VALUE = 10


class MissingColumns(InvalidInput):
    """A file does not have the columns that are read."""


@dataclass(frozen=True)
class Column:
    """A column that a recipe reads, and the header names that identify it, the best first."""

    name: str
    header_names: tuple[str, ...]


def _column(name: str, header_names: str) -> Column:
    return Column(name, tuple(header_names.split()))


# Header names are compared without case, spaces and punctuation: "Sentence_1" is "sentence1".
SENTENCE_1 = _column(
    "sentence 1",
    "sentence1 text1 question1 sent1 question premise query sentencea texta questiona anchor q1 s1"
    " 句子1 文本1 问题1 问句1 语句1 句1 句子一 文本一 问题一 句子a 文本a 问题a"
    " 标准问题 标准问 前提 查询 原句 问题",
)
SENTENCE_2 = _column(
    "sentence 2",
    "sentence2 text2 question2 sent2 hypothesis document sentenceb textb questionb positive text passage"
    " q2 s2 句子2 文本2 问题2 问句2 语句2 句2 句子二 文本二 问题二 句子b 文本b 问题b"
    " 相似问题 相似问 扩展问 假设 文档 改写 answer 答案 回答",
)
_CLASS_NAMES = "label goldlabel class isduplicate duplicate target 标签 类别 标注 是否相似 是否相同 是否重复"
_SCORE_NAMES = "score similarity similarityscore relatednessscore 相似度 分数 得分 评分"
LABEL = _column("label", f"{_CLASS_NAMES} {_SCORE_NAMES}")
SCORE = _column("score", f"{_SCORE_NAMES} {_CLASS_NAMES}")
ANCHOR = _column(
    "anchor", "anchor query question sentence1 premise 锚点 查询 原句 问题 句子1 标准问题 标准问"
)
POSITIVE = _column(
    "positive", "positive pos answer document sentence2 entailment 正例 正样本 答案 相似句 句子2"
)
NEGATIVE = _column("negative", "negative neg hardnegative sentence3 contradiction 负例 负样本 难负例 句子3")
TEXT = _column("text", "text sentence content 文本 句子 内容 语句 正文")

PAIR = (SENTENCE_1, SENTENCE_2)
TRIPLE = (ANCHOR, POSITIVE, NEGATIVE)
_TEXT_NAMES = frozenset(name for column in (TEXT, *PAIR, *TRIPLE) for name in column.header_names)
_KNOWN_NAMES = _TEXT_NAMES | frozenset(LABEL.header_names)


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
        return cls(header, tuple(name.strip() for name in columns.split(",")) if columns else ())

    def of_width(self, width: int) -> FileFormat:
        """This format for files of which another number of columns is read, such as a dev file."""
        return self if len(self.columns) in (0, width) else FileFormat(self.has_header)


DETECTED = FileFormat()


@dataclass(frozen=True)
class Cell:
    """One cell; `place` names file, line and column."""

    text: str
    place: str


@dataclass(frozen=True)
class _Table:
    """A table of which the first rows were read: its separator, the rows, and those read in advance."""

    separator: str
    rows: Iterator[Row]
    sample: Sequence[Row]


def read_cells(
    path: Path, columns: Sequence[Column], file_format: FileFormat = DETECTED
) -> Iterator[list[Cell]]:
    """The cells of each row in the order of `columns`. Blank lines are skipped.

    Raises:
        InvalidInput: the file is unreadable or empty, its columns are not found, or a row is not UTF-8 or too
            long or short; messages name file, line and column.
    """
    chosen = file_format.columns
    if chosen and len(chosen) != len(columns):
        problem = f"{len(chosen)} are given; {len(columns)} are needed: {_names(columns)}"
        raise InvalidInput.of_field("columns", problem)
    records = read_records(path)
    if records is not None:
        for place, record in records:
            yield _record_cells(record, columns, chosen, place)
        return
    with open_data_file(path) as file:
        yield from _table_cells(file, path, columns, file_format)


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
            keys = file_format.columns or [key for key in record if _normalised(key) in _TEXT_NAMES]
            if not keys:
                _refuse_keys(record, place, "a text")
            yield _record_cells(record, [TEXT] * len(keys), keys, place)
        return
    with open_data_file(path) as file:
        yield from _sentence_cells(file, path, file_format)


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]] | None:
    """Place and content of each row of a file that names its columns in each row; None: it is a table.

    Raises:
        InvalidInput: the file is unreadable, empty or of a format that is not read.
    """
    if (folder := _beir_folder(path)) is not None:
        return _beir_records(path, folder)
    with open_data_file(path) as file:
        start = file.read(256)
    if not start:
        raise InvalidInput.of_field(str(path), "is empty; it needs at least one row")
    for mark, problem in _REFUSED:
        if start.startswith(mark):
            raise InvalidInput.of_field(str(path), problem)
    if start.startswith(_PARQUET_MARK):
        return _parquet_records(path)
    if start.startswith(_UTF_16_MARKS) or b"\x00" in start:
        raise InvalidInput.of_field(f"{path} line 1", "is UTF-16 or binary; save the file as UTF-8")
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if path.suffix.lower() in _JSON_SUFFIXES:
        is_one_value = text.startswith(b"[") or text.split(b"\n")[0].strip() == b"{"
        return _json_array(path) if is_one_value else _json_lines(path)
    return _json_lines(path) if text.startswith(b'{"') else None


def find_key(record: dict[str, Any], column: Column) -> str | None:
    """The key of a record that stands for a column; None if none does."""
    known = {_normalised(key): key for key in reversed(record)}
    return next((known[name] for name in column.header_names if name in known), None)


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with open_data_file(path) as file:
        yield from read_json_objects(file, path)


def _json_array(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The items of an array, or of the first array of an object such as {"version": 1, "data": [...]}."""
    try:
        items = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        problem = f"is not a JSON array: {error}; it must be one array of objects, or one object per line"
        raise InvalidInput.of_field(str(path), problem) from error
    if isinstance(items, dict):
        items = next((value for value in items.values() if isinstance(value, list)), [items])
    for number, item in enumerate(items, start=1):
        place = f"{path} item {number}"
        if not isinstance(item, dict):
            raise InvalidInput.of_field(place, "is not a JSON object")
        yield place, item


def _parquet_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for record in batch.to_pylist():
                    number += 1
                    yield f"{path} row {number}", record
    except (OSError, ValueError) as error:
        raise InvalidInput.of_field(str(path), f"is not a readable Parquet file: {error}") from error


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


def _beir_records(path: Path, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each judged pair of a query and a document, with its grade as the score."""
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
        by_name = [find_key(record, column) for column in columns]
        if None in by_name or len(set(by_name)) < len(columns):
            _refuse_keys(record, place, _names(columns))
        found = [key for key in by_name if key is not None]
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
    file: BinaryIO, path: Path, columns: Sequence[Column], file_format: FileFormat
) -> Iterator[list[Cell]]:
    chosen = file_format.columns
    numbers = [int(one) for one in chosen if one.isdecimal() and int(one)]
    are_numbers = len(numbers) == len(chosen)
    table = _read_table(file, path, max([len(columns), *numbers]))
    if not table.sample:
        raise InvalidInput.of_field(str(path), "has no row; it needs at least one")
    rows, first = table.rows, table.sample[0]
    has_header = file_format.has_header
    if has_header is None:
        has_header = not are_numbers or _is_header(table, path, columns, numbers)
    width = len(first.cells) if has_header or not chosen else 0
    if has_header:
        next(rows)
        positions = _positions_in_header(first.cells, columns, chosen, path, first.line_number)
        needed = f"the header has {width}"
    else:
        width = 0 if chosen else len(columns)
        positions = [number - 1 for number in numbers] or list(range(width))
        separator = _SEPARATORS[table.separator]
        needed = f"it needs {max(positions) + 1} columns separated by {separator}: {_names(columns)}"
    for row in rows:
        place = f"{path} line {row.line_number}"
        if len(row.cells) != width if width else len(row.cells) <= max(positions):
            hint = "" if chosen or len(row.cells) < len(columns) else "; choose them with --columns"
            raise MissingColumns.of_field(place, f"has {len(row.cells)} columns; {needed}{hint}")
        cells = _numbered_cells(row, path)
        yield [cells[position] for position in positions]


def _sentence_cells(file: BinaryIO, path: Path, file_format: FileFormat) -> Iterator[list[Cell]]:
    table = _read_table(file, path, least_columns=1)
    rows, sample = table.rows, table.sample
    if not sample:
        return
    first, chosen = sample[0].cells, file_format.columns
    has_header = file_format.has_header
    if has_header is None:
        names = [_normalised(cell) for cell in first]
        is_text_named = any(name in TEXT.header_names for name in names)
        is_named = is_text_named or sum(name in _KNOWN_NAMES for name in names) > 1
        has_header = is_named or not all(one.isdecimal() for one in chosen)
    if has_header:
        next(rows)
    if chosen:
        place = f"{path} line {sample[0].line_number}"
        positions = [_chosen_position(first, name, place) for name in chosen]
    elif has_header and (named_texts := [n for n, c in enumerate(first) if _normalised(c) in _TEXT_NAMES]):
        positions = named_texts
    else:
        positions = _text_positions(sample[1:] if has_header else sample)
    if not chosen and len(first) > len(positions):
        shown = ", ".join(str(position + 1) for position in positions)
        _say(path, f"columns {shown} of {len(first)} read as sentences")
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


def _read_table(file: BinaryIO, path: Path, least_columns: int) -> _Table:
    """Find the separator: that of the file's suffix, or one that gives all first rows as many columns."""
    default = "," if path.suffix.lower() == ".csv" else _TAB
    # Lines of text have commas and semicolons too.
    others = [one for one in _SEPARATORS if one != default] if least_columns > 1 or default == "," else []
    separator = default
    if not _fits(file, default, least_columns):
        found = (one for one in others if _fits(file, one, max(least_columns, 2)))
        separator = next(found, default)
    if separator != default:
        _say(path, f"columns are separated by {_SEPARATORS[separator]}")
    is_quoted = separator == _TAB and _has_quoted_column(file)
    if is_quoted:
        _say(path, "the quotes around its cells are left out")
    file.seek(0)
    rows = (
        row
        for row in read_rows(file, is_tsv=separator == _TAB and not is_quoted, separator=separator)
        if _is_row(row, path)
    )
    sample = list(islice(rows, _SAMPLE_ROWS))
    return _Table(separator, chain(sample, rows), sample)


def _fits(file: BinaryIO, separator: str, least_columns: int) -> bool:
    file.seek(0)
    rows = read_rows(file, is_tsv=separator == _TAB, separator=separator)
    sample = [row for row in islice(rows, _SAMPLE_ROWS) if row.cells]
    widths = {len(row.cells) for row in sample if not row.problem}
    return len(widths) == 1 and widths.pop() >= least_columns


def _has_quoted_column(file: BinaryIO) -> bool:
    """Whether all cells of a column of a TSV file are in quotes, as spreadsheets and pandas write them."""
    file.seek(0)
    sample = [row.cells for row in islice(read_rows(file, is_tsv=True), _SAMPLE_ROWS) if row.cells]
    columns = zip(*sample, strict=False) if len(sample) > 1 else ()
    return any(all(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in column) for column in columns)


def _is_row(row: Row, path: Path) -> bool:
    """False for a blank line, or one of separators only, as spreadsheets leave them.

    Raises:
        InvalidInput: the row cannot be read.
    """
    if row.problem:
        raise InvalidInput.of_field(f"{path} line {row.line_number}", row.problem)
    return bool("".join(row.cells).strip())


def _is_header(table: _Table, path: Path, columns: Sequence[Column], numbers: Sequence[int]) -> bool:
    """Whether a first row is a header: two cells are known names, or only its label is not a label."""
    first, *others = table.sample
    known = _KNOWN_NAMES.union(*(column.header_names for column in columns))
    if sum(_normalised(cell) in known for cell in first.cells) > 1:
        return True
    if columns[-1] not in (LABEL, SCORE) or not others:
        return False
    position = (numbers[-1] if numbers else len(columns)) - 1
    if any(len(row.cells) <= position for row in table.sample) or is_label(first.cells[position]):
        return False
    if not all(is_label(row.cells[position]) for row in others):
        return False
    _say(path, f"line {first.line_number} is taken as a header; --no-header reads it as a row")
    return True


def _positions_in_header(
    header: Sequence[str], columns: Sequence[Column], chosen: Sequence[str], path: Path, line: int
) -> list[int]:
    """The position of each column from 0: the `chosen` names or numbers, else found by name.

    In a header with as many columns as are needed, those that no name identifies are taken in their order.
    """
    place = f"{path} line {line}"
    if chosen:
        return [_chosen_position(header, name, place) for name in chosen]
    names = [_normalised(name) for name in header]
    found: list[int | None] = []
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
    _say(path, f"reads {', '.join(read_as)}; --columns chooses others")
    return positions


def _chosen_position(header: Sequence[str], name: str, place: str) -> int:
    if name in header:
        return list(header).index(name)
    if name.isdecimal() and 1 <= int(name) <= len(header):
        return int(name) - 1
    raise InvalidInput.of_field(place, f'there is no column "{name}"; the header has {", ".join(header)}')


def _numbered_cells(row: Row, path: Path) -> list[Cell]:
    return [
        Cell(text, f"{path} line {row.line_number} column {number}")
        for number, text in enumerate(row.cells, start=1)
    ]


@cache
def _say(path: Path, what: str) -> None:
    """Print how a file is read, once: a file is read several times in a run."""
    echo(f"{path}: {what}", err=True)


def _names(columns: Sequence[Column]) -> str:
    return ", ".join(column.name for column in columns)


def _normalised(name: str) -> str:
    return _NOT_A_LETTER_OR_DIGIT.sub("", name).lower()
