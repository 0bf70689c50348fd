"""The grammar of --where."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textmatch.errors import InvalidInput
from textmatch.filter_syntax import parse
from textmatch.filters import (
    Condition,
    FieldExists,
    FieldIsNull,
    FieldMatch,
    FieldPrefix,
    FieldRange,
    FieldTimeRange,
    Filter,
    HasId,
    Value,
    parse_time,
)

NAMES = st.sampled_from(
    [
        "a",
        "b",
        "author.age",
        "not",
        "In",
        "id",
        "text",
        "attributes.a",
        "at",
        "two words",
        "带 空格",
        "tick`\\",
        "9",
    ]
)
TEXTS = st.sampled_from(["", "os", "O'Reilly", 'say "hi"', "back\\slash", "new\nline", "深度 学习", "\\n"])
NUMBERS = st.one_of(st.integers(-3, 3), st.sampled_from([0.5, -1.5, 1e-3]))
TIMES = st.sampled_from(["2024-01-01", "2024-01-01T12:00:00Z", "2024-02-29 23:59:59.5+08:00", "2025-01-01"])
IDS = st.sampled_from(["doc-1", "doc-2", "文档 3"])
MATCHES = st.builds(
    FieldMatch,
    NAMES,
    st.one_of(
        st.lists(TEXTS, min_size=1, max_size=3).map(tuple),
        st.lists(NUMBERS, min_size=1, max_size=3).map(tuple),
        st.lists(st.booleans(), min_size=1, max_size=2).map(tuple),
    ),
)


def bounds_of(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(["gt", "gte", "lt", "lte"]), values, min_size=1)


BOUNDS = bounds_of(st.one_of(NUMBERS.map(float), st.floats(-1e6, 1e6)))
RANGES = st.builds(lambda name, bounds: FieldRange(name, **bounds), NAMES, BOUNDS)
TIME_BOUNDS = bounds_of(TIMES.map(parse_time))
TIME_RANGES = st.builds(lambda name, bounds: FieldTimeRange(name, **bounds), NAMES, TIME_BOUNDS)
LEAVES = st.one_of(
    MATCHES,
    RANGES,
    TIME_RANGES,
    st.builds(FieldExists, NAMES),
    st.builds(FieldIsNull, NAMES),
    st.builds(FieldPrefix, NAMES, TEXTS),
    st.builds(HasId, st.lists(IDS, min_size=1, max_size=2).map(tuple)),
)


@st.composite
def several_of(draw: st.DrawFn, children: st.SearchStrategy[Condition]) -> Filter:
    should = draw(st.lists(children, min_size=1, max_size=3))
    return Filter(should=tuple(should), min_should=draw(st.integers(1, len(should))))


def branch(children: st.SearchStrategy[Condition]) -> st.SearchStrategy[Condition]:
    parts = st.lists(children, max_size=2).map(tuple)
    plain = st.builds(Filter, parts, parts, parts).filter(lambda one: one != Filter())
    return st.one_of(plain, several_of(children))


FILTERS = branch(st.recursive(LEAVES, branch, max_leaves=5))
VALUES = st.one_of(TEXTS, TIMES, NUMBERS, st.booleans(), st.none(), st.lists(NUMBERS, max_size=2))
# The id of a document is under a key that no attribute has.
ID = ""
DOCUMENTS = st.builds(lambda one, attributes: {ID: one, **attributes}, IDS, st.dictionaries(NAMES, VALUES))


def fits(condition: Condition, document: Mapping[str, Any]) -> bool:
    """What a filter means, said again in the plainest way."""
    if isinstance(condition, Filter):
        return (
            all(fits(one, document) for one in condition.must)
            and sum(fits(one, document) for one in condition.should)
            >= min(condition.min_should, len(condition.should))
            and not any(fits(one, document) for one in condition.must_not)
        )
    if isinstance(condition, HasId):
        return document.get(ID) in condition.ids
    value = document.get(condition.field)
    values = value if isinstance(value, list) else [] if value is None else [value]
    match condition:
        case FieldExists():
            return bool(values)
        case FieldIsNull(field):
            return field in document and value is None
        case FieldPrefix(_, prefix):
            return any(isinstance(one, str) and one.startswith(prefix) for one in values)
        case FieldMatch(_, wanted):
            return any((kind(one), one) in [(kind(two), two) for two in wanted] for one in values)
        case FieldTimeRange():
            return any(is_between(condition, moment(one)) for one in values if moment(one))
        case FieldRange():
            return any(is_between(condition, one) for one in values if kind(one) is float)
    raise AssertionError(condition)


def is_between(condition: FieldRange | FieldTimeRange, value: Any) -> bool:
    gt, gte, lt, lte = (getattr(condition, name) for name in ("gt", "gte", "lt", "lte"))
    return (
        (gt is None or value > gt)
        and (gte is None or value >= gte)
        and (lt is None or value < lt)
        and (lte is None or value <= lte)
    )


def kind(value: Any) -> type:
    return float if type(value) is int else type(value)


def moment(value: Any) -> datetime | None:
    try:
        return parse_time(value) if isinstance(value, str) else None
    except ValueError:
        return None


def written(condition: Condition) -> str:
    """A text for the condition, in brackets if it has several parts."""
    if isinstance(condition, Filter):
        alternatives = joined(" or ", [written(one) for one in condition.should])
        if condition.min_should > 1:
            alternatives = f"At least {condition.min_should} OF ({', '.join(map(written, condition.should))})"
        excluded = [f"not {written(one)}" for one in condition.must_not]
        return joined(" and ", [*map(written, condition.must), *filter(None, [alternatives]), *excluded])
    if isinstance(condition, HasId):
        return f"id in ({', '.join(map(written_value, condition.ids))})"
    field = "`" + condition.field.replace("\\", "\\\\").replace("`", "\\`") + "`"
    match condition:
        case FieldExists():
            return f"{field} exists"
        case FieldIsNull():
            return f"{field} is NULL"
        case FieldPrefix(_, prefix):
            return f"{field} starts with {written_value(prefix)}"
        case FieldMatch(_, values):
            return f"{field} in ({', '.join(map(written_value, values))})"
    bounds = {">": condition.gt, ">=": condition.gte, "<": condition.lt, "<=": condition.lte}
    return joined(
        " and ",
        [f"{field} {sign} {written_bound(bound)}" for sign, bound in bounds.items() if bound is not None],
    )


def joined(word: str, parts: list[str]) -> str:
    return f"({word.join(parts)})" if len(parts) > 1 else "".join(parts)


def written_bound(bound: float | datetime) -> str:
    return f'"{bound.isoformat()}"' if isinstance(bound, datetime) else repr(bound)


def written_value(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    return repr(value)


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
        ("price in (9.5, 12)", Filter(must=(FieldMatch("price", (9.5, 12)),))),
        ("n = 1e3", Filter(must=(FieldMatch("n", (1000,)),))),
        (
            'published >= "2024-01-31" and published < "2024-02-01T08:00:00+08:00"',
            Filter(
                must=(
                    FieldTimeRange("published", gte=datetime(2024, 1, 31, tzinfo=UTC)),
                    FieldTimeRange("published", lt=datetime(2024, 2, 1, tzinfo=UTC)),
                )
            ),
        ),
        ('published = "2024-01-31"', Filter(must=(FieldMatch("published", ("2024-01-31",)),))),
        ('path Starts With "docs/"', Filter(must=(FieldPrefix("path", "docs/"),))),
        ("deleted is null", Filter(must=(FieldIsNull("deleted"),))),
        ("is is null and at = 1", Filter(must=(FieldIsNull("is"), FieldMatch("at", (1,))))),
        ('id = "a"', Filter(must=(HasId(("a",)),))),
        ('id not in ("a", "b")', Filter(must_not=(HasId(("a", "b")),))),
        ('attributes.id = "a"', Filter(must=(FieldMatch("id", ("a",)),))),
        ("`id` exists", Filter(must=(FieldExists("id"),))),
        ('attributes.text starts with "a"', Filter(must=(FieldPrefix("text", "a"),))),
        ("attributes.attributes.n = 1", Filter(must=(FieldMatch("attributes.n", (1,)),))),
        ("`attributes.n` = 1", Filter(must=(FieldMatch("attributes.n", (1,)),))),
        (
            "at least 2 of (a = 1, b = 2 or c = 3, not d exists)",
            Filter(
                should=(
                    FieldMatch("a", (1,)),
                    Filter(should=(FieldMatch("b", (2,)), FieldMatch("c", (3,)))),
                    Filter(must_not=(FieldExists("d"),)),
                ),
                min_should=2,
            ),
        ),
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
        (
            "a = null",
            'character 5: expected a text in quotes, a number, true or false; for null, write "is null"',
        ),
        ("a is not null", 'character 6: expected "null"; the opposite is "exists"'),
        ("a starts 'x'", 'character 10: expected "with"'),
        ("a starts with 5", "character 15: expected a text in quotes"),
        ("a = 9007199254740992", "character 5: expected a whole number up to 2^53-1"),
        ("a >= -9007199254740993", "character 6: expected a whole number up to 2^53-1"),
        ("a = " + "9" * 5_000, "character 5: expected a finite number"),
        ("a < 1e999", "character 5: expected a finite number"),
        ("id > 5", "character 4: expected one of = != "),
        (
            "id = 5",
            'character 4: expected ids in quotes; an attribute that is named id is written "attributes.id"',
        ),
        ("text = 'x'", "character 1: expected an attribute; an attribute that is named text is written"),
        ("at least 3 of (a = 1, b = 2)", "character 10: expected a whole number from 1 to 2"),
        ("at least 1.5 of (a = 1, b = 2)", "character 10: expected a whole number from 1 to 2"),
        ("at least of (a = 1)", "character 10: expected a whole number"),
        ("at least 1 (a = 1)", 'character 12: expected "of"'),
        ("a in (1, true)", "character 6: expected values of one type"),
        ('a = "os', 'character 5: expected a text that ends with "'),
        ("a = 'os and b = 1", "character 5: expected a text that ends with '"),
        ("`a = 1", "character 1: expected a text that ends with `"),
        ("a in [1, 2]", "character 6: expected an attribute, a value, a comparison or a round bracket"),
        ("a in (1, 'x')", "character 6: expected values of one type"),
        ("a in ()", "character 7: expected a text"),
        ("(a = 1", 'character 7: expected ")"'),
        ("a = 1 b = 2", 'character 7: expected "and"'),
        ("a < 'x'", 'character 5: expected a number, or a time in quotes such as "2024-01-31"'),
        ("a < '2024-02-30'", "character 5: expected a number, or a time in quotes"),
        ("a < '20240131'", "character 5: expected a number, or a time in quotes"),
        ("a < true", "character 5: expected a number, or a time in quotes"),
        ("and = 1", "character 1: expected the name"),
        ("a = 1 and ; b = 2", "character 11: expected an attribute"),
        ("(" * 20 + "a = 1" + ")" * 20, "at most 8 levels"),
    ],
)
def test_what_cannot_be_read_is_named_by_its_place(text: str, message: str):
    with pytest.raises(InvalidInput, match=re.escape(message)) as raised:
        parse(text)
    assert raised.value.violations[0].field == "where"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-01-31", datetime(2024, 1, 31, tzinfo=UTC)),
        ("2024-01-31 12:30", datetime(2024, 1, 31, 12, 30, tzinfo=UTC)),
        ("2024-01-31T12:30:15.25Z", datetime(2024, 1, 31, 12, 30, 15, 250_000, tzinfo=UTC)),
        (
            "2024-01-31T12:30:15-05:00",
            datetime(2024, 1, 31, 12, 30, 15, tzinfo=timezone(-timedelta(hours=5))),
        ),
    ],
)
def test_a_time_is_in_utc_unless_it_says_otherwise(text: str, expected: datetime):
    parsed = parse_time(text)
    assert parsed == expected
    assert parsed.tzinfo is UTC


@pytest.mark.parametrize(
    "text", ["", "2024", "2024-1-31", "2024-02-30", "today", "2024-01-31T25:00", "２024-01-31"]
)
def test_what_is_no_time_is_refused(text: str):
    with pytest.raises(ValueError, match=r".+"):
        parse_time(text)
