from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from textmatch.io.file_format import Format, Layout, detect_layout, format_of
from textmatch.io.line_reader import UnreadableFile


def detect(content: str | bytes, name: str, given: Format | None = None) -> Layout:
    file = io.BytesIO(content.encode() if isinstance(content, str) else content)
    layout = detect_layout(file, name, given, least_columns=2)
    assert file.tell() == 0
    return layout


@pytest.mark.parametrize(
    ("content", "name", "given", "expected"),
    [
        ('{"id": "a"}\n', "docs.jsonl", None, (Format.JSONL, ",")),
        ('\ufeff\n[{"id": "a"}]\n', "docs.txt", None, (Format.JSONL, ",")),
        ("[SEP]\tb\n", "docs.txt", None, (Format.TSV, ",")),
        ("id,text\na,t\n", "docs.csv", None, (Format.CSV, ",")),
        ("id;text\na;t, u\n", "docs.csv", None, (Format.CSV, ";")),
        ("id\ttext\na\tt, u\n", "docs.csv", None, (Format.TSV, ",")),
        ("id,text\na,t\n", "docs", None, (Format.CSV, ",")),
        ("id\ttext\na\tt\n", "docs", None, (Format.TSV, ",")),
        ('"id"\t"text"\n"a"\t"say ""hi"""\n', "docs.tsv", None, (Format.CSV, "\t")),
        ('"""\t"""\n"""\t"""\n', "docs.tsv", None, (Format.TSV, ",")),
        ("id|text\na|t\n", "docs.txt", Format.CSV, (Format.CSV, "|")),
        ('{"a",b\n', "docs.jsonl", Format.CSV, (Format.CSV, ",")),
        ("nothing\n", "docs.csv", None, (Format.CSV, ",")),
        (b"PAR1...", "docs", None, (Format.PARQUET, ",")),
    ],
)
def test_the_layout_is_found(
    content: str | bytes, name: str, given: Format | None, expected: tuple[Format, str]
):
    layout = detect(content, name, given)
    assert (layout.format, layout.separator) == expected


def test_another_separator_is_said():
    assert detect("id;text\na;t\n", "docs.csv").notes == ("columns are separated by semicolon",)
    assert detect("id,text\na,t\n", "docs.csv").notes == ()


@pytest.mark.parametrize(
    ("content", "name", "problem"),
    [
        (
            b"PK\x03\x04...",
            "a.xlsx",
            "a.xlsx: is an Excel workbook or another ZIP file; save",
        ),
        (b"\xd0\xcf\x11\xe0...", "a.xls", "a.xls: is an old Excel workbook; save the sheet as CSV"),
        (b"\x1f\x8b...", "a.csv.gz", "a.csv.gz: is compressed; unpack it with gunzip"),
        ("id,text".encode("utf-16"), "a.csv", "a.csv line 1: is UTF-16 or binary; save the file as UTF-8"),
        (b"id,text", "a.parquet", "a.parquet: is not a Parquet file"),
    ],
)
def test_a_format_that_is_not_read_is_named(content: bytes, name: str, problem: str):
    with pytest.raises(UnreadableFile) as raised:
        detect(content, name)
    assert str(raised.value).startswith(problem)


def test_of_a_pipe_only_the_first_bytes_are_read_in_advance():
    reading, writing = os.pipe()
    os.write(writing, b"id;text\na;t\n")
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        layout = detect_layout(file, "-", Format.CSV, least_columns=2)
        assert [row.cells for row in layout.read_rows(file)] == [["id", "text"], ["a", "t"]]


def test_a_long_file_is_read_from_its_start(tmp_path: Path):
    path = tmp_path / "docs.csv"
    path.write_text("id;text\n" + "a;some text\n" * 100_000)
    with path.open("rb") as file:
        layout = detect_layout(file, str(path), least_columns=2)
        assert sum(1 for _ in layout.read_rows(file)) == 100_001


def test_unknown_extensions_stand_for_no_format():
    assert (format_of("docs.data"), format_of("docs.CSV")) == (None, Format.CSV)
