"""What is suspicious about a filter that matches nothing, judged by a sample of the documents.

    year >= 2020  ->  "year" is a string in all 97 documents that have it, ...; a number matches none of them

A filter on the wrong type matches nothing and is no error: attributes of other documents may have that type.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

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
)

SAMPLE_DOCUMENTS = 256
# Of a filter with more attributes, the first ones are looked at.
_MAX_EXPECTATIONS = 16

_INDEXES = re.compile(r"(?:\[\d*\])+$")
# How each of the formats begins that Qdrant reads as a time.
_TIME = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]|$)")
_STRING, _TIME_STRING, _NUMBER, _BOOLEAN, _OBJECT = (
    "a string",
    "a date or time",
    "a number",
    "a boolean",
    "an object",
)


def filter_fields(condition: Filter) -> list[str]:
    """The attributes that documents must have to match, the first of them if there are many."""
    return list(dict.fromkeys(field for field, _ in _expectations(condition)))


def filter_warnings(condition: Filter, sample: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """One sentence for each attribute that does not occur, or never with the type that is compared with.

    Args:
        sample: the attributes of some documents.
    """
    found = [_warning(*one, sample) for one in _expectations(condition)] if sample else []
    return tuple(dict.fromkeys(filter(None, found)))


def _expectations(condition: Filter) -> list[tuple[str, str]]:
    """Attributes and the types that they are compared with, each pair once; "" for any type."""
    pairs = dict.fromkeys((one.field, _wanted(one)) for one in _conditions_on_fields(condition))
    return list(pairs)[:_MAX_EXPECTATIONS]


_OnField = FieldMatch | FieldRange | FieldTimeRange | FieldPrefix | FieldExists


def _conditions_on_fields(condition: Condition) -> Iterator[_OnField]:
    """Conditions that a missing attribute cannot meet. What must not match may well be missing."""
    match condition:
        case Filter():
            for child in (*condition.must, *condition.should):
                yield from _conditions_on_fields(child)
        case HasId() | FieldIsNull():
            pass
        case _:
            yield condition


def _warning(field: str, wanted: str, sample: Sequence[Mapping[str, Any]]) -> str:
    kinds = [{_kind(value) for value in _values(attributes, field)} for attributes in sample]
    present = [one for one in kinds if one]
    name = f'"{field}"'
    if not present:
        return f"{name} does not occur in a sample of {len(sample):,} documents"
    occurring = set().union(*present)
    if not wanted or wanted in occurring or (wanted == _STRING and _TIME_STRING in occurring):
        return ""
    return (
        f"{name} is {' or '.join(sorted(occurring))} in all {len(present):,} documents that have it, "
        f"of a sample of {len(sample):,}; {wanted} matches none of them"
    )


def _wanted(condition: _OnField) -> str:
    match condition:
        case FieldMatch(_, values):
            return _kind(values[0]) if values and not isinstance(values[0], str) else _STRING
        case FieldRange():
            return _NUMBER
        case FieldTimeRange():
            return _TIME_STRING
        case FieldPrefix():
            return _STRING
    return ""


def _kind(value: Any) -> str:
    match value:
        case bool():
            return _BOOLEAN
        case int() | float():
            return _NUMBER
        case str():
            return _TIME_STRING if _TIME.match(value) else _STRING
    return _OBJECT


def _values(attributes: Any, field: str) -> list[Any]:
    """The values at a path; those of all elements of a list, with or without [] in the path."""
    values = [attributes]
    for part in field.split("."):
        key = _INDEXES.sub("", part)
        values = [value[key] for value in _elements(values) if isinstance(value, Mapping) and key in value]
    return [value for value in _elements(values) if value is not None]


def _elements(values: list[Any]) -> list[Any]:
    """The values, with the elements of lists instead of the lists."""
    flat: list[Any] = []
    for value in values:
        flat += _elements(value) if isinstance(value, list) else [value]
    return flat
