"""`textmatch ingest`: put the documents of a file in."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TextIO

import typer

from textmatch.cli import options
from textmatch.cli.checkpoint import Answers, Entry, ProgressFile
from textmatch.cli.connection import find_addresses
from textmatch.cli.errors import message_of
from textmatch.cli.progress import IngestProgress
from textmatch.client import IngestOutcome, TextMatchClient
from textmatch.console import one_line, print_json, print_line, warn
from textmatch.errors import TextMatchError
from textmatch.io.document_reader import Format, Record, format_of, read_records
from textmatch.io.line_reader import START, STDIN, CommandFailed, file_name, opened

File = Annotated[str, typer.Argument(metavar="FILE|-", help="JSON lines, CSV or TSV; - for stdin.")]
FormatOption = Annotated[
    Format | None, typer.Option("--format", help="How FILE is written, if its name does not say so.")
]
Rejected = Annotated[
    Path | None, typer.Option("--rejected", metavar="FILE", help="Write rejected lines there, with reasons.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on where an interrupted run with the same file ended.")
]
Wait = Annotated[bool, typer.Option("--wait", help="Return only when everything is searchable.")]

_SHOWN_REJECTIONS = 20


def ingest(
    file: File,
    file_format: FormatOption = None,
    rejected: Rejected = None,
    resume: Resume = False,
    wait: Wait = False,
    as_json: options.Json = False,
    matcher: options.Matcher = "",
    data_dir: options.DataDir = None,
) -> None:
    """Put the documents of a file in.

    A line of JSON: {"id", "text", "attributes"?, "version"?}. Columns of CSV and TSV: id, text, and version
    if you like; other columns become attributes. In TSV, quotes mean nothing.

    An interrupted run leaves FILE.textmatch-progress, from which --resume goes on. Repeating all of it does
    no harm either: what is stored already is not stored again.

    The exit code is 0 if every document was accepted or is stored already with the same content. With --json:
    {"accepted", "unchanged", "rejected", "seconds"}.
    """
    known_format = file_format or format_of(file)
    if known_format is None:
        raise typer.BadParameter(f"the name {file} does not say how it is written; give --format")
    if rejected is not None and file != STDIN and rejected.resolve() == Path(file).resolve():
        raise typer.BadParameter("--rejected must not be the file that is read")
    if resume and file == STDIN:
        raise typer.BadParameter("--resume needs a file; stdin cannot be read again")
    started = time.monotonic()
    with ExitStack() as stack:
        source = stack.enter_context(opened(file))
        addresses = find_addresses(data_dir, matcher=matcher)
        progress_file = ProgressFile(file, source, addresses.matcher)
        answers = (progress_file.load() if resume else None) or Answers(START, Counter())
        rejections = stack.enter_context(
            Rejections(file_name(file), rejected, is_continued=answers.position != START)
        )
        client = stack.enter_context(addresses.client())
        progress = stack.enter_context(IngestProgress(source, answers.position.offset_bytes))
        records = read_records(source, known_format, file_name(file), answers.position)
        _send(client, records, Run(answers, progress_file, rejections, progress))
        if wait:
            client.wait_until_searchable(progress.waiting)
    counts = answers.counts
    summary = {outcome.lower(): counts[outcome] for outcome in IngestOutcome}
    seconds = round(time.monotonic() - started, 3)
    if as_json:
        print_json({**summary, "seconds": seconds})
    else:
        figures = ", ".join(f"{outcome} {count:,}" for outcome, count in summary.items())
        print_line(f"{figures} in {seconds:.1f} s")
    if counts[IngestOutcome.REJECTED]:
        raise typer.Exit(1)


class Rejections:
    """Tells people of the first rejected lines, and writes all of them to a file if one is wanted."""

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
                raise CommandFailed(f"cannot write {self._path}: {error.strerror}") from error
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


@dataclass(frozen=True)
class Run:
    """Where answers go."""

    answers: Answers
    progress_file: ProgressFile
    rejections: Rejections
    progress: IngestProgress

    def answer(self, entry: Entry, outcome: IngestOutcome, reason: str = "") -> None:
        """One record was answered."""
        for rejected, why in self.answers.answer(entry, outcome, reason):
            self.rejections.add(rejected, why)
        self.progress_file.save(self.answers)


def _send(client: TextMatchClient, records: Iterable[Record], run: Run) -> None:
    under_way: dict[int, Entry] = {}

    def documents() -> Iterator[Any]:
        positions = count()
        for record in records:
            run.progress.read(len(record.content))
            entry = run.answers.expect(record)
            if record.problem:
                run.answer(entry, IngestOutcome.REJECTED, record.problem)
                continue
            under_way[next(positions)] = entry
            yield record.fields
        run.progress.all_read()

    try:
        for result in client.ingest(documents()):
            run.answer(under_way.pop(result.position), result.outcome, str(result.error or ""))
    except BaseException as error:
        run.progress_file.save(run.answers, is_last=True)
        if not isinstance(error, TextMatchError | KeyboardInterrupt):
            raise
        _explain(error, run)
        raise
    run.progress_file.remove()


def _explain(error: TextMatchError | KeyboardInterrupt, run: Run) -> None:
    """Say how far we came, if anywhere."""
    counts = run.answers.counts
    stored = counts[IngestOutcome.ACCEPTED] + counts[IngestOutcome.UNCHANGED]
    if not stored:
        return
    how = " with --resume" if run.progress_file.is_kept else ""
    hint = f"{stored:,} documents are in; repeat the command{how} for the rest"
    if isinstance(error, KeyboardInterrupt):
        warn(f"textmatch: interrupted; {hint}")
        return
    raise CommandFailed(f"{message_of(error)}; {hint}") from error
