from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from textmatch.io import line_reader, record_reader
from textmatch.io.line_reader import Record, UnreadableFile
from textmatch.io.record_reader import read_json, read_parquet

OBJECTS: list[dict[str, Any]] = [
    {"id": "a", "text": '退货, "quoted" ] }', "tags": ["x", {"y": [1, 2]}]},
    {"id": "b", "text": "第二\n行", "n": 12},
    {"id": "c", "text": ""},
]


def read(content: str | bytes) -> list[Record]:
    return list(read_json(io.BytesIO(content.encode() if isinstance(content, str) else content)))


@pytest.mark.parametrize("chunk_bytes", [1, 7, 1 << 18])
@pytest.mark.parametrize(
    "content",
    [
        "\n".join(map(json.dumps, OBJECTS)),
        json.dumps(OBJECTS),
        "\ufeff \n" + json.dumps(OBJECTS, indent=2, ensure_ascii=False) + "\n",
        json.dumps({"version": 1, "names": ["x"], "data": OBJECTS, "end": [1]}, indent=1),
        "\n".join(json.dumps(one, indent=4) for one in OBJECTS),
        "[\n" + ",\n".join(map(json.dumps, OBJECTS)) + "\n]",
    ],
)
def test_every_form_has_the_same_objects(monkeypatch: pytest.MonkeyPatch, content: str, chunk_bytes: int):
    monkeypatch.setattr(record_reader, "_CHUNK_BYTES", chunk_bytes)
    records = read(content)
    assert [record.problem for record in records] == [""] * 3
    assert [record.fields for record in records] == OBJECTS
    assert [json.loads(record.content) for record in records] == OBJECTS


@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_is_read_from_the_end_of_each_item(indent: int | None):
    file = io.BytesIO(("\ufeff" + json.dumps(OBJECTS, indent=indent, ensure_ascii=False)).encode())
    records = list(read_json(file))
    for number, record in enumerate(records, start=1):
        assert list(read_json(file, record.end)) == records[number:]


@pytest.mark.parametrize(
    ("content", "line_number", "problem"),
    [
        ('[{"id": 1},\n{"id": 2,}]', 2, "is not JSON: Expecting property name enclosed in double quotes"),
        ('[{"id": 1},\n{"id": 2', 2, "is not JSON: Expecting ',' delimiter in line 2"),
        ('[{"id": 1},\n{"id": NaN}]', 2, "is not JSON: NaN is not a number"),
        (b'[{"id": 1},\n{"id": "\xff"}]', 1, "is not UTF-8: byte 0xff"),
        ('{\n"id": 1}\n]\n', 3, "is not JSON: it must be an array of objects, or one object per line"),
        ('[{"id": 1}\n', 2, "is not JSON: the array has no end"),
        ('{\n"data": [{"id": 1}\n', 3, "is not JSON: the array has no end"),
        ('[{"id": 1},\n]', 2, "is not JSON: a comma without an item"),
        ('[\n,{"id": 1}]', 2, "is not JSON: a comma without an item"),
        ('[{"id": 1}\n{"id": 2}]', 2, "is not JSON: no comma behind an item"),
        ('[{"id": 1}]\n{"id": 2}', 2, "is not JSON: something follows the array"),
        ('{\n"id": 1}\nplain\n', 3, "is not JSON: it must be an array of objects, or one object per line"),
        ('[{"id": 1},\n' + "[" * 100_000, 2, "is nested too deeply"),
    ],
)
def test_behind_an_error_in_an_array_nothing_is_read(content: str | bytes, line_number: int, problem: str):
    records = read(content)
    assert records[-1].line_number == line_number
    assert records[-1].problem.startswith(problem)
    assert records[-1].problem.endswith("; the rest of the file is not read")
    assert [record.fields for record in records[:-1]] == [{"id": 1}][: len(records) - 1]


def test_an_item_without_end_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(line_reader, "MAX_LINE_BYTES", 1_000)
    monkeypatch.setattr(record_reader, "_CHUNK_BYTES", 100)
    file = io.BytesIO(b'[{"id": "' + b"x" * 1_000_000)
    [record] = read_json(file)
    assert record.problem.startswith("is not JSON: Unterminated string")
    assert file.tell() < 10_000


def test_rows_of_parquet(tmp_path: Path):
    path = tmp_path / "rows.parquet"
    rows = [{"id": str(number), "n": number} for number in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), path)
    with path.open("rb") as file:
        records = list(read_parquet(file))
    assert [record.fields for record in records] == rows
    with path.open("rb") as file:
        assert list(read_parquet(file, records[2].end)) == records[3:]
    path.write_bytes(b"PAR1 and no more")
    with (
        path.open("rb") as file,
        pytest.raises(UnreadableFile, match="is not a readable Parquet"),
    ):
        list(read_parquet(file))
