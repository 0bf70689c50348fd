from __future__ import annotations

import io
import itertools
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from textmatch.errors import InvalidInput
from textmatch.io import line_reader
from textmatch.io.column_types import ColumnType, parse_types
from textmatch.io.document_reader import (
    check_types,
    file_of,
    infer_types,
    parse_columns,
    read_records,
)
from textmatch.io.file_format import Format, Layout, format_of
from textmatch.io.line_reader import Record, UnreadableFile

HINT = "; choose them with --columns"


def read(content: bytes, file_format: Format = Format.JSONL) -> list[Record]:
    return list(read_records(io.BytesIO(content), Layout(file_format), "FILE"))


@pytest.mark.parametrize(
    ("name", "file_format"),
    [
        ("docs.jsonl", Format.JSONL),
        ("docs.NDJSON", Format.JSONL),
        ("a/b.csv", Format.CSV),
        ("b.tsv", Format.TSV),
        ("b.tab", Format.TSV),
        ("docs.json", Format.JSONL),
        ("docs.parquet", Format.PARQUET),
        ("-", None),
        ("docs", None),
    ],
)
def test_the_name_says_the_format(name: str, file_format: Format | None):
    assert format_of(name) is file_format


def test_json_lines_with_byte_order_mark_crlf_and_blank_lines():
    records = read(b'\xef\xbb\xbf{"id": "a"}\r\n\r\n  \n{"id": "\xe7\x8c\xab"}')
    assert [(record.line_number, record.fields) for record in records] == [
        (1, {"id": "a"}),
        (4, {"id": "猫"}),
    ]
    assert [record.problem for record in records] == ["", ""]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            b'{"id": "a",, "text": 1}',
            "is not JSON: Expecting property name enclosed in double quotes at column 12",
        ),
        (b'{"id": "a"', "is not JSON: Expecting ',' delimiter at column 11"),
        (b"plain text", "is not JSON: Expecting value at column 1"),
        (b'{"id": NaN}', "is not JSON: NaN is not a number"),
        (b'{"id": "\xff"}', "is not UTF-8: byte 0xff at byte 9 of the line"),
        (b"\xff\xfe{\x00}\x00", "is not UTF-8: byte 0xff at byte 1 of the line"),
        (b"[" * 100_000, "is nested too deeply"),
        (b"9" * 5_000, "is not JSON: Exceeds the limit (4300 digits) for integer string conversion"),
    ],
)
def test_a_bad_line_is_named_and_the_rest_is_read(line: bytes, problem: str):
    before, bad, after = read(b'{"id": 1}\n' + line + b'\n{"id": 3}\n')
    assert (before.fields, after.fields) == ({"id": 1}, {"id": 3})
    assert bad.line_number == 2
    assert bad.content == line + b"\n"
    assert bad.problem.startswith(problem)


def test_a_line_without_end_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(line_reader, "MAX_LINE_BYTES", 1_000)
    long, after = read(b"x" * 10_500 + b'\n{"id": 2}\n')
    assert long.problem == "is longer than 1,000 bytes"
    assert len(long.content) == 1_000
    assert (after.line_number, after.fields) == (2, {"id": 2})
    assert read(b'{"a": "' + b"x" * 990 + b'"}\n')[0].problem == ""


CSV = b"""id,text,lang,version
a,plain,en,7
b,"with ""quotes"", commas
and a second line",,
c,last,zh,
"""


def test_csv_columns_become_fields_and_attributes():
    first, second, third = read(CSV, Format.CSV)
    assert first.fields == {"id": "a", "text": "plain", "attributes": {"lang": "en"}, "version": 7}
    assert second.fields["text"] == 'with "quotes", commas\nand a second line'
    assert (second.fields["attributes"], second.fields["version"]) == ({}, None)
    assert [record.line_number for record in (first, second, third)] == [2, 3, 5]
    assert second.content == b'b,"with ""quotes"", commas\nand a second line",,\n'


def test_csv_of_a_spreadsheet_with_byte_order_mark_and_crlf():
    records = read(b"\xef\xbb\xbfid,text\r\na,one\r\n\r\nb,two\r\n", Format.CSV)
    assert [record.fields["text"] for record in records] == ["one", "two"]


def test_quotes_in_tsv_mean_nothing():
    [record] = read(b'text\tid\n"quoted" and "open\ta\n', Format.TSV)
    assert record.fields["text"] == '"quoted" and "open'


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (b"a", "has 1 fields; the header has 3"),
        (b"a,b,1,d", "has 4 fields; the header has 3"),
        (b"a,b,new", "version must be a whole number, not 'new'"),
        (b"a,\xff,1", "is not UTF-8: byte 0xff at byte 3 of the line"),
        (b'a,"b"c,1', "is not CSV: ',' expected after '\"'"),
    ],
)
def test_a_bad_row_is_named_and_the_rest_is_read(row: bytes, problem: str):
    records = read(b"id,text,version\nb,t,1\n" + row + b"\nc,t,2\n", Format.CSV)
    assert [record.line_number for record in records] == [2, 3, 4]
    assert [record.problem for record in records] == ["", problem, ""]
    assert records[1].content == row + b"\n"


