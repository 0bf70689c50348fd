"""`textmatch ingest`: store the documents of a file.

Answers come in another order than the documents were sent. They are counted in the order of the file, which
gives a position up to which everything is answered. A checkpoint next to the file keeps that position.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, Self, TextIO

import typer

from textmatch.cli import options
from textmatch.cli.errors import CommandFailed, message_of
from textmatch.cli.options import find_addresses
from textmatch.client import IngestOutcome, IngestStatus, TextMatchClient
from textmatch.console import ProgressBars, one_line, print_result, warn
from textmatch.errors import InvalidInput, TextMatchError
from textmatch.io.column_types import ALL_COLUMNS, parse_types
from textmatch.io.document_reader import (
    Types,
    check_types,
    file_of,
    infer_types,
    parse_columns,
    read_records,
)
from textmatch.io.file_format import Format, Layout, detect_layout, say
from textmatch.io.line_reader import START, STDIN, Position, Record, file_name, open_data_file

File = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help="JSON lines, a JSON array, CSV, TSV, Parquet or a folder in BEIR's layout; - for stdin.",
    ),
]
FormatOption = Annotated[
    Format | None,
    typer.Option("--format", help="Format of FILE. Default: by its content and its extension."),
]
ColumnsOption = Annotated[
    str,
    typer.Option(
        "--columns",
        metavar="ID,TEXT",
        help="Columns or keys of id and text, by name or by number from 1. Default: found by their names.",
    ),
]
TypesOption = Annotated[
    str,
    typer.Option(
        "--types",
        metavar="COLUMN:TYPE,...",
        help="Types of columns of CSV and TSV: string, integer, float, bool; * stands for all others."
        " Default: inferred from all rows.",
    ),
]
Rejected = Annotated[
    Path | None,
    typer.Option("--rejected", metavar="FILE", help="Write rejected lines and reasons to FILE."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run with the same file.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait until all documents are searchable.")]

# Without an option, of a pipe that cannot be read twice.
_FORMATS = {STDIN: Format.JSONL}
_SHOWN_REJECTIONS = 20
_CHECKPOINT_SUFFIX = ".textmatch-progress"
_CHECKPOINT_SECONDS = 5.0
_FINGERPRINT_BYTES = 64 * 1024


def ingest(
    file: File,
    file_format: FormatOption = None,
    columns: ColumnsOption = "",
    types: TypesOption = "",
    rejected: Rejected = None,
    resume: Resume = False,
    wait: Wait = False,
    collection: options.CollectionName = "",
    as_json: options.Json = False,
    matcher: options.Matcher = "",
    data_dir: options.DataDir = None,
) -> None:
    """Store the documents of a file.

    JSON, one object per line or an array: {"id", "text", "attributes"?, "version"?}, or BEIR's {"_id",
    "title", "text", "metadata"}. {"id", "deleted": true, "version"?} deletes a document. Both may have
    "expected_version". CSV and TSV: a header with the columns id and text, in English or Chinese, and
    optionally version; every other column is an attribute. --columns chooses others. A separator other than
    that of the format is found, and a line says so. A column whose cells are all numbers, or all true or
    false, gets that type, and a line says so; --types sets types, for example year:integer,zip:string. A
    cell that does not fit rejects its row. Quotes have no meaning in TSV, unless a whole column is in
    quotes.

    An interrupted run leaves FILE.textmatch-progress, from which --resume continues. Starting over is
    safe too: unchanged documents are not stored again.

    The exit code is 1 if a document was rejected, or with --wait if one could not be indexed; lines say
    which. --json prints {"accepted", "unchanged", "rejected", "seconds"}, and with --wait "failed".
    """
    file = file_of(file)
    if rejected is not None and file != STDIN and rejected.resolve() == Path(file).resolve():
        raise typer.BadParameter("--rejected must not be the input file")
    if resume and file == STDIN:
        raise typer.BadParameter("--resume needs a file; stdin cannot be read again")
    chosen_columns = _parse_columns(columns)
    started = time.monotonic()
    with ExitStack() as stack:
        source = stack.enter_context(open_data_file(file))
        addresses = find_addresses(data_dir, matcher=matcher, collection=collection)
        layout = detect_layout(source, file, file_format or _FORMATS.get(file), least_columns=2)
        for note in layout.notes:
            say(file, note)
        given_types = _parse_types(types, layout)
        column_types = _column_types(source, layout, file, given_types, chosen_columns)
        checkpoint = Checkpoint(file, source, addresses.matcher, addresses.collection)
        position, counts = checkpoint.load() if resume else (START, Counter())
        rejections = stack.enter_context(
            Rejections(file_name(file), rejected, is_continued=position != START)
        )
        client = stack.enter_context(addresses.client())
        progress = stack.enter_context(ProgressBars())
        progress.stage("reading", checkpoint.size_bytes, done=position.offset_bytes, unit="documents")
        name = file_name(file)
        records = read_records(source, layout, name, position, column_types, chosen_columns)
        if layout.is_table and not source.seekable():
            records = _told_of_text_columns(records, column_types, file_name(file))
        letters = NewDeadLetters(client) if wait else None
        IngestRun(position, counts, checkpoint, rejections, progress).send(client, records)
        summary = {outcome.lower(): counts[outcome] for outcome in IngestOutcome}
        if letters:
            _wait_until_searchable(client, progress)
            summary["failed"] = letters.tell()
    seconds = round(time.monotonic() - started, 3)
    figures = ", ".join(f"{outcome} {count:,}" for outcome, count in summary.items())
    print_result({**summary, "seconds": seconds}, f"{figures} in {seconds:.1f} s", as_json=as_json)
    if counts[IngestOutcome.REJECTED] or summary.get("failed"):
        raise typer.Exit(1)


def _parse_columns(columns: str) -> tuple[str, ...]:
    try:
        return parse_columns(columns)
    except InvalidInput as error:
        raise typer.BadParameter(error.violations[0].description, param_hint="--columns") from error


def _parse_types(types: str, layout: Layout) -> Types:
    if not types:
        return {}
    if not layout.is_table:
        raise typer.BadParameter("--types is for CSV and TSV; values in JSON have types")
    try:
        given = parse_types(types)
        check_types(given)
    except InvalidInput as error:
        raise typer.BadParameter(error.violations[0].description, param_hint="--types") from error
    return given


def _column_types(source: BinaryIO, layout: Layout, file: str, given: Types, columns: Sequence[str]) -> Types:
    """The types of all columns, and a line on stderr about those that are inferred."""
    if not layout.is_table:
        return {}
    types, note = infer_types(source, layout, file_name(file), given, columns)
    if note:
        warn(f"textmatch: {file_name(file)}: {one_line(note)}; --types sets types")
    return types


def _told_of_text_columns(records: Iterable[Record], types: Types, name: str) -> Iterator[Record]:
    """The records, and once a line on stderr about columns whose types cannot be inferred from a pipe."""
    is_told = ALL_COLUMNS in types
    for record in records:
        if not is_told and record.fields:
            is_told = True
            if text := [column for column in record.fields["attributes"] if column not in types]:
                columns = one_line(", ".join(text))
                warn(f"textmatch: {name}: {columns}: string, as in every pipe; --types sets types")
        yield record


class Rejections:
    """Shows the first rejected lines, and writes all of them to a file if there is one."""

    def __init__(self, source_name: str, path: Path | None, *, is_continued: bool) -> None:
        self._source_name = source_name
        self._path = path
        self._mode: Literal["a", "w"] = "a" if is_continued else "w"
        self._file: TextIO | None = None
        self._count = 0

    def __enter__(self) -> Self:
        if self._path is not None:
            try:
                self._file = self._path.open(self._mode, encoding="utf-8")
            except OSError as error:
                raise CommandFailed(f"{self._path} cannot be written: {error.strerror}") from error
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()
        if self._count > _SHOWN_REJECTIONS:
            warn(f"and {self._count - _SHOWN_REJECTIONS:,} more; --rejected FILE writes all of them")

    def add(self, record: Record, reason: str) -> None:
        """One line was rejected."""
        self._count += 1
        if self._count <= _SHOWN_REJECTIONS:
            warn(f"{self._source_name} line {record.line_number}: {one_line(reason)}")
        if self._file is not None:
            content = record.content.decode(errors="backslashreplace").rstrip("\r\n")
            rejection = {"line": record.line_number, "reason": reason, "input": content}
            self._file.write(json.dumps(rejection, ensure_ascii=False) + "\n")


class Checkpoint:
    """A file next to the input that records how far the input was ingested. There is none for stdin.

    It is valid for the same file, matcher and collection. If it cannot be written, the run continues without
    it.
    """

    def __init__(self, source_name: str, source: BinaryIO, matcher: str, collection: str) -> None:
        self._path = Path(f"{source_name}{_CHECKPOINT_SUFFIX}")
        fingerprint = {} if source_name == STDIN else _fingerprint(source)
        self._identity = {**fingerprint, "matcher": matcher, "collection": collection}
        self.is_kept = bool(fingerprint)
        self.size_bytes: int | None = fingerprint.get("size_bytes")
        self._saved_at = time.monotonic()

    def load(self) -> tuple[Position, Counter[IngestOutcome]]:
        """The position of an earlier run and the outcomes up to it; the start if there was none.

        Raises:
            CommandFailed: the checkpoint cannot be read.
        """
        try:
            content: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
            counts = Counter({outcome: content["counts"][outcome] for outcome in IngestOutcome})
            position = Position(content["offset_bytes"], content["line_number"])
        except FileNotFoundError:
            return START, Counter()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CommandFailed(f"{self._path} cannot be read; delete it to start over: {error}") from error
        return (position, counts) if content.get("identity") == self._identity else (START, Counter())

    def save(self, position: Position, counts: Counter[IngestOutcome], *, is_last: bool = False) -> None:
        """Write the checkpoint if the last one is some seconds old, or this is the last."""
        if not self.is_kept or (not is_last and time.monotonic() < self._saved_at + _CHECKPOINT_SECONDS):
            return
        self._saved_at = time.monotonic()
        content = {
            "identity": self._identity,
            "offset_bytes": position.offset_bytes,
            "line_number": position.line_number,
            "counts": {outcome: counts[outcome] for outcome in IngestOutcome},
        }
        unfinished = self._path.with_name(f"{self._path.name}.new")
        with suppress(OSError):
            unfinished.write_text(json.dumps(content), encoding="utf-8")
            unfinished.replace(self._path)

    def remove(self) -> None:
        """Delete the checkpoint, if there is one."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


