"""Which of the waiting texts go into the next forward pass.

There is no timer: a batch is chosen from what waits at the moment the engine is free. It always holds the
text that is next. Where texts are packed it holds those that follow, whatever their lengths; where all are
padded to the longest it holds texts of about the same length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.encoder.turns import Text, TurnQueue

# Small enough that single texts wait for a part of a batch, large enough that calls do not all end together.
_TURNS_PER_BATCH = 4


@dataclass(frozen=True)
class BatchPolicy:
    """How texts become batches.

    `token_budget` limits a batch, counted as it is computed: if padded, longest text x texts. `bulk_share` is
    the part of the tokens that bulk work gets at least while interactive work waits. `forward_cost_tokens` is
    how many tokens could be computed in the time that a forward pass takes before its first token: less
    padding than that is cheaper than another pass.
    """

    token_budget: int
    bulk_share: float
    forward_cost_tokens: int

    @property
    def turn_tokens(self) -> int:
        """How many tokens of one caller go before those of another who waits."""
        return max(1, self.token_budget // _TURNS_PER_BATCH)


def padded_tokens(token_counts: Sequence[int]) -> int:
    """Tokens that are computed for a batch."""
    return max(token_counts) * len(token_counts)


def take_packed_batch(queue: TurnQueue[Text], policy: BatchPolicy) -> list[Text]:
    """Take the texts that are next, as many as the budget holds; the first goes even if it alone is larger.

    Returns:
        In the order of the queue; empty if nothing waits.
    """
    batch: list[Text] = []
    room_tokens = policy.token_budget
    while (text := queue.peek()) is not None and (not batch or text.tokens <= room_tokens):
        batch.append(queue.take())
        room_tokens -= text.tokens
    return batch


def take_padded_batch(token_counts: Sequence[int], policy: BatchPolicy) -> list[int]:
    """Choose a batch of texts of about the same length that holds the first text.

    Args:
        token_counts: of the waiting texts, the next one first; at least one.
        policy: its `token_budget` is kept, unless the first text alone is larger.

    Returns:
        Positions in `token_counts`, longest text first.
    """
    group: list[int] = []
    longest = padding = 0
    for position in sorted(range(len(token_counts)), key=lambda at: (-token_counts[at], at)):
        tokens = token_counts[position]
        is_full = longest * (len(group) + 1) > policy.token_budget
        if group and (is_full or padding + longest - tokens > policy.forward_cost_tokens):
            if 0 in group:
                return group
            group = []
        if not group:
            longest, padding = tokens, 0
        padding += longest - tokens
        group.append(position)
    return group


class BulkCredit:
    """Whose turn it is, so that bulk work advances however much interactive work comes.

    Interactive work goes first and thereby earns credit for the bulk work that waits; a batch's worth of
    credit buys one bulk batch.
    """

    def __init__(self, policy: BatchPolicy) -> None:
        self._cost_tokens = policy.token_budget
        self._earned_per_token = policy.bulk_share / (1 - policy.bulk_share)
        self._tokens = 0.0

    def is_bulk_turn(self, *, interactive_waits: bool, bulk_waits: bool) -> bool:
        """Whether the next batch is of bulk work."""
        return bulk_waits and (not interactive_waits or self._tokens >= self._cost_tokens)

    def account(self, tokens: int, *, is_bulk: bool, bulk_waits: bool) -> None:
        """Note what a batch took: its tokens, and whether bulk work is waiting still."""
        if is_bulk:
            self._tokens -= tokens
        else:
            self._tokens += tokens * self._earned_per_token
        if self._tokens < 0 or not bulk_waits:
            self._tokens = 0.0
