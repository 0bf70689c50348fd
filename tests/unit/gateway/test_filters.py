"""Filters in JSON are those of the syntax of `where`."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from services.gateway.filters import FilterBody, to_where
from textmatch.errors import InvalidInput
from textmatch.filter_syntax import parse


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"must": [{"match": {"field": "a", "values": ["x"]}}]}, 'a = "x"'),
        ({"must": [{"match": {"field": "a", "values": [1, 2]}}]}, "a in (1, 2)"),
        ({"must": [{"match": {"field": "a", "values": [True]}}]}, "a = true"),
        ({"must_not": [{"exists": {"field": "a.b"}}]}, "not a.b exists"),
        (
            {"should": [{"range": {"field": "a", "gte": 1}}, {"range": {"field": "a", "lt": -1.5}}]},
            "a >= 1 or a < -1.5",
        ),
        (
            {
                "must": [
                    {"match": {"field": "a", "values": [1]}},
                    {"filter": {"should": [{"exists": {"field": "b"}}, {"exists": {"field": "c"}}]}},
                ]
            },
            "a = 1 and (b exists or c exists)",
        ),
    ],
)
def test_a_filter_in_json_is_the_one_in_the_syntax(body: dict[str, Any], where: str):
    assert to_where(None, FilterBody.model_validate(body)) == parse(where)


@pytest.mark.parametrize(
    "condition",
    [
        {},
        {"exists": {"field": "a"}, "range": {"field": "a", "gt": 1}},
        {"equals": {"field": "a"}},
        {"match": {"field": "a", "values": []}},
        {"match": {"field": "a", "values": [None]}},
        {"range": {"field": "a", "gt": "1"}},
    ],
)
def test_a_condition_is_exactly_one_of_the_kinds(condition: dict[str, Any]):
    with pytest.raises(ValidationError):
        FilterBody.model_validate({"must": [condition]})


def test_one_form_at_a_time():
    assert to_where("a = 1", None) == "a = 1"
    assert to_where(None, None) is None
    with pytest.raises(InvalidInput, match="give either where or filter"):
        to_where("a = 1", FilterBody())
