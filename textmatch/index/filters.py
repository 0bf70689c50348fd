"""Our filters as Qdrant's."""

from __future__ import annotations

from qdrant_client import models

from textmatch.filters import Condition, FieldExists, FieldMatch, FieldRange, Filter

_ATTRIBUTES_PREFIX = "attributes."


def to_qdrant(condition: Filter) -> models.Filter:
    """The whole tree; an empty filter fits everything."""
    return models.Filter(
        must=[_condition(child) for child in condition.must] or None,
        should=[_condition(child) for child in condition.should] or None,
        must_not=[_condition(child) for child in condition.must_not] or None,
    )


def _condition(condition: Condition) -> models.Condition:
    match condition:
        case Filter():
            return to_qdrant(condition)
        case FieldMatch(field, values):
            return _match(_ATTRIBUTES_PREFIX + field, values)
        case FieldRange(field):
            bounds = models.Range(gt=condition.gt, gte=condition.gte, lt=condition.lt, lte=condition.lte)
            return models.FieldCondition(key=_ATTRIBUTES_PREFIX + field, range=bounds)
        case FieldExists(field):
            is_empty = models.IsEmptyCondition(is_empty=models.PayloadField(key=_ATTRIBUTES_PREFIX + field))
            return models.Filter(must_not=[is_empty])


def _match(key: str, values: tuple[str | int | bool, ...]) -> models.Condition:
    # Qdrant matches "any of" for strings and whole numbers; booleans only one at a time.
    if any(isinstance(value, bool) for value in values):
        return models.Filter(
            should=[models.FieldCondition(key=key, match=models.MatchValue(value=value)) for value in values]
        )
    return models.FieldCondition(key=key, match=models.MatchAny(any=list(values)))  # type: ignore[arg-type]
