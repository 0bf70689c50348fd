"""Types of the columns of CSV and TSV files, given by the user or inferred from all cells.

    guess = ColumnGuess()
    for line_number, cell in cells:
        guess.add(cell, line_number)
    guess.column_type

A column is not text only if every cell fits the type, and nothing is lost: "007", "+49" and whole numbers
beyond 2^53-1 are text, and so are "3.9" and "3.10" in one column. Empty cells do not count.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from enum import StrEnum
from typing import Any

from textmatch.documents import MAX_EXACT_WHOLE_NUMBER
from textmatch.errors import InvalidInput

ALL_COLUMNS = "*"

_BOOLS = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}
_INFERRED_BOOLS = ("true", "false")
_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
_FLOAT = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_CANONICAL_INTEGER = re.compile(r"0|-?[1-9]\d*", re.ASCII)
_CANONICAL_FLOAT = re.compile(r"-?(?:0|[1-9]\d*)(?:\.(\d+))?(?:[eE][+-]?\d+)?", re.ASCII)


class ColumnType(StrEnum):
    """What the cells of a column stand for."""

    STRING = "string"
    INTEGER = "integer"
    FLOAT = "float"
    BOOL = "bool"


def parse_types(text: str) -> dict[str, ColumnType]:
    """Parse `year:integer,active:bool`. `*:string` stands for all other columns.

    Raises:
        InvalidInput: naming the bad entry.
    """
    types = {}
    known = ", ".join(ColumnType)
    for entry in text.split(","):
        column, _, kind = (part.strip() for part in entry.rpartition(":"))
        if not column or kind not in list(ColumnType):
            description = f"{entry.strip()!r} must be column:type, where type is one of {known}"
            raise InvalidInput.of_field("types", description)
        types[column] = ColumnType(kind)
    return types


def convert(cell: str, column_type: ColumnType) -> Any:
    """The value of a cell that is not empty.

    Raises:
        ValueError: it does not fit the type; the message says what is needed.
    """
    return _CONVERTERS[column_type](cell)


def _to_integer(cell: str) -> int:
    stripped = cell.strip()
    # Longer ones are refused before they are converted, which takes quadratic time.
    if not _INTEGER.fullmatch(stripped) or len(stripped) > 100:
        raise ValueError("must be a whole number")
    if abs(number := int(stripped)) > MAX_EXACT_WHOLE_NUMBER:
        raise ValueError("must be a whole number up to 2^53-1, because larger ones are not exact")
    return number


def _to_float(cell: str) -> float:
    stripped = cell.strip()
    if not _FLOAT.fullmatch(stripped) or not math.isfinite(number := float(stripped)):
        raise ValueError("must be a number")
    return number


def _to_bool(cell: str) -> bool:
    try:
        return _BOOLS[cell.strip().lower()]
    except KeyError:
        raise ValueError(f"must be one of {', '.join(_BOOLS)}") from None


_CONVERTERS: dict[ColumnType, Callable[[str], Any]] = {
    ColumnType.STRING: str,
    ColumnType.INTEGER: _to_integer,
    ColumnType.FLOAT: _to_float,
    ColumnType.BOOL: _to_bool,
}


class ColumnGuess:
    """Infers the type of one column from its cells.

    Attributes:
        misfit: the line and the cell for which a column that began with numbers or truth values is text.
    """

    def __init__(self) -> None:
        self._possible: set[ColumnType] = set()
        self._decimals: set[int] = set()
        self._has_padding = False
        self._is_new = True
        self.misfit: tuple[int, str] | None = None

    @property
    def column_type(self) -> ColumnType:
        """The narrowest type that fits all cells so far."""
        for kind in (ColumnType.BOOL, ColumnType.INTEGER, ColumnType.FLOAT):
            if kind in self._possible:
                return kind
        return ColumnType.STRING

    def add(self, cell: str, line_number: int) -> None:
        """Take the next cell of the column."""
        if not cell or not (self._possible or self._is_new):
            return
        fitting = self._fitting(cell.strip())
        left = fitting if self._is_new else self._possible & fitting
        if not left and not self._is_new:
            self.misfit = (line_number, cell)
        self._possible, self._is_new = left, False

    def _fitting(self, cell: str) -> set[ColumnType]:
        if cell.lower() in _INFERRED_BOOLS:
            return {ColumnType.BOOL}
        found = _CANONICAL_FLOAT.fullmatch(cell)
        if not found or not math.isfinite(float(cell)):
            return set()
        if _CANONICAL_INTEGER.fullmatch(cell):
            is_exact = abs(float(cell)) <= MAX_EXACT_WHOLE_NUMBER
            return {ColumnType.INTEGER, ColumnType.FLOAT} if is_exact else set()
        if decimals := found[1]:
            self._decimals.add(len(decimals))
            # Not in "12.0", which is how programs write a whole number among floats.
            self._has_padding |= len(decimals) > 1 and decimals.endswith("0")
        # "9.50" next to "12.25" is a price. "3.10" next to "3.9" is a version, and not the same as "3.1".
        is_version = self._has_padding and len(self._decimals) > 1
        return set() if is_version else {ColumnType.FLOAT}
