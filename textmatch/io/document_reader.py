"""Documents in JSON, Parquet, CSV and TSV files: one record each, with its place and its problem, if any.

    layout = detect_layout(file, "faq.csv")
    for record in read_records(file, layout, "faq.csv"):
        record.fields  # {"id": "1", "text": "How …", "attributes": {}, "version": None}

Columns are found by their names in English or Chinese, `_id` of BEIR included, or by the option `--columns`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from textmatch.errors import InvalidInput
from textmatch.io.column_types import ALL_COLUMNS, ColumnGuess, ColumnType, convert
from textmatch.io.columns import BODY, ID, normalised, position_of, split_names
from textmatch.io.csv_reader import Row
from textmatch.io.file_format import Format, Layout, say
from textmatch.io.line_reader import START, STDIN, Position, Record, UnreadableFile
from textmatch.io.qrels import text_with_title
from textmatch.io.record_reader import read_json, read_parquet

_REQUIRED_COLUMNS = ("id", "text")
_VERSION_COLUMN = "version"
_NOT_ATTRIBUTES = (*_REQUIRED_COLUMNS, _VERSION_COLUMN)
# The keys of a document in the layout of BEIR.
_BEIR_FILE = "corpus.jsonl"
_BEIR_ID, _BEIR_TITLE, _BEIR_METADATA = "_id", "title", "metadata"

Types = Mapping[str, ColumnType]


def file_of(name: str) -> str:
    """The file of documents that a name stands for: a folder in BEIR's layout has its own.

    Raises:
        UnreadableFile: it is another folder.
    """
    folder = Path(name)
    if name == STDIN or not folder.is_dir():
        return name
    if not (folder / _BEIR_FILE).is_file():
        raise UnreadableFile.of_field(name, f"is a folder; only folders with {_BEIR_FILE} are read")
    return str(folder / _BEIR_FILE)


def parse_columns(text: str) -> tuple[str, ...]:
    """Parse `ID,TEXT`: the columns of id and text, by name or by number from 1; "": none are given.

    Raises:
        InvalidInput: there are not two.
    """
    columns = split_names(text)
    if len(columns) not in (0, len(_REQUIRED_COLUMNS)) or len(set(columns)) < len(columns):
        raise InvalidInput.of_field(
            "columns", f'"{text}" must be two columns: that of the id, that of the text'
        )
    return columns


def read_records(
    file: BinaryIO,
    layout: Layout,
    name: str,
    start: Position = START,
    types: Types | None = None,
    columns: Sequence[str] = (),
) -> Iterator[Record]:
    """All documents of a file from a position on; blank lines are skipped.

    Args:
        file: opened for reading.
        layout: its format.
        name: for messages.
        start: the end of the last record that was read.
        types: of the columns of CSV and TSV; those without a type are text.
        columns: those of id and text, by name or by number from 1; found by their names if empty.

    Raises:
        UnreadableFile: a CSV or TSV file has no usable header.
    """
    if layout.is_table:
        return _read_table(file, layout, name, start, types or {}, columns)
    records = (read_parquet if layout.format is Format.PARQUET else read_json)(file, start)
    return _documents_of_objects(records, columns, is_foreign=layout.format is Format.PARQUET)


def check_types(types: Types) -> None:
    """Check the types that a user gives.

    Raises:
        InvalidInput: a type is given for a column that is not an attribute.
    """
    for column in _NOT_ATTRIBUTES:
        if column in types:
            raise InvalidInput.of_field("types", f"the column {column} is not an attribute and has no type")


def infer_types(
    file: BinaryIO, layout: Layout, name: str, given: Types, columns: Sequence[str] = ()
) -> tuple[Types, str]:
    """The types of the columns of a CSV or TSV file, and a line about them for people; "" if there is none.

    All rows are read, so that no later row contradicts. A pipe cannot be read twice and is not read: its
    columns are text.

    Args:
        file: a table.
        layout: its format.
        name: for messages.
        given: types that are known; `ALL_COLUMNS` stands for the columns that it does not name.
        columns: as in `read_records`.

    Raises:
        UnreadableFile: the header cannot be used, or lacks a column that has a type.
    """
    if ALL_COLUMNS in given:
        return given, ""
    if not file.seekable():
        return given, ""
    rows = layout.read_rows(file)
    header = _header(next(rows, None), name, given, columns)
    guesses = {
        position: ColumnGuess()
        for position, column in enumerate(header)
        if column not in _NOT_ATTRIBUTES and column not in given
    }
    for row in rows:
        if not row.problem and len(row.cells) == len(header):
            for position, guess in guesses.items():
                guess.add(row.cells[position], row.line_number)
    file.seek(0)
    inferred = {header[position]: guess.column_type for position, guess in guesses.items()}
    notes = [_note(header[position], guess) for position, guess in guesses.items()]
    return {**inferred, **given}, ", ".join(filter(None, notes))


def _note(column: str, guess: ColumnGuess) -> str:
    if guess.column_type is not ColumnType.STRING:
        return f"{column} is {guess.column_type}"
    if guess.misfit is None:
        return ""
    line_number, cell = guess.misfit
    return f"{column} is string because of {cell!r:.40} in line {line_number}"


def _documents_of_objects(
    records: Iterable[Record], columns: Sequence[str], *, is_foreign: bool
) -> Iterator[Record]:
    """Records whose fields are those of a document.

    Every other key is an attribute if `columns` are given, or `is_foreign` for a file with columns. An object
    with a wrong key is left to the check of documents.
    """
    for record in records:
        fields = record.fields
        if record.problem or not isinstance(fields, dict):
            yield record
            continue
        try:
            if columns or is_foreign:
                fields = _document_of_columns(fields, columns)
            elif "id" not in fields and _BEIR_ID in fields:
                fields = _document_of_beir(fields)
        except InvalidInput as error:
            yield replace(record, fields=None, problem=error.violations[0].description)
        else:
            yield replace(record, fields=fields)


def _document_of_columns(fields: dict[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    keys = list(fields)
    positions = _find_columns(keys, columns)
    if None in positions:
        raise InvalidInput.of_field("columns", f"has the keys {', '.join(keys)}; choose them with --columns")
    found = [keys[position] for position in positions if position is not None]
    rest = {key: value for key, value in fields.items() if key not in found and value is not None}
    version = rest.pop(_VERSION_COLUMN, None)
    identity, text = (fields[key] for key in found)
    return {"id": _as_text(identity), "text": text, "attributes": rest, "version": version}


def _document_of_beir(fields: dict[str, Any]) -> dict[str, Any]:
    """The title comes before the text, as when a search is evaluated on such a set."""
    title, text, metadata = (fields.get(key) or "" for key in (_BEIR_TITLE, "text", _BEIR_METADATA))
    if not isinstance(title, str) or not isinstance(text, str):
        raise InvalidInput.of_field("text", "title and text must be strings")
    if metadata and not isinstance(metadata, dict):
        raise InvalidInput.of_field("metadata", "metadata must be an object")
    known = (_BEIR_ID, _BEIR_TITLE, "text", _BEIR_METADATA, _VERSION_COLUMN)
    attributes = {key: value for key, value in fields.items() if key not in known}
    return {
        "id": _as_text(fields[_BEIR_ID]),
        "text": text_with_title(title.strip(), text.strip()),
        "attributes": {**attributes, **(metadata or {})},
        "version": fields.get(_VERSION_COLUMN),
    }


def _as_text(identity: Any) -> Any:
    is_number = isinstance(identity, int) and not isinstance(identity, bool)
    return str(identity) if is_number else identity


def _read_table(
    file: BinaryIO, layout: Layout, name: str, start: Position, types: Types, columns: Sequence[str]
) -> Iterator[Record]:
    rows = layout.read_rows(file)
    header = _header(next(rows, None), name, types, columns)
    if start != START:
        rows = layout.read_rows(file, start)
    for row in rows:
        if row.problem or not row.is_blank:
            yield _record(row, header, types)


def _header(row: Row | None, name: str, types: Types, chosen: Sequence[str]) -> list[str]:
    """The names of the columns; those of id and text are named so."""
    if row is None:
        raise UnreadableFile.of_field(name, "is empty; it must have a header with the columns id and text")
    given = [column.strip() for column in row.cells]
    columns, problem = list(given), row.problem
    for column, position in zip(_REQUIRED_COLUMNS, _find_columns(given, chosen), strict=True):
        if position is not None:
            columns[position] = column
    needed = [*_REQUIRED_COLUMNS, *(column for column in types if column != ALL_COLUMNS)]
    if missing := [column for column in needed if column not in columns]:
        hint = "" if chosen or not set(missing) & set(_REQUIRED_COLUMNS) else "; choose them with --columns"
        has = ", ".join(given)
        problem = problem or f"the header has no {' and no '.join(missing)}; it has {has}{hint}"
    if repeated := sorted({column for column in columns if columns.count(column) > 1}):
        problem = problem or f"the header has {', '.join(repeated)} more than once"
    if problem:
        raise UnreadableFile.of_field(f"{name} line {row.line_number}", problem)
    if columns != given and not chosen:
        pairs = [(old, new) for old, new in zip(given, columns, strict=True) if old != new]
        say(name, ", ".join(f'column "{old}" is read as {new}' for old, new in pairs))
    return columns


def _find_columns(names: Sequence[str], chosen: Sequence[str]) -> list[int | None]:
    """The positions of id and text among the names of columns; None: not found."""
    if chosen:
        return [position_of(names, one) for one in chosen]
    found: list[int | None] = []
    plain = [normalised(name) for name in names]
    for exact, column in zip(_REQUIRED_COLUMNS, (ID, BODY), strict=True):
        matches = (plain.index(name) for name in column.header_names if name in plain)
        found.append(names.index(exact) if exact in names else next(matches, None))
    return found


def _record(row: Row, header: list[str], types: Types) -> Record:
    problem = row.problem
    if not problem and len(row.cells) != len(header):
        problem = f"has {len(row.cells)} fields; the header has {len(header)}"
    if problem:
        return Record(row.line_number, row.content, row.end, problem=problem)
    cells = dict(zip(header, row.cells, strict=True))
    default = types.get(ALL_COLUMNS, ColumnType.STRING)
    try:
        version = _converted(_VERSION_COLUMN, cells.pop(_VERSION_COLUMN, ""), ColumnType.INTEGER)
        document = {column: cells.pop(column) for column in _REQUIRED_COLUMNS}
        attributes = {
            column: _converted(column, cell, types.get(column, default))
            for column, cell in cells.items()
            if cell
        }
    except ValueError as error:
        return Record(row.line_number, row.content, row.end, problem=str(error))
    fields = {**document, "attributes": attributes, "version": version}
    return Record(row.line_number, row.content, row.end, fields)


def _converted(column: str, cell: str, column_type: ColumnType) -> Any:
    """The value of a cell; None if it is empty."""
    try:
        return convert(cell, column_type) if cell else None
    except ValueError as error:
        raise ValueError(f"{column} {error}, not {cell!r:.80}") from None
