from __future__ import annotations

import io

import pytest

from textmatch.io import line_reader
from textmatch.io.csv_reader import Row, read_rows

REST = "; the rest of the file is not read"


def read(text: str, separator: str = ",") -> list[Row]:
    return list(read_rows(io.BytesIO(text.encode()), is_tsv=False, separator=separator))


def shown(rows: list[Row]) -> list[tuple[int, list[str], str]]:
    return [(row.line_number, row.cells, row.problem) for row in rows]


def test_a_cell_may_be_larger_than_the_limit_of_the_library():
    cell = 'a ""quoted"" line, with a comma\n' * 10_000
    rows = read(f'id,text\na,"{cell}"\nb,{"x" * 200_000}\nc,t\n')
    assert [row.problem for row in rows] == [""] * 4
    assert rows[1].cells == ["a", cell.replace('""', '"')]
    assert [row.line_number for row in rows] == [1, 2, 10_003, 10_004]


def test_a_row_has_the_limit_of_a_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(line_reader, "MAX_LINE_BYTES", 1_000)
    *rows, lost = read('a,1\nb,"' + "a line\n" * 1_000 + '"\nc,3\n')
    assert [row.cells for row in rows] == [["a", "1"]]
    assert lost.line_number == 2
    assert lost.problem == (
        f"is not CSV: the quote that begins in this line is not closed within 1,000 bytes{REST}"
    )
    assert len(lost.content) < 100


@pytest.mark.parametrize(
    ("text", "line_number", "problem"),
    [
        ('a,"open\nb,2\nc,3\n', 2, "the quote that begins in this line is never closed"),
        (
            'a,"open\nb,2\nc,"3"\nd,4\n',
            2,
            "text follows the quote that begins in this line and ends in line 4",
        ),
        ('a,"two\nlines","open\nb,2\n', 3, "the quote that begins in this line is never closed"),
        ('a,"say "hi\nb, 2\nand more"\nc,3\n', 2, "text follows the quote that begins in this line"),
        ('a,"say "hi\nb, 2\n"\nc,3\n', 2, "text follows the quote that begins in this line"),
    ],
)
def test_a_lost_quote_is_named_by_its_line_and_no_part_of_a_cell_is_a_row(
    text: str, line_number: int, problem: str
):
    """The lines after it were taken for rows: parts of a cell were stored as documents."""
    before, lost = read("0,1\n" + text)
    assert shown([before, lost]) == [
        (1, ["0", "1"], ""),
        (line_number, [], f"is not CSV: {problem}{REST}"),
    ]


@pytest.mark.parametrize(
    "after", ["b,2\nc,3\n", 'b,"2"\nc,3\n', 'b,2\n"c",3\n', 'b,"two\nlines"\n', 'b,""\n', ""]
)
def test_a_stray_quote_within_a_line_costs_this_row_only(after: str):
    rows = read('a,"say "hi" again"\n' + after)
    assert rows[0].problem == "is not CSV: ',' expected after '\"'"
    assert [row.problem for row in rows[1:]] == [""] * len(read(after))
    assert [row.cells for row in rows[1:]] == [row.cells for row in read(after)]


def test_quotes_within_cells_without_quotes_are_ordinary():
    assert [row.cells for row in read('a,5" wide\nb,he said "hi"\n')] == [
        ["a", '5" wide'],
        ["b", 'he said "hi"'],
    ]


def test_another_separator():
    assert [row.cells for row in read('a;"1;2"\nb;3,4\n', ";")] == [["a", "1;2"], ["b", "3,4"]]