def test_a_huge_cell_is_one_record():
    """Lines of the rest of the cell were stored as documents, and the good row behind it was lost."""
    cell = b"step 7, then wait for the result\n" * 10_000
    huge, after = read(b'id,text\na,"' + cell + b'"\nc,t\n', Format.CSV)
    assert (huge.fields["id"], huge.fields["text"]) == ("a", cell.decode())
    assert (huge.line_number, after.line_number, after.fields["id"]) == (2, 10_003, "c")


def columns_of(content: str, file_format: Format, columns: str = "") -> list[Record]:
    file = io.BytesIO(content.encode())
    return list(read_records(file, Layout(file_format), "FILE", columns=parse_columns(columns)))


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        ("编号,内容,年份\n7,怎么退货,2020\n", ""),
        ("_id,text,年份\n7,怎么退货,2020\n", ""),
        ("Doc ID,Content,年份\n7,怎么退货,2020\n", ""),
        ("id,年份,标题\n7,2020,怎么退货\n", "id,标题"),
        ("年份,nr,标题\n2020,7,怎么退货\n", "2,3"),
    ],
)
def test_columns_of_id_and_text(content: str, columns: str, capsys: pytest.CaptureFixture[str]):
    [record] = columns_of(content, Format.CSV, columns)
    expected = {"id": "7", "text": "怎么退货", "attributes": {"年份": "2020"}, "version": None}
    assert record.fields == expected
    said = capsys.readouterr().err
    assert ("is read as" in said) == (not columns), said


def test_keys_of_id_and_text():
    content = '[{"nr": 7, "frage": "怎么退货", "年份": 2020, "x": null}, {"nr": 8}]'
    found, lacking = columns_of(content, Format.JSONL, "nr,frage")
    assert found.fields == {"id": "7", "text": "怎么退货", "attributes": {"年份": 2020}, "version": None}
    assert lacking.problem == "has the keys nr; choose them with --columns"


def test_options_that_cannot_be_columns():
    for columns in ("id", "a,b,c", "a,a"):
        with pytest.raises(InvalidInput, match="must be two columns"):
            parse_columns(columns)
    with pytest.raises(UnreadableFile, match="line 1: the header has no text; it has id, body"):
        columns_of("id,body\n7,t\n", Format.CSV, "id,text")


def test_documents_in_the_layout_of_beir(tmp_path: Path):
    """Every line of such a corpus was rejected."""
    corpus = [
        {"_id": "d1", "title": "退货", "text": "七天内", "metadata": {"url": "x"}},
        {"_id": 2, "title": "", "text": "关门", "metadata": {}},
        {"_id": "d3", "title": ["x"], "text": "t"},
    ]
    first, second, bad = columns_of("\n".join([*map(json.dumps, corpus), ""]), Format.JSONL)
    assert first.fields == {
        "id": "d1",
        "text": "退货 七天内",
        "attributes": {"url": "x"},
        "version": None,
    }
    assert (second.fields["id"], second.fields["text"]) == ("2", "关门")
    assert bad.problem == "title and text must be strings"
    (tmp_path / "corpus.jsonl").write_text("")
    assert file_of(str(tmp_path)) == str(tmp_path / "corpus.jsonl")
    assert file_of("-") == "-"
    with pytest.raises(UnreadableFile, match="is a folder; only folders with corpus.jsonl are read"):
        file_of(str(tmp_path.parent))


TYPED = b"""id,text,version,year,price,code,active,note
1,one,7,2019,9.5,007,TRUE,
2,two,,2022,12,n/a,false,-
"""


def test_columns_get_types_from_all_their_cells():
    file = io.BytesIO(TYPED)
    types, note = infer_types(file, Layout(Format.CSV), "FILE", {})
    assert note == "year is integer, price is float, active is bool"
    first, second = read_records(file, Layout(Format.CSV), "FILE", types=types)
    assert first.fields == {
        "id": "1",
        "text": "one",
        "version": 7,
        "attributes": {"year": 2019, "price": 9.5, "code": "007", "active": True},
    }
    assert second.fields["attributes"] == {
        "year": 2022,
        "price": 12.0,
        "code": "n/a",
        "active": False,
        "note": "-",
    }


