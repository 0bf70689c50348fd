"""Filters in JSON, as an alternative to the syntax of `where`. They have the names of the messages in gRPC.

{"must": [{"match": {"field": "module", "values": ["os"]}}, {"range": {"field": "year", "gte": 2020}}],
 "must_not": [{"exists": {"field": "deprecated"}}]}
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Self, TypeAlias

from pydantic import BeforeValidator, Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from services.gateway.caller import StrictBody
from textmatch.client import (
    FieldExists,
    FieldIsNull,
    FieldMatch,
    FieldPrefix,
    FieldRange,
    FieldTimeRange,
    Filter,
    HasId,
    parse_time,
)
from textmatch.errors import InvalidInput
from textmatch.filters import Condition


def _to_time(value: Any) -> Any:
    return parse_time(value) if isinstance(value, str) else value


Time: TypeAlias = Annotated[datetime, BeforeValidator(_to_time, json_schema_input_type=str)]


class MatchCondition(StrictBody):
    """The attribute equals one of the values, which have one type."""

    field: str = Field(examples=["author.name"])
    values: list[StrictBool | StrictInt | StrictFloat | StrictStr] = Field(min_length=1)

    def to_condition(self) -> Condition:
        """The condition for the client."""
        return FieldMatch(self.field, tuple(self.values))


class RangeCondition(StrictBody):
    """The attribute is a number within the bounds."""

    field: str
    gt: float | None = None
    gte: float | None = None
    lt: float | None = None
    lte: float | None = None

    def to_condition(self) -> Condition:
        """The condition for the client."""
        return FieldRange(**dict(self))


class TimeRangeCondition(StrictBody):
    """The attribute is a string with a date or a time within the bounds: "2024-01-31", RFC 3339."""

    field: str
    gt: Time | None = None
    gte: Time | None = None
    lt: Time | None = None
    lte: Time | None = None

    def to_condition(self) -> Condition:
        """The condition for the client."""
        return FieldTimeRange(**dict(self))


class PrefixCondition(StrictBody):
    """The attribute is a string that starts with `prefix`."""

    field: str
    prefix: str

    def to_condition(self) -> Condition:
        """The condition for the client."""
        return FieldPrefix(self.field, self.prefix)


class ExistsCondition(StrictBody):
    """The attribute exists and is neither null nor an empty list."""

    field: str

    def to_condition(self) -> Condition:
        """The condition for the client."""
        return FieldExists(self.field)


class IsNullCondition(StrictBody):
    """The attribute exists and is null, or a list with a null."""

    field: str

    def to_condition(self) -> Condition:
        """The condition for the client."""
        return FieldIsNull(self.field)


class HasIdCondition(StrictBody):
    """The document has one of these ids."""

    ids: list[str]

    def to_condition(self) -> Condition:
        """The condition for the client."""
        return HasId(tuple(self.ids))


class ConditionBody(StrictBody):
    """Exactly one kind of condition."""

    match: MatchCondition | None = None
    range: RangeCondition | None = None
    time_range: TimeRangeCondition | None = None
    prefix: PrefixCondition | None = None
    exists: ExistsCondition | None = None
    is_null: IsNullCondition | None = None
    has_id: HasIdCondition | None = None
    filter: FilterBody | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self._given()) != 1:
            kinds = ", ".join(type(self).model_fields)
            raise ValueError(f"must have exactly one of {kinds}")
        return self

    def to_condition(self) -> Condition:
        """The condition for the client."""
        condition: Condition = self._given()[0].to_condition()
        return condition

    def _given(self) -> list[Any]:
        return [one for _, one in self if one is not None]


class FilterBody(StrictBody):
    """All of `must`, `min_should` of `should` if there are any, and none of `must_not`."""

    must: list[ConditionBody] = Field(default_factory=list)
    should: list[ConditionBody] = Field(default_factory=list)
    must_not: list[ConditionBody] = Field(default_factory=list)
    min_should: int = Field(1, ge=1)

    def to_condition(self) -> Filter:
        """The filter for the client."""
        clauses = self.must, self.should, self.must_not
        must, should, must_not = (tuple(one.to_condition() for one in clause) for clause in clauses)
        return Filter(must, should, must_not, self.min_should)


def to_where(where: str | None, filter_body: FilterBody | None) -> Condition | str | None:
    """The filter of a request that may give it in either form.

    Raises:
        InvalidInput: it has both forms.
    """
    if where is not None and filter_body is not None:
        raise InvalidInput.of_field("filter", "is given twice; give either where or filter")
    return where if filter_body is None else filter_body.to_condition()