@dataclass
class _Pending:
    """A record that was read; `outcome` is None until it is answered."""

    record: Record
    outcome: IngestOutcome | None = None
    reason: str = ""


class IngestRun:
    """Sends records, and counts the outcomes in the order of the file, not in the order of the answers.

    All records up to `position` are answered and in `counts`, to which the run adds.
    """

    def __init__(
        self,
        position: Position,
        counts: Counter[IngestOutcome],
        checkpoint: Checkpoint,
        rejections: Rejections,
        progress: ProgressBars,
    ) -> None:
        self._position = position
        self._counts = counts
        self._checkpoint = checkpoint
        self._rejections = rejections
        self._progress = progress
        self._pending: deque[_Pending] = deque()
        self._in_flight: dict[int, _Pending] = {}

    def send(self, client: TextMatchClient, records: Iterable[Record]) -> None:
        """Send all records.

        Raises:
            TextMatchError: the matcher failed; the checkpoint has the position reached.
        """
        try:
            for result in client.ingest(self._documents(records)):
                sent = self._in_flight.pop(result.position)
                self._answer(sent, result.outcome, str(result.error or ""))
        except BaseException as error:
            self._checkpoint.save(self._position, self._counts, is_last=True)
            self._report(error)
            raise
        self._checkpoint.remove()

    def _documents(self, records: Iterable[Record]) -> Iterator[Any]:
        positions = count()
        for record in records:
            self._progress.advance(size=len(record.content))
            read = _Pending(record)
            self._pending.append(read)
            if record.problem:
                self._answer(read, IngestOutcome.REJECTED, record.problem)
                continue
            self._in_flight[next(positions)] = read
            yield record.fields

    def _answer(self, answered: _Pending, outcome: IngestOutcome, reason: str) -> None:
        answered.outcome, answered.reason = outcome, reason
        while self._pending and (first := self._pending[0]).outcome is not None:
            self._pending.popleft()
            self._counts[first.outcome] += 1
            self._position = first.record.end
            if first.outcome is IngestOutcome.REJECTED:
                self._rejections.add(first.record, first.reason)
        self._checkpoint.save(self._position, self._counts)

    def _report(self, error: BaseException) -> None:
        """Print how many documents were accepted before the error, if any were."""
        accepted = self._counts[IngestOutcome.ACCEPTED] + self._counts[IngestOutcome.UNCHANGED]
        if not accepted:
            return
        how = " with --resume" if self._checkpoint.is_kept else ""
        hint = f"{accepted:,} documents were accepted; repeat the command{how} for the rest"
        if isinstance(error, KeyboardInterrupt):
            warn(f"textmatch: interrupted; {hint}")
        elif isinstance(error, TextMatchError):
            raise CommandFailed(f"{message_of(error)}; {hint}") from error


