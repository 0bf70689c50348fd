"""The grammar of --where."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textmatch.errors import InvalidInput
from textmatch.filter_syntax import parse, to_text
from textmatch.filters import Condition, FieldExists, FieldMatch, FieldRange, Filter

NAMES = st.sampled_from(["a", "b", "author.age", "not", "In", "two words", "带 空格", "tick`\\", "9lives"])
TEXTS = st.sampled_from(["", "os", "O'Reilly", 'say "hi"', "back\\slash", "new\nline", "深度 学习", "\\n"])
NUMBERS = st.integers(-3, 3)
MATCHES = st.builds(
    FieldMatch,
    NAMES,
    st.one_of(
        st.lists(TEXTS, min_size=1, max_size=3).map(tuple),
        st.lists(NUMBERS, min_size=1, max_size=3).map(tuple),
        st.lists(st.booleans(), min_size=1, max_size=2).map(tuple),
    ),
)
BOUNDS = st.dictionaries(
    st.sampled_from(["gt", "gte", "lt", "lte"]),
    st.one_of(NUMBERS.map(float), st.floats(-1e6, 1e6)),
    min_size=1,
)
RANGES = st.builds(lambda name, bounds: FieldRange(name, **bounds), NAMES, BOUNDS)
LEAVES = st.one_of(MATCHES, RANGES, st.builds(FieldExists, NAMES))


def branch(children: st.SearchStrategy[Condition]) -> st.SearchStrategy[Condition]:
    parts = st.lists(children, max_size=2).map(tuple)
    return st.builds(Filter, parts, parts, parts)


FILTERS = branch(st.recursive(LEAVES, branch, max_leaves=5)).filter(lambda one: one != Filter())
VALUES = st.one_of(TEXTS, NUMBERS, st.booleans(), st.none(), st.lists(NUMBERS, max_size=2))
DOCUMENTS = st.dictionaries(NAMES, VALUES)


def fits(condition: Condition, document: Mapping[str, Any]) -> bool:
    """What a filter means, said again in the plainest way."""
    if isinstance(condition, Filter):
        return (
            all(fits(one, document) for one in condition.must)
            and (not condition.should or any(fits(one, document) for one in condition.should))
            and not any(fits(one, document) for one in condition.must_not)
        )
    value = document.get(condition.field)
    values = value if isinstance(value, list) else [] if value is None else [value]
    if isinstance(condition, FieldExists):
        return bool(values)
    if isinstance(condition, FieldMatch):
        return any((type(one), one) in [(type(two), two) for two in condition.values] for one in values)
    numbers = [one for one in values if isinstance(one, int) and not isinstance(one, bool)]
    return any(
        (condition.gt is None or one > condition.gt)
        and (condition.gte is None or one >= condition.gte)
        and (condition.lt is None or one < condition.lt)
        and (condition.lte is None or one <= condition.lte)
        for one in numbers
    )


@given(FILTERS, st.lists(DOCUMENTS, max_size=5))
def test_a_printed_filter_means_the_same(condition: Filter, documents: list[Mapping[str, Any]]):
    try:
        printed = to_text(condition)
    except InvalidInput:
        # Nested empty filters fit everything.
        assert all(fits(condition, document) for document in documents)
        return
    parsed = parse(printed)
    for document in [{}, *documents]:
        # One document may meet two bounds with two numbers of a list only if the bounds are apart.
        plain = {name: value for name, value in document.items() if not isinstance(value, list)}
        assert fits(parsed, plain) == fits(condition, plain)


@given(FILTERS)
def test_what_was_parsed_is_printed_and_parsed_to_the_very_same(condition: Filter):
    try:
        parsed = parse(to_text(condition))
    except InvalidInput:
        return
    assert parse(to_text(parsed)) == parsed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            'module = "os" and kind in ("function", \'class\')',
            Filter(must=(FieldMatch("module", ("os",)), FieldMatch("kind", ("function", "class")))),
        ),
        (
            "year >= 2020 AND year < 2.5e3",
            Filter(must=(FieldRange("year", gte=2020), FieldRange("year", lt=2500))),
        ),
        ("a = 1 or b = true", Filter(should=(FieldMatch("a", (1,)), FieldMatch("b", (True,))))),
        (
            "a = 1 or b = 2 and not c exists",
            Filter(
                should=(
                    FieldMatch("a", (1,)),
                    Filter(must=(FieldMatch("b", (2,)),), must_not=(FieldExists("c"),)),
                )
            ),
        ),
        (
            "(a = 1 or b = 2) and c != 3",
            Filter(
                must=(Filter(should=(FieldMatch("a", (1,)), FieldMatch("b", (2,)))),),
                must_not=(FieldMatch("c", (3,)),),
            ),
        ),
        ("tags not in ('x')", Filter(must_not=(FieldMatch("tags", ("x",)),))),
        ("`first name` = '深'", Filter(must=(FieldMatch("first name", ("深",)),))),
        ("作者.年龄 > -1", Filter(must=(FieldRange("作者.年龄", gt=-1),))),
    ],
)
def test_texts_and_their_filters(text: str, expected: Filter):
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "character 1: expected the name of an attribute"),
        ("a", "character 2: expected one of ="),
        ("a = ", "character 5: expected a text in quotes"),
        ("a = os", "character 5: expected a text in quotes"),
        ("a = 1.5", "character 5: expected a text in quotes, a whole number"),
        ('a = "os', "character 5: expected an attribute"),
        ("a in (1, 'x')", "character 6: expected values of one type"),
        ("a in ()", "character 7: expected a text"),
        ("(a = 1", 'character 7: expected ")"'),
        ("a = 1 b = 2", 'character 7: expected "and"'),
        ("a < 'x'", "character 5: expected a number"),
        ("and = 1", "character 1: expected the name"),
        ("a = 1 and ; b = 2", "character 11: expected an attribute"),
        ("(" * 20 + "a = 1" + ")" * 20, "at most 8 levels"),
    ],
)
def test_what_cannot_be_read_is_named_by_its_place(text: str, message: str):
    with pytest.raises(InvalidInput, match=re.escape(message)) as raised:
        parse(text)
    assert raised.value.violations[0].field == "where"


def test_there_is_no_text_for_everything():
    with pytest.raises(InvalidInput, match="leave it out"):
        to_text(Filter())
