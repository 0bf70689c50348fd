from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textmatch.errors import InvalidInput
from textmatch.io.column_types import ColumnGuess, ColumnType, convert, parse_types

STRING, INTEGER, FLOAT, BOOL = ColumnType.STRING, ColumnType.INTEGER, ColumnType.FLOAT, ColumnType.BOOL


def guess(cells: list[str]) -> ColumnGuess:
    column = ColumnGuess()
    for line_number, cell in enumerate(cells, start=2):
        column.add(cell, line_number)
    return column


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["2019", "2022"], INTEGER),
        (["0", "-1", ""], INTEGER),
        ([" 5", "6 "], INTEGER),
        (["9007199254740991", "-9007199254740991"], INTEGER),
        (["9.5", "12", "30.25"], FLOAT),
        (["9.50", "12.25", "30.00"], FLOAT),
        (["12.0", "9.25", "0.30000000000000004"], FLOAT),
        (["1e5", "-2.5E-3"], FLOAT),
        (["true", "False", "TRUE"], BOOL),
        ([], STRING),
        (["", ""], STRING),
        (["9007199254740992", "1"], STRING),
        (["9" * 400, "1"], STRING),
        (["1e999"], STRING),
        (["007", "12"], STRING),
        (["12", "007"], STRING),
        (["00.5"], STRING),
        (["+4915112345678"], STRING),
        (["3.9", "3.10", "3.11"], STRING),
        (["3.10", "3.9"], STRING),
        (["1,234"], STRING),
        (["1_000"], STRING),
        (["٣"], STRING),
        (["1", "n/a"], STRING),
        (["nan"], STRING),
        (["inf"], STRING),
        (["true", "1"], STRING),
        (["yes", "no"], STRING),
        (["-"], STRING),
        (["1."], STRING),
        (["2024-01-31"], STRING),
        (["0x10"], STRING),
    ],
)
def test_a_column_has_a_type_only_if_every_cell_fits_and_nothing_is_lost(
    cells: list[str], expected: ColumnType
):
    assert guess(cells).column_type is expected


def test_the_cell_that_spoils_a_column_is_known():
    assert guess(["", "1", "2", "n/a", "5", "x"]).misfit == (5, "n/a")
    assert guess(["a", "1"]).misfit is None
    assert guess(["1", "2.5"]).misfit is None


CELLS = st.one_of(
    st.integers().map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.decimals(allow_nan=False, allow_infinity=False, places=2).map(str),
    st.booleans().map(str),
    st.text(max_size=5),
    st.sampled_from(["", "007", "1.10", "1.9", "-0", "1e3"]),
)


@given(st.lists(CELLS, max_size=6))
def test_every_cell_fits_the_inferred_type_and_keeps_its_value(cells: list[str]):
    kind = guess(cells).column_type
    for cell in filter(None, cells):
        value = convert(cell, kind)
        if kind is INTEGER:
            assert str(value) == cell.strip()
        elif kind is FLOAT:
            assert value == float(cell)
        elif kind is BOOL:
            assert str(value).lower() == cell.strip().lower()
        else:
            assert value == cell


@pytest.mark.parametrize(
    ("cell", "column_type", "expected"),
    [
        ("007", INTEGER, 7),
        ("+5 ", INTEGER, 5),
        ("3", FLOAT, 3.0),
        (".5", FLOAT, 0.5),
        ("Yes", BOOL, True),
        ("0", BOOL, False),
        (" 1", STRING, " 1"),
    ],
)
def test_a_given_type_is_more_generous(cell: str, column_type: ColumnType, expected: object):
    converted = convert(cell, column_type)
    assert converted == expected
    assert type(converted) is type(expected)


@pytest.mark.parametrize(
    ("cell", "column_type", "message"),
    [
        ("n/a", INTEGER, "must be a whole number"),
        ("1.5", INTEGER, "must be a whole number"),
        ("1_000", INTEGER, "must be a whole number"),
        ("9" * 5_000, INTEGER, "must be a whole number"),
        ("9007199254740992", INTEGER, "must be a whole number up to 2\\^53-1"),
        ("nan", FLOAT, "must be a number"),
        ("1e999", FLOAT, "must be a number"),
        ("maybe", BOOL, "must be one of true, false, yes, no, 1, 0"),
    ],
)
def test_a_cell_that_does_not_fit_is_refused(cell: str, column_type: ColumnType, message: str):
    with pytest.raises(ValueError, match=f"^{message}"):
        convert(cell, column_type)


def test_types_are_parsed():
    assert parse_types("year:integer, a:b:bool,*:string") == {"year": INTEGER, "a:b": BOOL, "*": STRING}


@pytest.mark.parametrize("text", ["year", "year:int", ":integer", "year:integer,"])
def test_a_bad_entry_is_named(text: str):
    with pytest.raises(
        InvalidInput, match="types: '.*' must be column:type, where type is one of string, integer"
    ):
        parse_types(text)
