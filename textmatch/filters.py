"""Filters over the attributes and ids of documents. The client, the matcher and the index share this tree.

    Filter(must=(FieldMatch("language", ("zh",)), FieldTimeRange("published", gte=parse_time("2024-01-01"))))

The `field` of a condition is a path below `attributes`, parts joined by dots: "author.name".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeAlias

# Of the field of a condition.
MAX_FIELD_BYTES = 256

Value: TypeAlias = str | int | float | bool
Number: TypeAlias = int | float

_TIME = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?(?:Z|[+-]\d\d:\d\d)?)?", re.ASCII)


def parse_time(text: str) -> datetime:
    """A date or a time, in UTC unless it has an offset: "2024-01-31", "2024-01-31T12:00:00+08:00".

    A date is its first moment.

    Raises:
        ValueError: it is neither.
    """
    if not _TIME.fullmatch(text):
        raise ValueError("must look like 2024-01-31 or 2024-01-31T12:00:00Z")
    return in_utc(datetime.fromisoformat(text))


def in_utc(moment: datetime) -> datetime:
    """The same moment in UTC; a time without an offset is one in UTC."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


@dataclass(frozen=True)
class FieldMatch:
    """The attribute equals any of the values. A list matches if any of its elements does.

    Args:
        values: strings, numbers or booleans, all of one type.
    """

    field: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class FieldRange:
    """The attribute is a number within the given bounds."""

    field: str
    gt: float | None = None
    gte: float | None = None
    lt: float | None = None
    lte: float | None = None


@dataclass(frozen=True)
class FieldTimeRange:
    """The attribute is a string with a date or a time within the given bounds. `parse_time` makes bounds."""

    field: str
    gt: datetime | None = None
    gte: datetime | None = None
    lt: datetime | None = None
    lte: datetime | None = None


@dataclass(frozen=True)
class FieldPrefix:
    """The attribute is a string that starts with `prefix`. Needs Qdrant 1.19 or newer."""

    field: str
    prefix: str


@dataclass(frozen=True)
class FieldExists:
    """The attribute exists and is neither null nor an empty list."""

    field: str


@dataclass(frozen=True)
class FieldIsNull:
    """The attribute exists and is null, or a list with a null. A missing attribute does not match."""

    field: str


@dataclass(frozen=True)
class HasId:
    """The document has one of these ids."""

    ids: tuple[str, ...]


@dataclass(frozen=True)
class Filter:
    """Matches if all of `must`, `min_should` of `should` (if there are any) and none of `must_not` match."""

    must: tuple[Condition, ...] = ()
    should: tuple[Condition, ...] = ()
    must_not: tuple[Condition, ...] = ()
    min_should: int = 1

    @property
    def is_empty(self) -> bool:
        """Whether it has no condition but empty filters, and so matches every document."""
        children = (*self.must, *self.should)
        return not self.must_not and all(isinstance(one, Filter) and one.is_empty for one in children)


Condition: TypeAlias = (
    FieldMatch | FieldRange | FieldTimeRange | FieldPrefix | FieldExists | FieldIsNull | HasId | Filter
)


def is_number(value: Value) -> bool:
    """Whether it is a number; booleans are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def have_one_type(values: tuple[Value, ...]) -> bool:
    """Whether all values are strings, all numbers or all booleans."""
    return len({float if is_number(value) else type(value) for value in values}) <= 1
