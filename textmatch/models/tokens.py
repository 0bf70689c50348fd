"""A text as a model reads it. Free of torch, for code that only passes it on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

Pair: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """A text, or a pair of texts, as the model reads it, special tokens included."""

    ids: Sequence[int]
    # Which of the two texts of a pair a token belongs to; None for single texts.
    type_ids: Sequence[int] | None
    # Whether the end was cut off.
    truncated: bool
    is_query: bool

    @property
    def token_count(self) -> int:
        """Tokens that the model reads."""
        return len(self.ids)