class NewDeadLetters:
    """The documents of a collection that cannot be indexed, and could be, or were not there, before.

    Documents of other producers are among them.
    """

    def __init__(self, client: TextMatchClient) -> None:
        self._client = client
        self._known = {one.id: one.failed_at for one in client.list_dead_letters()}

    def tell(self) -> int:
        """Print the first ones; returns how many there are."""
        failed_count = 0
        for one in self._client.list_dead_letters():
            if self._known.get(one.id) == one.failed_at:
                continue
            failed_count += 1
            if failed_count <= _SHOWN_REJECTIONS:
                warn(f"textmatch: the document {one.id!r} could not be indexed: {one_line(one.error)}")
        if failed_count > _SHOWN_REJECTIONS:
            more = failed_count - _SHOWN_REJECTIONS
            warn(f"and {more:,} more; to see all: textmatch dead-letters list")
        return failed_count


def _wait_until_searchable(client: TextMatchClient, progress: ProgressBars) -> None:
    before: int | None = None
    truncated_count = 0

    def show(status: IngestStatus) -> None:
        nonlocal before, truncated_count
        truncated_count = status.truncated_count or 0
        if before is None:
            before = status.queued_count
            progress.stage("indexing", before, unit="documents")
        progress.advance(before - status.queued_count, note=f"{status.queued_count:,} queued")
        before = status.queued_count

    client.wait_until_searchable(show, on_problem=lambda reason: warn(f"textmatch: still waiting: {reason}"))
    if truncated_count:
        warn(
            f"textmatch: the model has not read the end of {truncated_count:,} documents of the collection,"
            " because its passage_tokens is 0; docs/matching.md explains passages"
        )


def _fingerprint(source: BinaryIO) -> dict[str, Any]:
    """Changes with the file; empty for a pipe."""
    try:
        status = os.fstat(source.fileno())
        if not source.seekable():
            return {}
        start = source.read(_FINGERPRINT_BYTES)
        source.seek(0)
    except OSError:
        return {}
    return {
        "size_bytes": status.st_size,
        "modified_ns": status.st_mtime_ns,
        "start": hashlib.blake2b(start, digest_size=16).hexdigest(),
    }
