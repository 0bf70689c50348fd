"""The time budget of a Match: how long each stage may take, from the measured speed of index and encoder.

    start                              fallback_at             answer_by     deadline
      |------------- embed ---------------|                        |             |
      |          ... in time:     |- full search -|- score chunks -|-- answer ---|
      |          ... in time, but tight:   |- quick search -|      |-- answer ---|
      |          ... late:                |---- BM25 search ---|   |-- answer ---|

* `answer_by`: all work must end here. The rest of the time is for serialising and sending the answer.
* `fallback_at`: if the query is not embedded by then, BM25 answers instead (ENCODE_LATE). Its search has the
  time of three quick searches. Without BM25, embedding may use all the time.
* Once the query is embedded, less time than three full searches is tight: one quick search for the nearest
  embeddings answers without scoring (RECALL_LATE).
* Pairs are scored in chunks until `answer_by`. A chunk takes only a part of the time left, because the scores
  of a late chunk are lost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from textmatch.errors import DeadlinePassed

# The answer's reserve: a share of the caller's time, within limits.
_ANSWER_RESERVE_SHARE = 0.15
_MIN_ANSWER_RESERVE_SECONDS = 0.01
_MAX_ANSWER_RESERVE_SECONDS = 0.25
_FALLBACK_QUICK_SEARCHES = 3.0
_TIGHT_FULL_SEARCHES = 3.0
_CLASSIFY_SHARE = 0.5
# A matcher reads the term statistics of a collection once before its first answer.
_TERM_STATISTICS_SHARE = 0.25
# A caller joins an identical running match if that has at least this share of the caller's own time.
_MIN_JOINED_SHARE = 0.5

# Search time: the first estimate, the weight of the newest measurement, and how a quick search compares.
_FIRST_SEARCH_SECONDS = 0.005
_SEARCH_NEWEST_SHARE = 0.1
_FULL_PER_QUICK = 2.0
_FULL_SEARCH_CANDIDATES = 100

# Scoring speed: the weight of the newest measurement, and the age at which measurements no longer count.
_SCORING_NEWEST_SHARE = 0.3
_SCORING_FORGOTTEN_SECONDS = 5.0
# A pair costs as much as its characters up to about the token limit of models, and a constant.
_MAX_PAIR_CHARACTERS = 2_000
_PAIR_CHARACTERS = 40
# A chunk takes this share of the time left, but at least the smallest chunk if that fits at all.
_CHUNK_SHARE = 0.4
_SMALLEST_CHUNK = 4
# While the speed is unknown: one small chunk, or everything if there is ample time.
_FIRST_CHUNK = 8
_AMPLE_SECONDS = 2.0

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class TimeBudget:
    """The time of one Match. Times are those of `time.monotonic()`."""

    deadline: float
    answer_by: float

    @classmethod
    def until(cls, deadline: float) -> TimeBudget:
        """The budget of a Match that starts now."""
        reserve_seconds = (deadline - time.monotonic()) * _ANSWER_RESERVE_SHARE
        reserve_seconds = max(reserve_seconds, _MIN_ANSWER_RESERVE_SECONDS)
        return cls(deadline, deadline - min(reserve_seconds, _MAX_ANSWER_RESERVE_SECONDS))

    def seconds_left(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self.deadline - time.monotonic()

    def fallback_at(self, search_time: SearchTime) -> float:
        """When BM25 must answer instead of an embedding that is late."""
        return self.answer_by - _FALLBACK_QUICK_SEARCHES * search_time.quick_seconds

    def is_tight(self, search_time: SearchTime, search_count: int = 1) -> bool:
        """Whether so many full searches and the stages after them may be late."""
        searches = _TIGHT_FULL_SEARCHES + search_count - 1
        return self.answer_by - time.monotonic() < searches * search_time.full_seconds

    def term_statistics_timeout_seconds(self) -> float:
        """How long the first term statistics of a collection are waited for."""
        return max(self.seconds_left() * _TERM_STATISTICS_SHARE, 0.0)

    def classify_timeout_seconds(self) -> float:
        """The time for classifying candidates; the rest is for scoring them."""
        return self.seconds_left() * _CLASSIFY_SHARE

    def may_join(self, running: TimeBudget) -> bool:
        """Whether to wait for an identical match with that budget.

        It must answer in time, and must not have much less time, because more time gives better answers.
        """
        own_seconds = self.seconds_left()
        return own_seconds * _MIN_JOINED_SHARE <= running.seconds_left() <= own_seconds

    async def within_deadline(self, answer: Awaitable[Answer]) -> Answer:
        """The answer of the index.

        Raises:
            DeadlinePassed: it does not come before the deadline.
        """
        try:
            async with asyncio.timeout(self.seconds_left()):
                return await answer
        except TimeoutError:
            raise DeadlinePassed("the index did not answer before the deadline") from None


class SearchTime:
    """How long searches take, as a moving average."""

    def __init__(self) -> None:
        self.full_seconds = _FIRST_SEARCH_SECONDS

    @property
    def quick_seconds(self) -> float:
        """The time of one search for few candidates."""
        return self.full_seconds / _FULL_PER_QUICK

    def observe(self, candidate_count: int, seconds: float) -> None:
        """Record the time of a search. Searches for more candidates than the default are ignored."""
        if candidate_count > _FULL_SEARCH_CANDIDATES:
            return
        full_seconds = seconds * (1.0 if candidate_count == _FULL_SEARCH_CANDIDATES else _FULL_PER_QUICK)
        self.full_seconds += _SEARCH_NEWEST_SHARE * (full_seconds - self.full_seconds)


class ScoringThroughput:
    """How fast the encoder scores pairs, in seconds for each character that the model reads.

    Unknown if no pair was scored recently: the encoder may have been replaced, or be busier.
    """

    def __init__(self) -> None:
        self._seconds_per_character = 0.0
        self._observed_at = float("-inf")

    def observe(self, query: str, texts: Sequence[str], seconds: float) -> None:
        """Record a chunk that was scored."""
        measured = seconds / _characters(query, texts)
        share = _SCORING_NEWEST_SHARE if self._is_known() else 1.0
        self._seconds_per_character += share * (measured - self._seconds_per_character)
        self._observed_at = time.monotonic()

    def observe_late(self, query: str, texts: Sequence[str], seconds: float) -> None:
        """Record a chunk that was not scored within `seconds`."""
        if seconds > self._seconds_per_character * _characters(query, texts):
            self.observe(query, texts, seconds)

    def next_chunk(self, query: str, texts: Sequence[str], seconds_left: float) -> Sequence[str]:
        """The first texts that can be scored in time; empty if there is no time for any."""
        if seconds_left <= 0:
            return []
        if not self._is_known():
            return texts if seconds_left >= _AMPLE_SECONDS else texts[:_FIRST_CHUNK]
        count = max(
            self._affordable(query, texts, seconds_left * _CHUNK_SHARE),
            self._affordable(query, texts[:_SMALLEST_CHUNK], seconds_left),
        )
        return texts[:count]

    def _is_known(self) -> bool:
        return time.monotonic() - self._observed_at < _SCORING_FORGOTTEN_SECONDS

    def _affordable(self, query: str, texts: Sequence[str], seconds: float) -> int:
        for count, text in enumerate(texts):
            seconds -= self._seconds_per_character * _characters(query, [text])
            if seconds < 0.0:
                return count
        return len(texts)


def _characters(query: str, texts: Sequence[str]) -> int:
    return sum(_PAIR_CHARACTERS + min(len(query) + len(text), _MAX_PAIR_CHARACTERS) for text in texts)
