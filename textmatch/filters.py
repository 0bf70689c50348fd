"""Filters over the attributes of documents. The client, the matcher and the index share this tree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class FieldMatch:
    """The attribute equals any of the values. A list matches if any of its elements does.

    Args:
        field: path below `attributes`, parts joined by dots: "author.name".
        values: strings, integers or booleans, all of one type.
    """

    field: str
    values: tuple[str | int | bool, ...]


@dataclass(frozen=True)
class FieldRange:
    """The attribute is a number within the given bounds."""

    field: str
    gt: float | None = None
    gte: float | None = None
    lt: float | None = None
    lte: float | None = None


@dataclass(frozen=True)
class FieldExists:
    """The attribute exists and is neither null nor an empty list."""

    field: str


@dataclass(frozen=True)
class Filter:
    """Matches if all of `must`, at least one of `should` (if there are any) and none of `must_not` match."""

    must: tuple[Condition, ...] = ()
    should: tuple[Condition, ...] = ()
    must_not: tuple[Condition, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether it has no condition, and so matches every document."""
        return not (self.must or self.should or self.must_not)


Condition: TypeAlias = FieldMatch | FieldRange | FieldExists | Filter
