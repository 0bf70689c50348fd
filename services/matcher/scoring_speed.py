"""How fast the encoder scores pairs just now, learned from its answers."""

from __future__ import annotations

import time
from collections.abc import Sequence

# How much one answer says about the next.
_NEWEST_SHARE = 0.3
# Then the encoder may be another one, or have other work.
_FORGOTTEN_AFTER_SECONDS = 5.0
# Models read no more than their tokens allow, and these are about as many.
_MAX_READ_CHARACTERS = 2_000
# A pair costs something however short it is.
_PAIR_CHARACTERS = 40


class ScoringSpeed:
    """Seconds for each character that the model reads; unknown if nothing was scored lately."""

    def __init__(self) -> None:
        self._seconds_per_character = 0.0
        self._observed_at = float("-inf")

    @property
    def is_known(self) -> bool:
        """Whether anything was scored lately."""
        return time.monotonic() - self._observed_at < _FORGOTTEN_AFTER_SECONDS

    def observe(self, query: str, texts: Sequence[str], seconds: float) -> None:
        """So long it took to score these."""
        measured = seconds / _characters(query, texts)
        share = _NEWEST_SHARE if self.is_known else 1.0
        self._seconds_per_character += share * (measured - self._seconds_per_character)
        self._observed_at = time.monotonic()

    def observe_late(self, query: str, texts: Sequence[str], seconds: float) -> None:
        """These were not scored within so many seconds."""
        if seconds > self.seconds(query, texts):
            self.observe(query, texts, seconds)

    def seconds(self, query: str, texts: Sequence[str]) -> float:
        """How long it will take to score these."""
        return self._seconds_per_character * _characters(query, texts)

    def affordable(self, query: str, texts: Sequence[str], seconds: float) -> int:
        """How many of the first texts can be scored in so many seconds."""
        for count, text in enumerate(texts):
            seconds -= self.seconds(query, [text])
            if seconds < 0.0:
                return count
        return len(texts)


def _characters(query: str, texts: Sequence[str]) -> int:
    return sum(_PAIR_CHARACTERS + min(len(query) + len(text), _MAX_READ_CHARACTERS) for text in texts)
