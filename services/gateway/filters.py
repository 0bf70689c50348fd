"""Filters in JSON, as an alternative to the syntax of `where`.

{"must": [{"match": {"field": "module", "values": ["os"]}}, {"range": {"field": "year", "gte": 2020}}],
 "must_not": [{"exists": {"field": "deprecated"}}]}
"""

from __future__ import annotations

from typing import Self, TypeAlias

from pydantic import Field, StrictBool, StrictInt, StrictStr, model_validator

from services.gateway.caller import StrictBody
from textmatch.client import FieldExists, FieldMatch, FieldRange, Filter
from textmatch.errors import InvalidInput
from textmatch.filters import Condition


class MatchCondition(StrictBody):
    """The attribute equals one of the values."""

    field: str = Field(examples=["author.name"])
    values: list[StrictBool | StrictInt | StrictStr] = Field(min_length=1)

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
        return FieldRange(self.field, self.gt, self.gte, self.lt, self.lte)


class ExistsCondition(StrictBody):
    """The attribute exists and is neither null nor an empty list."""

    field: str

    def to_condition(self) -> Condition:
        """The condition for the client."""
        return FieldExists(self.field)


class ConditionBody(StrictBody):
    """Exactly one kind of condition."""

    match: MatchCondition | None = None
    range: RangeCondition | None = None
    exists: ExistsCondition | None = None
    filter: FilterBody | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self._given()) != 1:
            kinds = ", ".join(type(self).model_fields)
            raise ValueError(f"must have exactly one of {kinds}")
        return self

    def to_condition(self) -> Condition:
        """The condition for the client."""
        return self._given()[0].to_condition()

    def _given(self) -> list[AnyCondition]:
        return [one for one in (self.match, self.range, self.exists, self.filter) if one is not None]


class FilterBody(StrictBody):
    """All of `must`, at least one of `should` if there are any, and none of `must_not`."""

    must: list[ConditionBody] = Field(default_factory=list)
    should: list[ConditionBody] = Field(default_factory=list)
    must_not: list[ConditionBody] = Field(default_factory=list)

    def to_condition(self) -> Filter:
        """The filter for the client."""
        clauses = self.must, self.should, self.must_not
        return Filter(*(tuple(one.to_condition() for one in clause) for clause in clauses))


AnyCondition: TypeAlias = MatchCondition | RangeCondition | ExistsCondition | FilterBody


def to_where(where: str | None, filter_body: FilterBody | None) -> Condition | str | None:
    """The filter of a request that may give it in either form.

    Raises:
        InvalidInput: it has both forms.
    """
    if where is not None and filter_body is not None:
        raise InvalidInput.of_field("filter", "is given twice; give either where or filter")
    return where if filter_body is None else filter_body.to_condition()
