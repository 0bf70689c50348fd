"""Our filters as Qdrant's."""

from __future__ import annotations

import re

from qdrant_client import models

from textmatch.errors import InvalidInput
from textmatch.filters import Condition, FieldExists, FieldMatch, FieldRange, Filter

_ATTRIBUTES_PREFIX = "attributes."
# What Qdrant reads without quotes, with the places of a list: all elements, or one.
_PLAIN_PART = re.compile(r"[A-Za-z0-9_-]+(?:\[\d*\])*")


def to_qdrant(condition: Filter) -> models.Filter:
    """The whole tree; an empty filter fits everything."""
    return models.Filter(
        must=[_condition(child) for child in condition.must] or None,
        should=[_condition(child) for child in condition.should] or None,
        must_not=[_condition(child) for child in condition.must_not] or None,
    )


def attribute_key(field: str) -> str:
    """The path of an attribute as Qdrant reads it; names with spaces or in other scripts get quotes.

    Raises:
        InvalidInput: naming the field, if a part of its name is empty or holds a quote.
    """
    parts = field.split(".")
    if any(not part or '"' in part for part in parts):
        description = 'is not the path of an attribute: parts joined by dots, none empty or with a "'
        raise InvalidInput.of_field(f"filter field {field!r}", description)
    quoted = (part if _PLAIN_PART.fullmatch(part) else f'"{part}"' for part in parts)
    return _ATTRIBUTES_PREFIX + ".".join(quoted)


def _condition(condition: Condition) -> models.Condition:
    match condition:
        case Filter():
            return to_qdrant(condition)
        case FieldMatch(field, values):
            return _match(attribute_key(field), values)
        case FieldRange(field):
            bounds = models.Range(gt=condition.gt, gte=condition.gte, lt=condition.lt, lte=condition.lte)
            return models.FieldCondition(key=attribute_key(field), range=bounds)
        case FieldExists(field):
            is_empty = models.IsEmptyCondition(is_empty=models.PayloadField(key=attribute_key(field)))
            return models.Filter(must_not=[is_empty])


def _match(key: str, values: tuple[str | int | bool, ...]) -> models.Condition:
    # Qdrant matches "any of" for strings and whole numbers; booleans only one at a time.
    if any(isinstance(value, bool) for value in values):
        return models.Filter(
            should=[models.FieldCondition(key=key, match=models.MatchValue(value=value)) for value in values]
        )
    return models.FieldCondition(key=key, match=models.MatchAny(any=list(values)))  # type: ignore[arg-type]