def test_the_cell_that_makes_a_column_text_is_named():
    file = io.BytesIO(b"id,text,year\na,t,2019\nb,t,unknown\nc,t,2020\n")
    types, note = infer_types(file, Layout(Format.CSV), "FILE", {})
    assert types == {"year": ColumnType.STRING}
    assert note == "year is string because of 'unknown' in line 3"


def test_given_types_come_first():
    file = io.BytesIO(TYPED)
    given = parse_types("year:string,code:integer")
    types, note = infer_types(file, Layout(Format.CSV), "FILE", given)
    assert note == "price is float, active is bool"
    first, second = read_records(file, Layout(Format.CSV), "FILE", types=types)
    assert (first.fields["attributes"]["year"], first.fields["attributes"]["code"]) == ("2019", 7)
    assert (second.line_number, second.problem) == (3, "code must be a whole number, not 'n/a'")


def test_one_type_may_be_given_for_all_other_columns():
    types, note = infer_types(
        io.BytesIO(TYPED), Layout(Format.CSV), "FILE", parse_types("*:string,year:integer")
    )
    assert note == ""
    [first, _] = read_records(io.BytesIO(TYPED), Layout(Format.CSV), "FILE", types=types)
    assert first.fields["attributes"] == {"year": 2019, "price": "9.5", "code": "007", "active": "TRUE"}


def test_bad_rows_do_not_decide_about_types():
    content = b"id\ttext\tyear\na\tt\t2019\nb\tt\nc\t\xff\tx\n"
    assert infer_types(io.BytesIO(content), Layout(Format.TSV), "FILE", {})[0] == {"year": ColumnType.INTEGER}


class Pipe(io.BytesIO):
    def seekable(self) -> bool:
        return False


def test_a_pipe_is_not_read_for_types():
    pipe = Pipe(TYPED)
    types, note = infer_types(pipe, Layout(Format.CSV), "FILE", parse_types("price:float"))
    assert (types, note) == ({"price": ColumnType.FLOAT}, "")
    first, _ = read_records(pipe, Layout(Format.CSV), "FILE", types=types)
    assert (first.fields["attributes"]["year"], first.fields["attributes"]["price"]) == ("2019", 9.5)


def test_a_type_for_a_column_that_is_not_there_is_refused():
    types = parse_types("years:integer")
    with pytest.raises(
        UnreadableFile, match="FILE line 1: the header has no years; it has id, text, version"
    ):
        infer_types(io.BytesIO(TYPED), Layout(Format.CSV), "FILE", types)
    with pytest.raises(UnreadableFile, match="the header has no years"):
        list(read_records(Pipe(TYPED), Layout(Format.CSV), "FILE", types=types))
    with pytest.raises(InvalidInput, match="the column id is not an attribute and has no type"):
        check_types(parse_types("id:integer"))


def test_a_quote_that_is_never_closed_is_reported():
    good, bad = read(b'id,text\na,t\nb,"open\nc,t\n', Format.CSV)
    assert good.problem == ""
    assert (bad.line_number, bad.problem) == (
        3,
        "is not CSV: the quote that begins in this line is never closed; the rest of the file is not read",
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "FILE: is empty; it must have a header with the columns id and text"),
        (
            b"id,body\n1,t\n",
            "FILE line 1: the header has no text; it has id, body" + HINT,
        ),
        (
            b"1,some text\n",
            "FILE line 1: the header has no id and no text; it has 1, some text" + HINT,
        ),
        (b"id,text,id\n", "FILE line 1: the header has id more than once"),
        (b"id,\xff,text\n", "FILE line 1: is not UTF-8: byte 0xff at byte 4 of the line"),
    ],
)
def test_a_header_that_cannot_be_used_is_named(content: bytes, message: str):
    with pytest.raises(UnreadableFile) as raised:
        read(content, Format.CSV)
    assert str(raised.value) == message


def test_an_empty_file_of_json_lines_has_no_documents():
    assert read(b"") == []


class EndlessFile(io.RawIOBase):
    """As many lines as one asks for."""

    def __init__(self, line: bytes) -> None:
        self._line = line

    def readline(self, size: int | None = -1, /) -> bytes:
        return self._line


@pytest.mark.parametrize("file_format", [Format.JSONL, Format.TSV])
def test_memory_does_not_grow_with_the_file(file_format: Format):
    line = (
        b"id\ttext\n" if file_format is Format.TSV else json.dumps({"id": "a", "text": "t"}).encode() + b"\n"
    )

    def records() -> Iterator[Record]:
        return read_records(EndlessFile(line), Layout(file_format), "FILE")  # type: ignore[arg-type]

    tracemalloc.start()
    for _ in itertools.islice(records(), 20_000):
        pass
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 500_000
