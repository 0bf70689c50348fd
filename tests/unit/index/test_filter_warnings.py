from __future__ import annotations

import pytest

from textmatch.filter_syntax import parse
from textmatch.index.filter_warnings import filter_fields, filter_warnings

SAMPLE = [
    {
        "year": "2019",
        "price": 9.5,
        "at": "2024-01-31",
        "tags": ["a", None],
        "author": {"age": 5},
        "old": True,
    },
    {"year": "2020", "price": 3, "at": "2024-01-31T12:00:00Z", "notes": [{"by": "ann"}], "mixed": 1},
    {"year": None, "tags": [], "mixed": "one"},
]


@pytest.mark.parametrize(
    "where",
    [
        'year = "2021"',
        'year starts with "3"',
        "price > 10 and price = 5",
        "mixed = 5",
        'mixed = "5"',
        'at >= "2025-01-01"',
        'at = "2025-01-01"',
        'tags = "z"',
        'tags[] = "z"',
        'tags[0] = "z"',
        "author.age = 7",
        'notes.by = "bob"',
        'notes[].by = "bob"',
        "old = false",
        "year exists",
        "missing is null",
        "not missing = 5",
        'id = "x"',
    ],
)
def test_a_filter_that_could_match_gets_no_warning(where: str):
    assert filter_warnings(parse(where), SAMPLE) == ()


@pytest.mark.parametrize(
    ("where", "warning"),
    [
        ("year >= 2020", '"year" is a string in all 2 documents that have it, of a sample of 3; a number'),
        ("year = 2020", '"year" is a string in all 2 documents that have it, of a sample of 3; a number'),
        ('year >= "2020-01-01"', '"year" is a string in all 2 documents'),
        ('price = "9.5"', '"price" is a number in all 2 documents that have it, of a sample of 3; a string'),
        ("mixed = true", '"mixed" is a number or a string in all 2 documents'),
        ("author = 5", '"author" is an object in all 1 documents'),
        ("author.age = 5 or yaer = 5", '"yaer" does not occur in a sample of 3 documents'),
        ("yaer exists", '"yaer" does not occur in a sample of 3 documents'),
        ("at least 1 of (old = 1, year = 5 and price = 1)", '"old" is a boolean in all 1 documents'),
    ],
)
def test_a_type_that_never_occurs_is_named(where: str, warning: str):
    warnings = filter_warnings(parse(where), SAMPLE)
    assert warnings[0].startswith(warning)


def test_each_warning_comes_once():
    condition = parse("year >= 2020 and year < 2021 and (yaer = 1 or yaer = 2)")
    assert filter_fields(condition) == ["year", "yaer"]
    assert len(filter_warnings(condition, SAMPLE)) == 2
    assert filter_warnings(condition, []) == ()
