"""Filters in JSON are those of the syntax of `where`."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import ValidationError

from services.gateway.filters import ConditionBody, FilterBody, to_where
from textmatch.errors import InvalidInput
from textmatch.filter_syntax import parse
from textmatch.filters import Condition


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"must": [{"match": {"field": "a", "values": ["x"]}}]}, 'a = "x"'),
        ({"must": [{"match": {"field": "a", "values": [1, 2]}}]}, "a in (1, 2)"),
        ({"must": [{"match": {"field": "a", "values": [True]}}]}, "a = true"),
        ({"must": [{"match": {"field": "a", "values": [1.5]}}]}, "a = 1.5"),
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


def test_every_kind_of_condition_has_a_form_in_json():
    forms = {
        "match": {"field": "a", "values": [1]},
        "range": {"field": "a", "gt": 1},
        "time_range": {"field": "a", "gt": "2024-01-31"},
        "prefix": {"field": "a", "prefix": "x"},
        "exists": {"field": "a"},
        "is_null": {"field": "a"},
        "has_id": {"ids": ["x"]},
        "filter": {"should": [{"exists": {"field": "a"}}, {"exists": {"field": "b"}}], "min_should": 2},
    }
    body = FilterBody.model_validate({"must": [{name: form} for name, form in forms.items()]})
    assert {type(one) for one in body.to_condition().must} == set(get_args(Condition))
    assert forms.keys() == ConditionBody.model_fields.keys()


@pytest.mark.parametrize(
    "condition",
    [
        {},
        {"exists": {"field": "a"}, "range": {"field": "a", "gt": 1}},
        {"equals": {"field": "a"}},
        {"match": {"field": "a", "values": []}},
        {"match": {"field": "a", "values": [None]}},
        {"range": {"field": "a", "gt": "1"}},
        {"time_range": {"field": "a", "gt": "yesterday"}},
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
