"""The grammar of --where."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textmatch.errors import InvalidInput
from textmatch.filter_syntax import parse
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
    return st.builds(Filter, parts, parts, parts).filter(lambda one: one != Filter())


FILTERS = branch(st.recursive(LEAVES, branch, max_leaves=5))
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


def written(condition: Condition) -> str:
    """A text for the condition, in brackets if it has several parts."""
    if isinstance(condition, Filter):
        alternatives = joined(" or ", [written(one) for one in condition.should])
        excluded = [f"not {written(one)}" for one in condition.must_not]
        return joined(" and ", [*map(written, condition.must), *filter(None, [alternatives]), *excluded])
    field = "`" + condition.field.replace("\\", "\\\\").replace("`", "\\`") + "`"
    if isinstance(condition, FieldExists):
        return f"{field} exists"
    if isinstance(condition, FieldMatch):
        return f"{field} in ({', '.join(map(written_value, condition.values))})"
    bounds = {">": condition.gt, ">=": condition.gte, "<": condition.lt, "<=": condition.lte}
    return joined(
        " and ", [f"{field} {sign} {bound!r}" for sign, bound in bounds.items() if bound is not None]
    )


def joined(word: str, parts: list[str]) -> str:
    return f"({word.join(parts)})" if len(parts) > 1 else "".join(parts)


def written_value(value: str | int | bool) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


@given(FILTERS, st.lists(DOCUMENTS, max_size=5))
def test_a_parsed_filter_means_what_is_written(condition: Filter, documents: list[Mapping[str, Any]]):
    parsed = parse(written(condition))
    for document in [{}, *documents]:
        # One document may meet two bounds with two numbers of a list only if the bounds are apart.
        plain = {name: value for name, value in document.items() if not isinstance(value, list)}
        assert fits(parsed, plain) == fits(condition, plain)


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
